//! Other kernels than this machine's: Debian's, booted in QEMU's software emulation, which needs no virtualisation.
//!
//! ```text
//! debian  suite ─▶ vmlinuz, modules          (apt verifies them; nothing is installed)
//! guest   binaries, test programs, kubectl … ─▶ initramfs ─▶ qemu ─▶ what the guest printed ─▶ Outcome
//! ```
//!
//! In each kernel `fairlead-proxy check` asks for its features and has the programs verified, the program tests hand
//! packets to them, and the demo forwards real traffic between namespaces. The table of outcomes goes to
//! `target/kernels/results.md`, what each guest printed beside it.

mod debian;
mod guest;

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::command::{cargo, output, say, target};
use crate::setup::install_commands;
use guest::{Binaries, Outcome};

/// The beginnings of releases, and the suite that has the kernel. The first shows a refusal.
const KERNELS: [(&str, &str); 6] = [
    ("5.10.", "bullseye"),
    ("6.1.", "bookworm"),
    ("6.12.", "trixie"),
    ("6.18.", "trixie-backports"),
    ("7.2.", "forky"),
    ("7.", "trixie-backports"),
];
/// Commands that this needs beside those of the tests, and the Debian packages that have them.
const COMMANDS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("openssl", "openssl"),
];

/// Runs everything on each kernel, and prints the table.
pub(crate) fn run(only: &[String], demo: bool) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the kernels that this boots are for x86-64");
    }
    install_commands(COMMANDS)?;
    build::all(false)?;
    let binaries = Binaries { directory: target().join("debug"), programs: program_tests()? };
    let directory = target().join("kernels");
    let mut rows = Vec::new();
    for (release, suite) in KERNELS {
        let is_asked_for =
            |asked: &String| format!("{asked}.").starts_with(release) || asked.starts_with(release);
        if !only.is_empty() && !only.iter().any(is_asked_for) {
            continue;
        }
        let place = directory.join(format!("{release}{suite}"));
        match debian::fetch(suite, release, &place) {
            Ok(kernel) => {
                say(&format!("booting {} of {suite}", kernel.release));
                let outcome = guest::boot(&kernel, &binaries, &place, demo)
                    .with_context(|| format!("boot {}", kernel.release))?;
                rows.push(row(&kernel.release, suite, &outcome));
            }
            Err(error) => rows.push(format!("| {release}x ({suite}) | not run: {error:#} | | | | | |")),
        }
    }
    let mut table = String::from(
        "| kernel | can run | attached by | program tests passed | demo passed | verified instructions | missing |\n\
         |---|---|---|---|---|---|---|\n",
    );
    rows.iter().try_for_each(|row| writeln!(table, "{row}"))?;
    let results = directory.join("results.md");
    fs::write(&results, &table).with_context(|| format!("write {}", results.display()))?;
    print!("{table}");
    Ok(())
}

/// The path of the program tests' executable.
fn program_tests() -> Result<String> {
    let arguments = [
        "test",
        "--package",
        "fairlead-prog-tests",
        "--test",
        "programs",
        "--no-run",
        "--message-format=json",
    ];
    let messages = output(&mut cargo(arguments))?;
    let executable =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            (message["target"]["name"] == "programs")
                .then(|| message["executable"].as_str().map(str::to_owned))?
        });
    executable.context("cargo does not say where the program tests are")
}

fn row(release: &str, suite: &str, outcome: &Outcome) -> String {
    let Outcome { check, programs, demo } = outcome;
    let (can_run, attachment, verified, missing) = match check {
        Some(check) => (can_run(check), text(&check["attachment"]), verified(check), missing(check)),
        None => ("check did not end".to_owned(), String::new(), String::new(), String::new()),
    };
    let of = |count: &Option<(u64, u64)>| match count {
        Some((passed, failed)) => format!("{passed} of {}", passed + failed),
        None => "not run".to_owned(),
    };
    format!(
        "| {release} ({suite}) | {can_run} | {attachment} | {} | {} | {verified} | {missing} |",
        of(programs),
        of(demo)
    )
}

fn can_run(check: &Value) -> String {
    match check["problems"].as_array().map(Vec::len) {
        Some(0) => "yes".to_owned(),
        _ => "no".to_owned(),
    }
}

/// From the least to the most that the verifier walked for a tc program.
fn verified(check: &Value) -> String {
    let counts = check["programs"].as_object().into_iter().flatten();
    let counts: Vec<u64> =
        counts.filter_map(|(_, count)| count.as_u64()).filter(|count| *count > 10_000).collect();
    match (counts.iter().min(), counts.iter().max()) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        _ => "none".to_owned(),
    }
}

fn missing(check: &Value) -> String {
    let features = check["kernel"]["features"].as_array().into_iter().flatten();
    let missing: Vec<String> =
        features.filter(|feature| feature["found"] == false).map(|feature| text(&feature["name"])).collect();
    missing.join(", ")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
