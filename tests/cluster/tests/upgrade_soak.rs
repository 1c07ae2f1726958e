//! A short run of the upgrade soak (`make soak` is a long one).

use std::time::Duration;

use fairlead_cluster_tests::{soak, with_cluster};

/// What the events follow from.
const SEED: u64 = 20;
const LASTING: Duration = Duration::from_secs(35);
/// How many more clients: the run is short.
const CROWD: usize = 4;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn agents_that_come_and_go_at_random_lose_nothing_and_leave_nothing() {
    with_cluster(|cluster| {
        println!("seed {SEED}");
        println!("{}", soak::run(cluster, SEED, LASTING, CROWD)?);
        Ok(())
    });
}
