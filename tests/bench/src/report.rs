//! From samples to results: medians over rounds, ratios within rounds, and their names.
//!
//! `<path>_<metric>` is a median in its own unit. `<path>_<metric>_ratio` compares with the path's *direct*
//! counterpart and `…_limit_ratio` with *limit*: the ratio is taken within each round, the median over
//! rounds afterwards, and above 1 is better for every metric. On the paths of [`crate::policy`] the counterpart is the
//! one without policies. What [`crate::scale`] finds stands for itself.

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
    /// Path and metric, or what it is.
    pub(crate) name: String,
    /// The value, of those that are measured in rounds the median.
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
        report.add_samples(plan, samples);
        report
    }

    /// Evaluates the samples of another plan.
    pub(crate) fn add_samples(&mut self, plan: &[(Cell, Vec<Path>)], samples: &Samples) {
        for (cell, paths) in plan {
            for path in paths {
                for &metric in cell.metrics() {
                    self.compare(*cell, path, metric, samples);
                }
                self.warn_of_losses(*cell, path.name, samples);
            }
        }
        self.warn_of_others("other processes used", &samples.others);
        self.warn_of_others("the hypervisor took away", &samples.stolen);
    }

    /// Adds a result that stands for itself.
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str) {
        self.entries.push(Entry { name: name.to_owned(), value, unit });
    }

    fn compare(&mut self, cell: Cell, path: &Path, metric: Metric, samples: &Samples) {
        let values = |path: &str| -> Option<Vec<f64>> {
            let key = samples.by_cell.iter().find(|((of, name), _)| *of == cell && *name == path)?;
            Some(key.1.iter().map(|sample| sample.value(metric.quantity)).collect())
        };
        let Some(own) = values(path.name) else { return };
        let name = format!("{}_{}", path.name, metric.name);
        self.add(&name, median(&own), metric.quantity.unit());
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
            self.add(&name, median(&ratios), "ratio");
        }
    }

    fn warn_of_losses(&mut self, cell: Cell, path: &'static str, samples: &Samples) {
        let lost: u64 =
            samples.by_cell.get(&(cell, path)).into_iter().flatten().map(|sample| sample.lost).sum();
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::cell::{Sample, Target};
    use crate::kernel::DIRECT;
    use crate::topology::End;

    fn path(name: &'static str, direct: Option<&'static str>) -> Path {
        let target = Target::itself(Ipv4Addr::LOCALHOST.into());
        Path { name, direct, client: End::default(), server: End::default(), target }
    }

    fn latencies(microseconds: [f64; 3]) -> Vec<Sample> {
        let sample = |p99: f64| Sample { operations: 100, seconds: 1.0, p99: p99 * 1e3, ..Sample::default() };
        microseconds.map(sample).into()
    }

    fn report(limit: [f64; 3], direct: [f64; 3], clusterip: [f64; 3]) -> Report {
        let paths = vec![path(LIMIT, None), path(DIRECT, None), path("clusterip", Some(DIRECT))];
        let all = [(LIMIT, limit), (DIRECT, direct), ("clusterip", clusterip)];
        let by_cell = all.map(|(name, values)| ((Cell::Rr1, name), latencies(values))).into();
        Report::new(&[(Cell::Rr1, paths)], &Samples { by_cell, ..Samples::default() })
    }

    fn value(report: &Report, name: &str) -> Option<f64> {
        report.entries.iter().find(|entry| entry.name == name).map(|entry| entry.value)
    }

    #[test]
    fn ratios_are_taken_within_a_round_so_that_a_slow_round_cancels_out() {
        let report = report([5.0, 50.0, 10.0], [10.0, 100.0, 20.0], [8.0, 80.0, 16.0]);
        assert_eq!(value(&report, "clusterip_rr_p99"), Some(16.0));
        assert_eq!(value(&report, "clusterip_rr_p99_ratio"), Some(1.25));
        assert_eq!(value(&report, "clusterip_rr_p99_limit_ratio"), Some(0.625));
        assert_eq!(value(&report, "direct_rr_p99_limit_ratio"), Some(0.5));
        assert_eq!(report.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_baseline_is_not_compared_with_itself() {
        let report = report([1.0; 3], [1.0; 3], [1.0; 3]);
        assert_eq!(value(&report, "limit_rr1_limit_ratio"), None);
        assert_eq!(value(&report, "direct_rr1_ratio"), None);
        assert_eq!(value(&report, "clusterip_rr1_ratio"), Some(1.0));
    }

    #[test]
    fn rounds_that_disagree_are_warned_of() {
        let report = report([1.0; 3], [1.0; 3], [1.0, 2.0, 3.0]);
        assert!(report.warnings.iter().any(|w| w.starts_with("clusterip_rr_p99_ratio")), "{report:?}");
    }

    #[test]
    fn a_busy_machine_and_lost_requests_are_warned_of() {
        let lossy = Sample { operations: 1, seconds: 1.0, lost: 3, ..Sample::default() };
        let by_cell = [((Cell::Udp, LIMIT), vec![lossy])].into();
        let samples = Samples { by_cell, others: vec![0.01, 0.3], stolen: vec![0.0, 0.0] };
        let report = Report::new(&[(Cell::Udp, vec![path(LIMIT, None)])], &samples);
        assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
        assert!(report.warnings[0].contains("3 requests of limit"));
        assert!(report.warnings[1].contains("at worst 30%"));
    }
}
