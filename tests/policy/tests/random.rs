//! The cases that once failed, and random ones.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use fairlead_oracle::compare::Mismatch;
use fairlead_oracle::kept;
use fairlead_oracle::shrink::shrink;
use fairlead_policy_oracle::case::Case;
use fairlead_policy_oracle::generate::{self, Course};
use fairlead_policy_oracle::{memory, programs};
use fairlead_prog_tests::random::{Random, SEED};

/// The environment's variable that says how many random clusters there are, in each test.
const CLUSTERS: &str = "FAIRLEAD_POLICY_CLUSTERS";
/// How many there are otherwise: so many that at least 100,000 packets are judged by maps in memory.
const STRAIGHT: usize = 1_300;
const EVENTFUL: usize = 300;
const WATCHED: usize = 40;
const THROUGH_PROGRAMS: usize = 150;

/// What a run has seen.
type Tally = BTreeMap<String, usize>;
/// A way to run a case.
type Run = fn(&Case, &mut Tally) -> Result<(), Mismatch>;

#[test]
fn every_case_that_is_kept_says_what_it_is_about() {
    for (path, case) in kept() {
        assert!(case.is_sound() && !case.about.is_empty(), "{}", path.display());
    }
}

#[test]
fn cases_that_once_failed_do_not_fail_again() {
    for run in [memory::run, memory::run_with_failures, memory::run_watched] {
        retry(run);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn cases_that_once_failed_do_not_fail_again_in_the_programs() {
    retry(programs::run);
}

#[test]
fn maps_judge_packets_in_random_clusters_as_the_interpreter_does() {
    try_many(STRAIGHT, Course::Straight, memory::run);
}

#[test]
fn maps_judge_so_whatever_happened_and_failed_before() {
    try_many(EVENTFUL, Course::Eventful, memory::run_with_failures);
}

#[test]
fn maps_judge_by_the_old_state_or_the_new_one_at_every_moment() {
    try_many(WATCHED, Course::Eventful, memory::run_watched);
}

#[test]
#[ignore = "needs root: run make test"]
fn packets_fare_in_the_programs_as_the_interpreter_says() {
    try_many(THROUGH_PROGRAMS, Course::Eventful, programs::run);
}

fn retry(run: Run) {
    let mut tally = Tally::new();
    for (path, case) in kept() {
        if let Err(mismatch) = run(&case, &mut tally) {
            panic!("{}: {}\n{mismatch}", path.display(), case.about);
        }
    }
    println!("{} packets", tally.values().sum::<usize>());
}

fn try_many(clusters: usize, course: Course, run: Run) {
    let clusters = std::env::var(CLUSTERS).map_or(clusters, |text| text.parse().expect("a number"));
    let mut random = Random::announced();
    let mut tally = Tally::new();
    let begun = Instant::now();
    for number in 0..clusters {
        let case = generate::case(&mut random, course);
        if let Err(mismatch) = survive(run, &case, &mut tally) {
            println!("cluster {number} of this {SEED}: {mismatch}");
            let (path, least, reduced) = keep(&case, &mismatch, run);
            panic!(
                "reduced: {reduced}\nkept as {}:\n{}",
                path.display(),
                serde_json::to_string_pretty(&least).expect("JSON"),
            );
        }
    }
    let packets: usize = tally.values().sum();
    println!("{clusters} clusters, {packets} packets, {:.1} s, {tally:?}", begun.elapsed().as_secs_f64());
}

/// Runs the case; a panic is a mismatch too.
fn survive(run: Run, case: &Case, tally: &mut Tally) -> Result<(), Mismatch> {
    let result = catch_unwind(AssertUnwindSafe(|| run(case, tally)));
    result.unwrap_or_else(|_| Err(Mismatch { packet: None, what: "a panic".to_owned() }))
}

fn found() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("found")
}

fn kept() -> Vec<(PathBuf, Case)> {
    kept::all(&found())
}

/// Reduces the case, and writes what is left to where it is tried again at every run.
fn keep(case: &Case, mismatch: &Mismatch, run: Run) -> (PathBuf, Case, Mismatch) {
    let mut last = mismatch.clone();
    let mut least = shrink(case, |smaller: &Case| {
        let failed = smaller.is_sound().then(|| survive(run, smaller, &mut Tally::new()).err()).flatten();
        // A case that fails for another reason is another case.
        let alike = failed.filter(|failed| failed.is_like(mismatch));
        alike.map(|failed| last = failed).is_some()
    });
    least.about = last.to_string().lines().next().unwrap_or_default().to_owned();
    (kept::keep(&found(), &least), least, last)
}
