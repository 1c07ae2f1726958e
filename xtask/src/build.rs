//! Building, and running what was built.

use std::process::Command;

use anyhow::Result;

use crate::command::{cargo, run, say, target};

/// Builds everything; the eBPF programs are compiled by `ebpf/object`'s build script.
pub(crate) fn all(release: bool) -> Result<()> {
    say(if release { "building (release)" } else { "building" });
    let mut command = cargo(["build", "--workspace", "--exclude", "fairlead-prog", "--bins"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)
}

/// The demo: a two-node cluster on this machine.
pub(crate) fn demo(keep: bool) -> Result<()> {
    all(false)?;
    let mut command = harness();
    command.arg("demo");
    if keep {
        command.arg("--keep");
    }
    run(&mut command)
}

/// Removes what a demo left.
pub(crate) fn demo_down() -> Result<()> {
    all(false)?;
    run(harness().arg("down"))
}

/// The benchmarks, from release binaries.
pub(crate) fn bench(arguments: &[String]) -> Result<()> {
    all(true)?;
    let json = target().join("bench/results.json");
    run(Command::new(target().join("release/fairlead-bench")).arg("--json").arg(json).args(arguments))
}

fn harness() -> Command {
    Command::new(target().join("debug/fairlead-harness"))
}
