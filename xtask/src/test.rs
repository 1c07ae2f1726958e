//! The whole test run, and its count.
//!
//! Tests run one at a time, since one of a cluster has the machine's two cores for its nodes; but it mostly waits. So the
//! suites that make no clusters run beside, at a low priority: in the time that the others leave.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build;
use crate::command::{cargo, output, root, say};

/// The packages whose tests want the machine for themselves.
const FIRST: [&str; 2] = ["tests/cluster", "tests/bench"];
/// The priority of all others, as of nice(1).
const BESIDE: &str = "10";
/// One thread. What tests print is for people: seeds, how much was compared, how many flows a Maglev table moves.
const ARGUMENTS: [&str; 3] = ["--include-ignored", "--test-threads=1", "--show-output"];

/// What the runner has counted so far.
#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
    /// The suites that failed.
    suites: Vec<String>,
}

/// The tests of one executable.
#[derive(Debug, PartialEq, Eq)]
struct Suite {
    name: String,
    executable: PathBuf,
    /// The package's directory, where cargo would run it.
    directory: PathBuf,
}

impl Suite {
    /// What a line of cargo's says, if it is of an executable.
    fn parse(line: &str) -> Option<Self> {
        let message: Value = serde_json::from_str(line).ok()?;
        let executable = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
        let source = message["target"]["src_path"].as_str()?;
        let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
        let source = Path::new(source).strip_prefix(directory).unwrap_or(Path::new(source));
        let package = directory.strip_prefix(root()).unwrap_or(directory);
        let name = format!("{}: {}", package.display(), source.display());
        Some(Self { name, executable: executable.into(), directory: directory.to_owned() })
    }

    fn is_first(&self) -> bool {
        FIRST.iter().any(|package| self.directory.ends_with(package))
    }

    fn command(&self) -> Command {
        let mut command = if self.is_first() {
            Command::new(&self.executable)
        } else {
            let mut command = Command::new("nice");
            command.args(["-n", BESIDE]).arg(&self.executable);
            command
        };
        command.args(ARGUMENTS).current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command
    }
}

/// Runs the unit, golden-script, program and cluster tests, those that need root included.
pub(crate) fn run() -> Result<()> {
    build::all(false)?;
    say("building the tests");
    let mut command = cargo(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let built = output(command.stderr(Stdio::inherit()))?;
    let mut suites: Vec<Suite> = built.lines().filter_map(Suite::parse).collect();
    suites.sort_by(|a, b| a.name.cmp(&b.name));
    let (first, beside): (Vec<Suite>, Vec<Suite>) = suites.into_iter().partition(Suite::is_first);
    if first.is_empty() || beside.is_empty() {
        bail!("cargo told of {} suites with clusters and {} others", first.len(), beside.len());
    }
    say("running cluster tests, and beside them unit, golden-script, program and CNI tests");
    let counts = thread::scope(|scope| {
        let others = scope.spawn(|| {
            let mut count = run_all(&beside)?;
            let output = cargo(["test", "--doc", "--no-fail-fast"]).output()?;
            count.add("documentation", &show("documentation", &output), output.status.success());
            Ok(count)
        });
        [run_all(&first), others.join().unwrap_or_else(|_| bail!("the runner panicked"))]
    });
    let mut all = Count::default();
    for count in counts {
        let Count { passed, failed, suites } = count?;
        all.passed += passed;
        all.failed += failed;
        all.suites.extend(suites);
    }
    println!("{} passed, {} failed", all.passed, all.failed);
    if !all.suites.is_empty() {
        bail!("tests failed: {}", all.suites.join(", "));
    }
    Ok(())
}

fn run_all(suites: &[Suite]) -> Result<Count> {
    let mut count = Count::default();
    for suite in suites {
        println!("     Running {}", suite.name);
        let output =
            suite.command().output().with_context(|| format!("run {}", suite.executable.display()))?;
        count.add(&suite.name, &show(&suite.name, &output), output.status.success());
    }
    Ok(count)
}

/// Shows what the suite said, in one piece, and returns it.
fn show(suite: &str, output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    println!("     {suite}:\n{text}");
    text
}

impl Count {
    /// Adds up the results that the suite reports.
    fn add(&mut self, suite: &str, text: &str, succeeded: bool) {
        let before = self.failed;
        for result in text.lines().filter_map(|line| line.strip_prefix("test result: ")) {
            self.passed += number_before(result, " passed");
            self.failed += number_before(result, " failed");
        }
        if !succeeded || self.failed > before {
            self.suites.push(suite.to_owned());
        }
    }
}

/// The number that stands before `word`.
fn number_before(line: &str, word: &str) -> u64 {
    let before = line.split(word).next().unwrap_or_default();
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_suites_that_fail_are_named() {
        let mut count = Count::default();
        let line = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        count.add("one", &format!("running 12 tests\n{line}\n"), true);
        count.add("two", "test result: FAILED. 2 passed; 3 failed; 0 ignored", false);
        count.add("three", "it never came to its tests", false);
        let suites = ["two", "three"].map(str::to_owned).to_vec();
        assert_eq!(count, Count { passed: 14, failed: 3, suites });
    }

    #[test]
    fn an_executable_of_tests_is_found_among_what_cargo_says() {
        let line = |test: bool| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": "/w/tests/cluster/Cargo.toml",
                "target": { "kind": ["test"], "src_path": "/w/tests/cluster/tests/agent.rs" },
                "profile": { "test": test }, "executable": "/w/target/debug/deps/agent-1",
            })
            .to_string()
        };
        let suite = Suite::parse(&line(true)).expect("an executable of tests");
        assert_eq!(suite.name, "/w/tests/cluster: tests/agent.rs");
        assert!(suite.is_first());
        assert_eq!(Suite::parse(&line(false)), None, "another executable");
        assert_eq!(Suite::parse("Compiling"), None);
    }
}
