//! Every script under `data/`, as it stands and disturbed.

use std::fs;
use std::path::PathBuf;

use fairlead_script_tests::{Script, run};

/// How often each script is disturbed.
const SEEDS: u64 = 100;

fn scripts() -> Vec<(String, Script)> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data");
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .expect("a directory of scripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.file_stem().expect("a file name").to_string_lossy().into_owned();
        let text = fs::read_to_string(path).expect("a text file");
        let script = Script::parse(&text).unwrap_or_else(|error| panic!("script {name}: {error:#}"));
        (name, script)
    };
    assert!(!files.is_empty(), "no scripts");
    files.iter().map(read).collect()
}

#[test]
fn every_script_leaves_the_maps_as_it_says() {
    let failures: Vec<String> = scripts()
        .iter()
        .filter_map(|(name, script)| {
            run::in_order(script).err().map(|error| format!("script {name}: {error:#}"))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn order_repetition_failing_writes_and_restarts_change_no_outcome() {
    for (name, script) in scripts().iter().filter(|(_, script)| !script.fixed_order) {
        for seed in 0..SEEDS {
            run::disturbed(script, seed)
                .unwrap_or_else(|error| panic!("script {name}, seed {seed}: {error:#}"));
        }
    }
}
