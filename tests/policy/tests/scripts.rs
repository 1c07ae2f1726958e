//! Every script under `data/`.

use std::fs;
use std::path::{Path, PathBuf};

use fairlead_policy_oracle::case::Probe;
use fairlead_policy_oracle::cluster::Cluster;
use fairlead_policy_oracle::oracle::Oracle;
use fairlead_policy_oracle::programs::Tally;
use fairlead_policy_oracle::script::{Expected, Part, Script};
use fairlead_policy_oracle::{memory, programs};

/// How many writes in a thousand fail, where some do.
const FAILURES: u32 = 20;
/// How many flows are sent before they are forgotten: under half of what the table holds.
const CONNECTIONS: usize = 200;

fn scripts() -> Vec<(String, Script)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let entries = fs::read_dir(directory).expect("a directory of scripts");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no scripts");
    let read = |path: &PathBuf| {
        let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a text file");
        let script = Script::parse(&text).unwrap_or_else(|error| panic!("script {name}: {error:#}"));
        (name, script)
    };
    files.iter().map(read).collect()
}

#[test]
fn the_interpreter_says_what_every_script_says() {
    try_all(|script| {
        let mut cluster = Cluster::default();
        let mut wrong = Vec::new();
        for part in &script.parts {
            part.steps.iter().for_each(|step| cluster.take(step));
            cluster.look();
            let oracle = Oracle::new(&cluster);
            wrong.extend(differences(part, |probe| oracle.judge(probe).to_string()));
        }
        wrong
    });
}

#[test]
fn maps_in_memory_say_what_every_script_says() {
    for failures in [0, FAILURES] {
        try_all(|script| {
            let mut subject = memory::Subject::start(failures);
            let mut wrong = Vec::new();
            for part in &script.parts {
                subject.live_through(&part.steps).unwrap_or_else(|mismatch| panic!("{mismatch}"));
                wrong.extend(differences(part, |probe| match subject.judge(probe) {
                    Ok(verdict) => verdict.to_string(),
                    Err(mismatch) => mismatch.what,
                }));
            }
            wrong
        });
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn packets_fare_in_the_programs_as_every_script_says() {
    let mut tally = Tally::new();
    try_all(|script| {
        let mut subject = programs::Subject::start();
        for part in &script.parts {
            subject.live_through(&part.steps).unwrap_or_else(|error| panic!("{error:#}"));
            let wanted = part.expected.iter().map(|expected| (expected.probe, expected.verdict.clone()));
            for wanted in wanted.collect::<Vec<_>>().chunks(CONNECTIONS) {
                subject.node().forget_flows();
                if let Err(mismatch) = subject.begin(wanted, &mut tally) {
                    return vec![mismatch.to_string()];
                }
            }
        }
        Vec::new()
    });
    println!("{tally:?}");
}

/// Tries every script, each of which says what is wrong.
fn try_all(mut run: impl FnMut(&Script) -> Vec<String>) {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (name, script) in scripts() {
        count += script.parts.iter().map(|part| part.expected.len()).sum::<usize>();
        wrong.extend(run(&script).into_iter().map(|what| format!("script {name}, {what}")));
    }
    println!("{count} packets");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where the verdicts differ from those that are expected.
fn differences(part: &Part, mut judge: impl FnMut(&Probe) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    for Expected { what, probe, verdict: wanted } in &part.expected {
        let verdict = judge(probe);
        if verdict != *wanted {
            wrong.push(format!("line {}: {what}: {verdict}, not {wanted}", part.line));
        }
    }
    wrong
}
