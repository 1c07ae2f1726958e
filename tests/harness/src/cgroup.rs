//! Control groups: each node's processes sit in their own subtree, and so can be found and ended.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long killed processes may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the cgroup2 hierarchy is mounted.
///
/// # Errors
/// When it is not mounted.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .and_then(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .context("no cgroup2 hierarchy is mounted")
}

/// Makes a group, and those above it.
///
/// # Errors
/// When the system refuses.
pub fn create(group: &Path) -> Result<()> {
    fs::create_dir_all(group).with_context(|| format!("create control group {}", group.display()))
}

/// Kills whatever runs in the group or below, waits until it is gone and removes the groups. No group, no work.
///
/// # Errors
/// When a process does not go away or a group can't be removed.
pub fn remove(group: &Path) -> Result<()> {
    match fs::write(group.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == ErrorKind::NotFound && !group.exists() => return Ok(()),
        killed => killed.with_context(|| format!("kill the processes of {}", group.display()))?,
    }
    remove_tree(group, Instant::now() + PATIENCE)
}

/// Removes the group once it is empty: a killed process leaves its group a moment later.
fn remove_tree(group: &Path, deadline: Instant) -> Result<()> {
    let entries = fs::read_dir(group).with_context(|| format!("read {}", group.display()))?;
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path(), deadline)?;
    }
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(5));
            }
            removed => return removed.with_context(|| format!("remove control group {}", group.display())),
        }
    }
}
