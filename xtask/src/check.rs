//! Formatting and lints.

use anyhow::Result;
use fairlead_toolchain::Toolchain;

use crate::command::{cargo, root, run, say, target};

/// rustfmt and clippy over everything, the eBPF programs as their target sees them.
pub(crate) fn lint() -> Result<()> {
    say("checking formatting");
    run(&mut cargo(["fmt", "--all", "--check"]))?;
    say("checking lints");
    run(&mut cargo(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    say("checking lints of the eBPF programs");
    let mut command = Toolchain::locate()?.cargo("clippy", &target().join("ebpf-clippy"));
    run(command.args(["--", "-D", "warnings"]).current_dir(root()))
}
