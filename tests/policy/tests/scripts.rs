//! Every script under `data/`.

use std::fs;
use std::path::{Path, PathBuf};

use fairlead_policy_oracle::cluster::Cluster;
use fairlead_policy_oracle::oracle::Oracle;
use fairlead_policy_oracle::script::Script;

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
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, script) in scripts() {
        let mut cluster = Cluster::default();
        for (number, part) in (1..).zip(&script.parts) {
            part.steps.iter().for_each(|step| cluster.take(step));
            cluster.look();
            let oracle = Oracle::new(&cluster);
            for expected in &part.expected {
                count += 1;
                let verdict = oracle.judge(&expected.probe).to_string();
                if verdict != expected.verdict {
                    let (what, expected) = (&expected.what, &expected.verdict);
                    wrong.push(format!("script {name}, part {number}: {what}: {verdict}, not {expected}"));
                }
            }
        }
    }
    println!("{count} packets");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
