//! The kernel's features for people and programs.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

/// A kernel, and what it has of what is asked of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelView {
    /// Its release, as uname(1) says.
    pub release: String,
    /// The features.
    pub features: Vec<FeatureView>,
}

/// A feature of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureView {
    /// What it is called.
    pub name: String,
    /// Whether the agent refuses to run without it.
    pub needed: bool,
    /// The release that brought it.
    pub since: String,
    /// Whether the kernel has it; none if that can't be found out here.
    pub found: Option<bool>,
    /// What the kernel said, unless it has it.
    pub note: String,
    /// What is lost without it.
    pub without: String,
}

impl KernelView {
    /// How many features the kernel has.
    pub fn found(&self) -> usize {
        self.features.iter().filter(|feature| feature.found == Some(true)).count()
    }

    /// The features that it has not.
    pub fn missing(&self) -> impl Iterator<Item = &FeatureView> {
        self.features.iter().filter(|feature| feature.found == Some(false))
    }
}

impl Display for KernelView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.release)?;
        let width = self.features.iter().map(|feature| feature.name.len()).max().unwrap_or_default().max(7);
        writeln!(f, "{:width$}  FOUND    NEEDED  SINCE  WITHOUT IT", "FEATURE")?;
        for FeatureView { name, needed, since, found, note, without } in &self.features {
            let found = match found {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "unknown",
            };
            let needed = if *needed { "yes" } else { "no" };
            let note = if note.is_empty() { String::new() } else { format!(" [{note}]") };
            writeln!(f, "{name:width$}  {found:7}  {needed:6}  {since:5}  {without}{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_of_each_feature_whether_it_is_there() {
        let feature = |name: &str, found| FeatureView {
            name: name.into(),
            needed: false,
            since: "6.6".into(),
            found,
            note: if found == Some(true) { String::new() } else { "why".into() },
            without: "slower".into(),
        };
        let kernel = KernelView {
            release: "6.1.0".into(),
            features: vec![feature("tcx", Some(false)), feature("btf", Some(true)), feature("jit", None)],
        };
        let text = kernel.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "tcx      NO       no      6.6    slower [why]");
        assert_eq!(lines[3], "btf      yes      no      6.6    slower");
        assert_eq!(lines[4], "jit      unknown  no      6.6    slower [why]");
        assert_eq!(kernel.found(), 1);
        assert_eq!(kernel.missing().map(|feature| feature.name.as_str()).collect::<Vec<_>>(), ["tcx"]);
    }
}
