//! Every way of the flat network, in each way that nodes can be joined: who is reached, and whom the receiver sees.

use fairlead_cluster_tests::paths::Paths;
use fairlead_cluster_tests::{with_cluster, with_cluster_of};
use fairlead_harness::Options;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn on_one_subnet_every_end_reaches_every_other_and_is_seen_by_its_own_address() {
    with_cluster(|cluster| {
        let paths = Paths::set(cluster)?;
        paths.hold("native")?;
        paths.carry_much("native")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn nodes_of_one_subnet_are_reached_natively_and_others_by_the_overlay_with_the_same_addresses_seen() {
    with_cluster_of(Options::default().with_nodes(3).with_subnet("node3", 2), |cluster| {
        let paths = Paths::set(cluster)?;
        paths.hold("auto, node3 on another subnet")?;
        paths.carry_much("auto, node3 on another subnet")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn by_the_overlay_everywhere_every_end_reaches_every_other_and_is_seen_by_its_own_address() {
    with_cluster_of(Options::default().with_cni_arguments(&["--routing=vxlan"]), |cluster| {
        let paths = Paths::set(cluster)?;
        paths.hold("vxlan")?;
        paths.carry_much("vxlan")
    });
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn with_masquerading_switched_off_pods_leave_with_their_own_address() {
    with_cluster_of(Options::default().with_arguments(&["--masquerade=off"]), |cluster| {
        Paths::set(cluster)?.without_masquerade().hold("native, no masquerade")
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn without_the_agent_too_every_end_reaches_every_other_on_one_subnet() {
    with_cluster_of(Options { proxy: false, ..Options::default() }, |cluster| {
        let paths = Paths::set(cluster)?.without_masquerade();
        paths.hold("native, by the kernel alone")?;
        paths.carry_much("native, by the kernel alone")
    });
}
