//! From samples to results: medians over rounds, ratios within rounds, and their names.
//!
//! `<path>_<metric>` is a median in its own unit. `<path>_<metric>_ratio` compares with the path's *direct*
//! counterpart and `…_limit_ratio` with *limit*: the ratio is taken within each round, the median over
//! rounds afterwards, and above 1 is better for every metric.

use std::fs;
use std::path::Path as File;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::cell::{Cell, Metric};
use crate::kernel::LIMIT;
use crate::rounds::Samples;
use crate::stats::{median, spread};
use crate::topology::Path;

/// More use of the machine by others than this makes the numbers doubtful.
const TOLERATED: f64 = 0.05;

/// A ratio whose rounds spread wider than this is doubtful itself.
const TOLERATED_SPREAD: f64 = 0.05;

/// One line of the report, one entry of results.json.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Entry {
    /// Path and metric.
    pub(crate) name: String,
    /// A median over rounds.
    pub(crate) value: f64,
    /// The unit; `ratio` where above 1 is better.
    pub(crate) unit: &'static str,
}

/// All results, and what makes them doubtful.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// The results.
    pub(crate) entries: Vec<Entry>,
    /// Sentences for people.
    pub(crate) warnings: Vec<String>,
}

impl Report {
    /// Evaluates the samples of a plan.
    pub(crate) fn new(plan: &[(Cell, Vec<Path>)], samples: &Samples) -> Self {
        let mut report = Self::default();
        for (cell, paths) in plan {
            for path in paths {
                for &metric in cell.metrics() {
                    report.add(*cell, path, metric, samples);
                }
                report.warn_of_losses(*cell, path.name, samples);
            }
        }
        report.warn_of_others("other processes used", &samples.others);
        report.warn_of_others("the hypervisor took away", &samples.stolen);
        report
    }

    fn add(&mut self, cell: Cell, path: &Path, metric: Metric, samples: &Samples) {
        let values = |path: &str| -> Option<Vec<f64>> {
            let key = samples.by_cell.iter().find(|((of, name), _)| *of == cell && *name == path)?;
            Some(key.1.iter().map(|sample| sample.value(metric.quantity)).collect())
        };
        let Some(own) = values(path.name) else { return };
        let name = format!("{}_{}", path.name, metric.name);
        self.entries.push(Entry { name: name.clone(), value: median(&own), unit: metric.quantity.unit() });
        let bases = [
            (path.direct, format!("{name}_ratio")),
            ((path.name != LIMIT).then_some(LIMIT), format!("{name}_limit_ratio")),
        ];
        for (base, name) in bases {
            let Some(base) = base.and_then(values) else { continue };
            let ratios: Vec<_> =
                own.iter().zip(&base).map(|(own, base)| metric.quantity.ratio(*own, *base)).collect();
            let spread = spread(&ratios);
            if spread > TOLERATED_SPREAD {
                self.warnings.push(format!("{name} differs by ±{:.0}% between rounds", spread * 100.0));
            }
            self.entries.push(Entry { name, value: median(&ratios), unit: "ratio" });
        }
    }

    fn warn_of_losses(&mut self, cell: Cell, path: &'static str, samples: &Samples) {
        let lost: u64 = samples.by_cell.get(&(cell, path)).into_iter().flatten().map(|sample| sample.lost).sum();
        if lost > 0 {
            self.warnings.push(format!("{lost} requests of {path} {cell:?} were never answered"));
        }
    }

    fn warn_of_others(&mut self, who: &str, shares: &[f64]) {
        let worst = shares.iter().copied().fold(0.0, f64::max);
        if worst > TOLERATED {
            self.warnings.push(format!(
                "{who} {:.0}% of the machine (at worst {:.0}%): measure again when it is quiet",
                median(shares) * 100.0,
                worst * 100.0
            ));
        }
    }

    /// Prints `name value unit` lines to standard output and warnings to standard error.
    pub(crate) fn print(&self) {
        for Entry { name, value, unit } in &self.entries {
            println!("{name} {value:.3} {unit}");
        }
        for warning in &self.warnings {
            eprintln!("warning: {warning}");
        }
    }

    /// Writes the results as a list of `{name, value, unit}`, making the directory if need be.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, file: &File) -> Result<()> {
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        }
        let mut json = serde_json::to_string_pretty(&self.entries)?;
        json.push('\n');
        fs::write(file, json).with_context(|| format!("write {}", file.display()))
    }
}
