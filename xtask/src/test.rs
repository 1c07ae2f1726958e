//! The whole test run, and its count.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command::{cargo, say};

/// What the runner has counted so far.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Runs the unit, golden-script, program and cluster tests, those that need root included.
pub(crate) fn run() -> Result<()> {
    build::all(false)?;
    let mut count = Count::default();
    say("running unit tests, golden scripts, program tests and cluster tests");
    // One thread: a cluster test has the machine's two cores for its nodes. What tests print is for people: seeds, how
    // much was compared, how many flows a Maglev table moves.
    let arguments =
        ["test", "--no-fail-fast", "--", "--include-ignored", "--test-threads=1", "--show-output"];
    let succeeded = stream(&mut cargo(arguments), &mut count)?;
    println!("{} passed, {} failed", count.passed, count.failed);
    if !succeeded || count.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// Runs the command, shows its output as it comes and adds up the results that it reports.
fn stream(command: &mut Command, count: &mut Count) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("run {command:?}"))?;
    let stdout = child.stdout.take().context("the output is piped")?;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("read the tests' output")?;
        println!("{line}");
        if let Some(result) = line.strip_prefix("test result: ") {
            count.passed += number_before(result, " passed");
            count.failed += number_before(result, " failed");
        }
    }
    Ok(child.wait().context("wait for the tests")?.success())
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
    fn a_result_line_is_read() {
        let line = "ok. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!((number_before(line, " passed"), number_before(line, " failed")), (12, 3));
    }
}
