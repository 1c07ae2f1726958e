//! The ports that agents withhold from the host's own sockets: what was withheld before is remembered, so that only what
//! was added is given back.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Item;
use crate::node::{self, PortRange, RESERVED_PORTS};

/// The file of the state directory that remembers. Like the setting, it does not outlive a boot where that directory is
/// in memory.
pub const FILE: &str = "reserved-ports.json";

/// How many ports there are.
const PORTS: usize = 1 << 16;

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The boot in which it holds.
    boot: String,
    /// What was reserved before any agent came.
    before: String,
    /// What agents have added.
    added: Vec<String>,
}

/// Withholds the range ([`node::reserve_ports`]), and remembers what was withheld before.
///
/// # Errors
/// When the setting can't be read or written, or the file can't.
pub fn reserve(proc_sys: &Path, range: PortRange, state_dir: &Path) -> io::Result<()> {
    let now = fs::read_to_string(proc_sys.join(RESERVED_PORTS))?;
    if node::with_range(now.trim(), range).is_some() {
        let file = state_dir.join(FILE);
        let boot = boot();
        let mut record = read(&file).filter(|record| record.boot == boot).unwrap_or_else(|| Record {
            boot,
            before: now.trim().to_owned(),
            added: Vec::new(),
        });
        record.added.push(format!("{}-{}", range.first(), range.last()));
        fs::write(file, serde_json::to_string(&record).map_err(io::Error::other)?)?;
    }
    node::reserve_ports(proc_sys, range)
}

/// What agents have added to the setting and is still there.
pub(super) fn find(state_dir: &Path, proc_sys: &Path) -> Result<Option<Item>> {
    let Some(record) = read(&state_dir.join(FILE)).filter(|record| record.boot == boot()) else {
        return Ok(None);
    };
    let setting = proc_sys.join(RESERVED_PORTS);
    let now = match fs::read_to_string(&setting) {
        Ok(now) => now.trim().to_owned(),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("read {}", setting.display())),
    };
    let after = without(&now, &record);
    Ok((after != now).then_some(Item::ReservedPorts { setting, now, after }))
}

/// Writes the setting; an empty line withholds nothing.
pub(super) fn write(setting: &Path, value: &str) -> io::Result<()> {
    fs::write(setting, format!("{value}\n"))
}

fn read(file: &Path) -> Option<Record> {
    serde_json::from_str(&fs::read_to_string(file).ok()?).ok()
}

/// What tells one boot from another; empty where nothing does.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The ports `now`, less those added by agents that were not there before.
fn without(now: &str, record: &Record) -> String {
    let (mut ports, before) = (set(now), set(&record.before));
    for port in record.added.iter().flat_map(|range| members(range)) {
        ports[port] &= before[port];
    }
    text(&ports)
}

/// The ports of a list like `1,3-5` (Documentation/networking/ip-sysctl.rst).
fn set(list: &str) -> Vec<bool> {
    let mut ports = vec![false; PORTS];
    list.split(',').flat_map(members).for_each(|port| ports[port] = true);
    ports
}

fn members(range: &str) -> std::ops::Range<usize> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) => usize::from(first)..usize::from(last) + 1,
        _ => 0..0,
    }
}

fn text(ports: &[bool]) -> String {
    let mut ranges = Vec::new();
    let mut port = 0;
    while port < ports.len() {
        let length = ports[port..].iter().take_while(|is_in| **is_in).count();
        match length {
            0 => {}
            1 => ranges.push(port.to_string()),
            _ => ranges.push(format!("{port}-{}", port + length - 1)),
        }
        port += length.max(1);
    }
    ranges.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(now: &str, before: &str, added: &[&str]) -> String {
        let added = added.iter().map(|range| (*range).to_owned()).collect();
        without(now, &Record { boot: String::new(), before: before.into(), added })
    }

    #[test]
    fn only_what_agents_have_added_is_given_back() {
        assert_eq!(after("49152-65535", "", &["49152-65535"]), "");
        assert_eq!(after("80,49152-65535", "80", &["49152-65535"]), "80");
        assert_eq!(after("50000,49152-65535", "50000", &["49152-65535"]), "50000");
        // Somebody has reserved more since.
        assert_eq!(after("7-9,49152-65535", "8", &["49152-65535"]), "7-9");
    }

    #[test]
    fn what_an_agent_with_another_range_has_added_goes_too() {
        assert_eq!(after("1024-2047,49152-65535", "", &["49152-65535", "1024-2047"]), "");
    }

    #[test]
    fn a_restarted_agent_does_not_take_its_own_ports_for_somebody_elses() {
        let directory = tempfile::tempdir().expect("a directory");
        let setting = directory.path().join(RESERVED_PORTS);
        fs::create_dir_all(setting.parent().expect("a parent")).expect("made");
        fs::write(&setting, "80\n").expect("written");
        let range: PortRange = "49152-65535".parse().expect("a range");
        for _ in 0..2 {
            reserve(directory.path(), range, directory.path()).expect("reserved");
        }
        assert_eq!(fs::read_to_string(&setting).expect("read"), "80,49152-65535");
        let found = find(directory.path(), directory.path()).expect("read").expect("something");
        let Item::ReservedPorts { after, .. } = &found else { panic!("{found:?}") };
        assert_eq!(after, "80");
        found.remove().expect("removed");
        assert_eq!(find(directory.path(), directory.path()).expect("read"), None);
    }
}
