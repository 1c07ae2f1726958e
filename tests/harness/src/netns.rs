//! The cluster's network namespaces, and processes started in one and in a control group.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use fairlead_net::netns::{NAMED, NamedNetns, remove};

/// The file that names the namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// Makes a namespace without duplicate address detection, which would hold back every IPv6 address for a
/// second. It goes with the guard returned.
///
/// # Errors
/// When the name is taken or the system refuses.
pub fn create(name: &str) -> Result<NamedNetns> {
    let netns = NamedNetns::create(name)?;
    netns
        .run(|| {
            fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
            fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0")
        })?
        .with_context(|| format!("switch duplicate address detection off in {name}"))?;
    Ok(netns)
}

/// Removes the namespace's name, if there is one; its last process takes the rest along.
///
/// # Errors
/// When the system refuses.
pub fn delete(name: &str) -> Result<()> {
    Ok(remove(name)?)
}

/// Names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).filter(|name| name.starts_with(prefix)).collect()
}

/// Makes the command's process start in a control group, so that socket hooks of the group see all it does.
///
/// # Errors
/// When the group does not exist.
pub fn join<'a>(command: &'a mut Command, cgroup: &Path) -> Result<&'a mut Command> {
    let procs = cgroup.join("cgroup.procs");
    let file = File::options().write(true).open(&procs);
    let file = file.with_context(|| format!("open {}", procs.display()))?;
    let enter = move || nix::unistd::write(&file, b"0").map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec the closure only makes one write to a file that it keeps open.
    Ok(unsafe { command.pre_exec(enter) })
}
