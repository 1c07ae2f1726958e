//! The benchmark's program as it is run, on the kernel's paths and with hardly any time.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(json: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fairlead-bench"))
        .args(["--baselines", "--rounds", "2", "--seconds", "0.05", "--json"])
        .arg(json)
        .args(arguments)
        .output()
        .expect("run the benchmark")
}

#[test]
#[ignore = "needs root: run make test"]
fn every_line_that_is_printed_is_in_the_file_and_is_a_number() {
    let directory = tempfile::tempdir().expect("make a directory");
    let json = directory.path().join("new/results.json");
    let output = bench(&json, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Vec<Value> =
        serde_json::from_slice(&std::fs::read(&json).expect("read the results")).expect("understand them");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(printed.lines().count(), results.len());
    for (line, result) in printed.lines().zip(&results) {
        let (name, value, unit) = (&result["name"], &result["value"], &result["unit"]);
        assert!(value.as_f64().is_some_and(|value| value > 0.0), "{result}");
        let line: Vec<_> = line.split(' ').collect();
        assert_eq!((line[0], line[2]), (name.as_str().unwrap(), unit.as_str().unwrap()));
    }
    for name in ["limit_crr", "direct_crr_close_limit_ratio", "direct_outside_udp", "direct_rr_cpu_per_op"] {
        assert!(results.iter().any(|result| result["name"] == name), "no {name} in\n{printed}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_filter_that_matches_nothing_is_an_error_that_says_so() {
    let directory = tempfile::tempdir().expect("make a directory");
    let json = directory.path().join("results.json");
    let output = bench(&json, &["--only", "carrier_pigeon"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("carrier_pigeon"));
    assert!(!json.exists());
}
