//! The cases that once failed, and random ones.

use std::path::{Path, PathBuf};
use std::time::Instant;

use fairlead_oracle::case::Case;
use fairlead_oracle::compare::{Mismatch, Tally, run};
use fairlead_oracle::generate;
use fairlead_oracle::kept;
use fairlead_oracle::shrink::shrink;
use fairlead_prog_tests::random::{Random, SEED};

/// The environment's variable that says how many random clusters there are.
const CLUSTERS: &str = "FAIRLEAD_ORACLE_CLUSTERS";
/// How many there are otherwise.
const CLUSTERS_BY_DEFAULT: usize = 400;
/// A failure may need a certain draw of a backend: so often a case is tried.
const TRIES: usize = 3;

#[test]
fn every_case_that_is_kept_says_what_it_is_about() {
    for (path, case) in kept() {
        assert!(case.is_sound() && !case.about.is_empty(), "{}", path.display());
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn cases_that_once_failed_do_not_fail_again() {
    let mut tally = Tally::default();
    for (path, case) in kept() {
        for _ in 0..TRIES {
            if let Err(mismatch) = run(&case, &mut tally) {
                panic!("{}: {}\n{mismatch}", path.display(), case.about);
            }
        }
    }
    println!("{} packets", tally.packets);
}

#[test]
#[ignore = "needs root: run make test"]
fn packets_fare_in_random_clusters_as_the_oracle_says() {
    let clusters =
        std::env::var(CLUSTERS).map_or(CLUSTERS_BY_DEFAULT, |text| text.parse().expect("a number"));
    let mut random = Random::announced();
    let mut tally = Tally::default();
    let begun = Instant::now();
    for number in 0..clusters {
        let case = generate::case(&mut random);
        if let Err(mismatch) = run(&case, &mut tally) {
            println!("cluster {number} of this {SEED}: {mismatch}");
            let (path, least, reduced) = keep(&case, &mismatch);
            panic!(
                "reduced: {reduced}\nkept as {}:\n{}",
                path.display(),
                serde_json::to_string_pretty(&least).expect("JSON"),
            );
        }
    }
    let Tally { packets, outcomes } = tally;
    println!("{clusters} clusters, {packets} packets, {:.1} s, {outcomes:?}", begun.elapsed().as_secs_f64());
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data")
}

fn kept() -> Vec<(PathBuf, Case)> {
    kept::all(&data())
}

/// Reduces the case, and writes what is left to where it is tried again at every run.
fn keep(case: &Case, mismatch: &Mismatch) -> (PathBuf, Case, Mismatch) {
    let mut last = mismatch.clone();
    let mut least = shrink(case, |smaller| {
        let mut tries = (0..TRIES).filter(|_| smaller.is_sound());
        let failed = tries.find_map(|_| run(smaller, &mut Tally::default()).err());
        // A case that fails for another reason is another case.
        let alike = failed.filter(|failed| failed.is_like(mismatch));
        alike.map(|failed| last = failed).is_some()
    });
    least.about = last.to_string().lines().next().unwrap_or_default().to_owned();
    (kept::keep(&data(), &least), least, last)
}
