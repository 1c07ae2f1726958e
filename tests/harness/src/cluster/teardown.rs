//! The end of a cluster: everything that its layout names is removed, also after a crash.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use super::{TEST_DIR, options};
use crate::layout::Layout;
use crate::process::tail;
use crate::{cgroup, netns};

/// Takes down the cluster that has its state in `dir`, also after a crash; false if there is none.
///
/// # Errors
/// When the directory can't be understood, or something is left behind.
pub fn down(dir: &Path) -> Result<bool> {
    if !dir.exists() {
        return Ok(false);
    }
    match Layout::read(dir)? {
        Some(layout) => remove(&layout)?,
        // Its start ended before anything else was made.
        None => fs::remove_dir(dir).with_context(|| format!("remove {}", dir.display()))?,
    }
    Ok(true)
}

/// Takes down clusters of tests whose process was killed before it could; returns how many.
///
/// # Errors
/// When something is left behind.
pub fn sweep() -> Result<usize> {
    let mut swept = 0;
    for entry in fs::read_dir(TEST_DIR).into_iter().flatten().flatten() {
        let named = entry.file_name().to_str().and_then(options::owner_of);
        // One that is being made has no layout yet.
        let owner = Layout::read(&entry.path())?.and_then(|layout| layout.owner).or(named);
        let alive = owner.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists());
        if !alive && down(&entry.path())? {
            swept += 1;
        }
    }
    fs::remove_dir(TEST_DIR).ok();
    Ok(swept)
}

/// Takes down what has been made of a cluster, unless its start succeeds.
pub(super) struct Teardown(pub(super) Option<Layout>);

impl Teardown {
    /// The cluster is up, and someone else sees to its end.
    pub(super) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Some(layout) = &self.0 {
            show_logs(layout);
            if let Err(error) = remove(layout) {
                eprintln!("taking the cluster {} down: {error:#}", layout.prefix);
            }
        }
    }
}

/// Removes all that the layout names; goes on after an error, and returns the first.
pub(super) fn remove(layout: &Layout) -> Result<()> {
    let mut outcome = cgroup::remove(&layout.cgroup);
    outcome = outcome.and(unmount_below(&layout.dir));
    for name in netns::list(&format!("{}-", layout.prefix)) {
        outcome = outcome.and(netns::delete(&name));
    }
    if outcome.is_ok() {
        fs::remove_dir_all(&layout.dir).with_context(|| format!("remove {}", layout.dir.display()))?;
        if layout.dir.starts_with(TEST_DIR) {
            // It stays while other tests have clusters in it.
            fs::remove_dir(TEST_DIR).ok();
        }
    }
    outcome
}

pub(super) fn unmount_below(dir: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    for point in points.filter(|point| point.starts_with(dir)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", point.display()))?;
    }
    Ok(())
}

/// Shows the end of every log.
pub(super) fn show_logs(layout: &Layout) {
    let logs = fs::read_dir(layout.dir.join("logs")).into_iter().flatten().flatten();
    for log in logs.map(|entry| entry.path()) {
        let text = tail(&log, 20);
        if !text.is_empty() {
            eprintln!("--- {}\n{text}", log.file_name().unwrap_or_default().to_string_lossy());
        }
    }
}
