//! Shorter waits for the kernel while programs are attached.
//!
//! A tcx link is made, and unmade, under the lock that every change of any interface takes, and the kernel holds that
//! until no processor can still be running what was attached before: a grace period of ten milliseconds or more, two for
//! each pod, in which no other pod's interface gets on. For changes of its own the kernel has such periods *expedited*
//! while it holds the lock, at the price of an interrupt on every processor; for this one it does not, unless
//! `/sys/kernel/rcu_expedited` has it expedite all of them.
//!
//! Where that price is too high (real-time work), `/sys/kernel/rcu_normal` is on, and this has no effect.
//!
//! The setting is a number, of which the kernel only asks whether it is 0. It is switched on by one that nobody else would
//! write, so that what an agent has left that was killed meanwhile is known, and switched off by the next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The kernel's setting, for the whole machine.
const SETTING: &str = "/sys/kernel/rcu_expedited";

/// What switches it on.
const ON: &str = "4789250";

/// While it lives, the kernel's grace periods are expedited; then they are as before.
///
/// Where the setting can't be changed, or is on already, nothing is.
#[derive(Debug)]
pub(super) struct Haste {
    changed: Option<PathBuf>,
}

impl Haste {
    /// Begins.
    pub(super) fn begin() -> Self {
        Self::with(Path::new(SETTING))
    }

    fn with(setting: &Path) -> Self {
        let is_ours = fs::read_to_string(setting).is_ok_and(|text| ["0", ON].contains(&text.trim_end()));
        let changed = is_ours && fs::write(setting, ON).is_ok();
        Self { changed: changed.then(|| setting.to_owned()) }
    }
}

/// Whether an agent that was killed meanwhile has left it on.
pub(crate) fn is_left_on() -> bool {
    fs::read_to_string(SETTING).is_ok_and(|text| text.trim_end() == ON)
}

/// Switches off what was left on.
pub(crate) fn undo() -> io::Result<()> {
    fs::write(SETTING, "0")
}

impl Drop for Haste {
    fn drop(&mut self) {
        if let Some(setting) = &self.changed
            && let Err(e) = fs::write(setting, "0")
        {
            tracing::warn!("{} stays on: {e}", setting.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the setting is during and after, if it was `before`.
    fn course(before: &str) -> [String; 2] {
        let directory = tempfile::tempdir().expect("a directory");
        let setting = directory.path().join("rcu_expedited");
        fs::write(&setting, before).expect("written");
        let read = || fs::read_to_string(&setting).expect("read");
        let haste = Haste::with(&setting);
        let during = read();
        drop(haste);
        [during, read()]
    }

    #[test]
    fn a_setting_that_was_off_is_on_meanwhile_and_one_that_was_on_stays_on() {
        assert_eq!(course("0\n"), [ON, "0"]);
        assert_eq!(course("1\n"), ["1\n", "1\n"]);
    }

    #[test]
    fn what_an_agent_that_was_killed_has_left_on_is_switched_off_by_the_next() {
        assert_eq!(course(&format!("{ON}\n")), [ON, "0"]);
    }

    #[test]
    fn a_kernel_without_the_setting_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let setting = directory.path().join("rcu_expedited");
        drop(Haste::with(&setting));
        assert!(!setting.exists());
    }
}
