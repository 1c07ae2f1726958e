//! What memory the agent and its maps take.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::MapData;
use fairlead_harness::Node;

const KIB_PER_MIB: f64 = 1024.0;
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;

/// The memory of a process, in MiB.
pub(crate) struct Memory {
    /// What it occupies now.
    pub(crate) resident: f64,
    /// The most that it has occupied.
    pub(crate) peak: f64,
}

/// The memory of a node's agent.
///
/// # Errors
/// When it does not run.
pub(crate) fn of_agent(node: &Node) -> Result<Memory> {
    let pid = node.proxy_id().context("no agent runs")?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mebibytes = |field| Ok::<_, anyhow::Error>(number(&status, field)? / KIB_PER_MIB);
    Ok(Memory { resident: mebibytes("VmRSS:")?, peak: mebibytes("VmHWM:")? })
}

/// The memory that the kernel counts for those of a node's maps that `counts` says of by their names, in MiB.
///
/// # Errors
/// When they can't be opened.
pub(crate) fn of_maps(node: &Node, counts: impl Fn(&str) -> bool) -> Result<f64> {
    let mut bytes = 0.0;
    for layout in fs::read_dir(node.layout().bpffs())?.flatten().filter(|entry| entry.path().is_dir()) {
        let pins = fs::read_dir(layout.path())?.flatten().filter(|entry| !entry.path().is_dir());
        for pin in pins.filter(|pin| pin.file_name().to_str().is_some_and(&counts)) {
            bytes += of_map(&pin.path()).with_context(|| format!("map {}", pin.path().display()))?;
        }
    }
    Ok(bytes / BYTES_PER_MIB)
}

fn of_map(pin: &Path) -> Result<f64> {
    let map = MapData::from_pin(pin)?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd()))?;
    number(&about, "memlock:")
}

/// The number that follows a field's name.
fn number(text: &str, field: &str) -> Result<f64> {
    let rest =
        text.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let number = rest.split_whitespace().next().with_context(|| format!("nothing after {field}"))?;
    number.parse().with_context(|| format!("{field} {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_field_whatever_its_unit() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(number(status, "VmRSS:").unwrap(), 1024.0);
        assert!(number(status, "VmSwap:").is_err());
    }
}
