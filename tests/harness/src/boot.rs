//! A node's boot id, by which its plugin tells what was before a reboot from what is now.
//!
//! The kernel has one for all nodes. A node that was rebooted has a file with its own, and what is to see it runs in a
//! mount namespace in which that file lies over the kernel's.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::layout::NodeLayout;

/// Where the kernel says its boot id, and where it makes up new ones.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const RANDOM_ID: &str = "/proc/sys/kernel/random/uuid";

/// Gives the node a boot id that it has not had.
///
/// # Errors
/// When the system refuses.
pub(crate) fn renew(node: &NodeLayout) -> Result<()> {
    let id = fs::read(RANDOM_ID).context("make up a boot id")?;
    let file = node.boot_id_file();
    fs::write(&file, id).with_context(|| format!("write {}", file.display()))
}

/// Makes the command's process see the boot id in `file`, if there is one. What it mounts nobody else sees.
pub(crate) fn enter<'a>(command: &'a mut Command, file: &Path) -> &'a mut Command {
    if !file.exists() {
        return command;
    }
    let file = file.to_owned();
    let lay_over = move || -> io::Result<()> {
        const NOTHING: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NOTHING, "/", NOTHING, MsFlags::MS_SLAVE | MsFlags::MS_REC, NOTHING)?;
        mount(Some(&file), BOOT_ID, NOTHING, MsFlags::MS_BIND, NOTHING)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls; nix puts paths as short as these on the stack.
    unsafe { command.pre_exec(lay_over) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: run make test"]
    fn a_process_sees_the_boot_id_in_the_file_and_nobody_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("boot_id");
        let seen = || {
            let output = enter(Command::new("cat").arg(BOOT_ID), &file).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let machine = fs::read_to_string(BOOT_ID).unwrap();
        assert_eq!(seen(), machine, "without a file");
        fs::write(&file, "another\n").unwrap();
        assert_eq!(seen(), "another\n");
        assert_eq!(fs::read_to_string(BOOT_ID).unwrap(), machine);
    }
}
