//! The text exposition format of metrics, version 0.0.4, written by hand.

use std::fmt::{Display, Write};

/// The media type of a page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Counts of observations below growing bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    /// With these upper bounds, which must grow.
    pub fn new(bounds: Vec<f64>) -> Self {
        let counts = vec![0; bounds.len()];
        Self { bounds, counts, sum: 0.0, count: 0 }
    }

    /// With `count` bounds from `first` on, each `factor` times the one before.
    pub fn exponential(first: f64, factor: f64, count: usize) -> Self {
        Self::new(std::iter::successors(Some(first), |bound| Some(bound * factor)).take(count).collect())
    }

    /// How many observations there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The bound that this part of all observations is below; none without any, and where it is beyond the last bound.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut below = 0;
        let mut reached = self.bounds.iter().zip(&self.counts).filter(|(_, count)| {
            below += **count;
            below >= wanted
        });
        reached.next().map(|(bound, _)| *bound)
    }

    /// Adds an observation.
    pub fn observe(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
        if let Some(index) = self.bounds.iter().position(|bound| value <= *bound) {
            self.counts[index] += 1;
        }
    }
}

/// A page of metrics under way. Every family is opened by [`Page::counter`], [`Page::gauge`] or [`Page::histograms`], and
/// then has its samples.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    family: &'static str,
}

impl Page {
    /// Opens a family of numbers that only grow.
    pub fn counter(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "counter")
    }

    /// Opens a family of numbers that come and go.
    pub fn gauge(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "gauge")
    }

    /// A sample of the open family.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        let name = self.family;
        self.line(name, labels, value);
        self
    }

    /// A whole family of one histogram.
    pub fn histogram(&mut self, name: &'static str, help: &str, histogram: &Histogram) {
        self.histograms(name, help).distribution(&[], histogram);
    }

    /// Opens a family of histograms.
    pub fn histograms(&mut self, name: &'static str, help: &str) -> &mut Self {
        self.open(name, help, "histogram")
    }

    /// A histogram of the open family.
    pub fn distribution(&mut self, labels: &[(&str, &str)], histogram: &Histogram) -> &mut Self {
        let name = self.family;
        let bucket = format!("{name}_bucket");
        let mut below = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            below += count;
            self.line(&bucket, &[labels, &[("le", &bound.to_string())]].concat(), below);
        }
        self.line(&bucket, &[labels, &[("le", "+Inf")]].concat(), histogram.count);
        self.line(&format!("{name}_sum"), labels, histogram.sum);
        self.line(&format!("{name}_count"), labels, histogram.count);
        self
    }

    /// The text so far.
    pub fn finish(self) -> String {
        self.text
    }

    fn open(&mut self, name: &'static str, help: &str, kind: &str) -> &mut Self {
        self.family = name;
        self.text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.text.push_str(name);
        for (place, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let opening = if place == 0 { '{' } else { ',' };
            self.text.push_str(&format!("{opening}{label}=\"{text}\""));
        }
        let closing = if labels.is_empty() { "" } else { "}" };
        // Writing to a string fails only if the value's own Display does.
        let _ = writeln!(self.text, "{closing} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_everything_below_each_bound() {
        let mut histogram = Histogram::exponential(1.0, 2.0, 3);
        for value in [0.5, 1.0, 3.0, 100.0] {
            histogram.observe(value);
        }
        let mut page = Page::default();
        page.histogram("took_seconds", "How long.", &histogram);
        assert_eq!(
            page.finish(),
            "# HELP took_seconds How long.\n\
             # TYPE took_seconds histogram\n\
             took_seconds_bucket{le=\"1\"} 2\n\
             took_seconds_bucket{le=\"2\"} 2\n\
             took_seconds_bucket{le=\"4\"} 3\n\
             took_seconds_bucket{le=\"+Inf\"} 4\n\
             took_seconds_sum 104.5\n\
             took_seconds_count 4\n"
        );
    }

    #[test]
    fn a_quantile_is_the_bound_above_it() {
        let mut histogram = Histogram::exponential(1.0, 2.0, 3);
        assert_eq!(histogram.quantile(0.5), None);
        for value in [0.5, 1.5, 1.6, 100.0] {
            histogram.observe(value);
        }
        assert_eq!(
            [0.25, 0.5, 0.75, 0.99].map(|part| histogram.quantile(part)),
            [Some(1.0), Some(2.0), Some(2.0), None]
        );
    }

    #[test]
    fn histograms_of_one_family_are_told_apart_by_their_labels() {
        let mut histogram = Histogram::new(vec![1.0]);
        histogram.observe(0.5);
        let mut page = Page::default();
        page.histograms("took_seconds", "How long.").distribution(&[("what", "a")], &histogram);
        let text = page.finish();
        for line in ["took_seconds_bucket{what=\"a\",le=\"1\"} 1", "took_seconds_sum{what=\"a\"} 0.5"] {
            assert!(text.contains(line), "{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.counter("a_total", "A.").sample(&[("x", "a\"b\\c\nd"), ("y", "z")], 1);
        assert!(page.finish().ends_with("a_total{x=\"a\\\"b\\\\c\\nd\",y=\"z\"} 1\n"));
    }
}
