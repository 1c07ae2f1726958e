//! Building, and running what was built.

use std::fs;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::command::{cargo, run, say, target};

/// What runs on nodes. `.cargo/link-statically` sees to it that these run on any distribution's.
pub(crate) const SHIPPED: [&str; 2] = ["fairlead-cni", "fairlead-proxy"];

/// The agent of another layout, for tests of upgrades, beside the usual one.
const NEXT: &str = "fairlead-proxy-next";

/// Builds everything; the eBPF programs are compiled by `ebpf/object`'s build script.
pub(crate) fn all(release: bool) -> Result<()> {
    if !release {
        next_layout()?;
    }
    say(if release { "building (release)" } else { "building" });
    let mut command = cargo(["build", "--workspace", "--exclude", "fairlead-prog", "--bins"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    if release { SHIPPED.into_iter().try_for_each(say_size) } else { Ok(()) }
}

/// Builds the agent of another layout. First, since the usual one has the same name; what does not depend on the layout is
/// compiled once for both.
fn next_layout() -> Result<()> {
    say("building the agent of the next layout, for tests of upgrades");
    let begun = Instant::now();
    // Of the whole workspace, or dependencies would be compiled anew with the features that this package alone asks for.
    let mut command =
        cargo(["build", "--workspace", "--exclude", "fairlead-prog", "--bin", "fairlead-proxy"]);
    run(command.args(["--features", "fairlead-proxy/next-layout"]))?;
    let (from, to) = (target().join("debug/fairlead-proxy"), target().join("debug").join(NEXT));
    // A copy that runs can't be written over.
    let _ = fs::remove_file(&to);
    fs::copy(&from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    say(&format!("{NEXT}: {:.0} s", begun.elapsed().as_secs_f64()));
    Ok(())
}

/// Says how large a release binary is.
fn say_size(name: &str) -> Result<()> {
    let path = target().join("release").join(name);
    let size = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
    say(&format!("{}: {:.1} MiB", path.display(), size as f64 / f64::from(1 << 20)));
    Ok(())
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

/// The upgrade soak.
pub(crate) fn soak(arguments: &[String]) -> Result<()> {
    all(false)?;
    run(Command::new(target().join("debug/fairlead-soak")).args(arguments))
}

fn harness() -> Command {
    Command::new(target().join("debug/fairlead-harness"))
}
