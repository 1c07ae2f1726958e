//! The record of addresses, lost or damaged: what is in use stays in use.

use std::collections::BTreeSet;
use std::fs;

use crate::host::{Host, Pod};
use crate::traffic::{addresses, exchange};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// What may become of the ledger.
const DAMAGES: [Option<&str>; 4] = [None, Some(""), Some("{\"bootId\":"), Some("\0\0\0\0")];

fn damage(host: &Host, how: Option<&str>) {
    match how {
        None => fs::remove_file(host.ledger()).expect("remove the ledger"),
        Some(text) => fs::write(host.ledger(), text).expect("damage the ledger"),
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn no_address_in_use_is_given_again_when_the_ledger_is_lost() {
    for how in DAMAGES {
        let host = Host::new(&BOTH);
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let result = host.add(&pods[0]);
        host.add(&pods[1]);
        let before = host.addresses_in_use();
        damage(&host, how);
        let given = addresses(&host.add(&pods[2]));
        let given: BTreeSet<String> = given.iter().map(ToString::to_string).collect();
        assert!(given.is_disjoint(&before), "{how:?}: {given:?} after {before:?}");
        assert_eq!(host.addresses_in_use(), before.union(&given).cloned().collect());
        exchange(&pods[2].netns, &pods[0].netns, addresses(&result)[0]);

        // The pods that were there are known again.
        let mut conf = host.conf_without_agent();
        conf["prevResult"] = result;
        let answer = host.cni("CHECK", &pods[0], &conf);
        assert!(answer.success, "{how:?}: {:#}", answer.json);
        let kept = fs::read_dir(host.ledger().parent().expect("a directory")).expect("list").flatten();
        let kept = kept.filter(|entry| entry.file_name().to_string_lossy().contains("corrupt-")).count();
        assert_eq!(kept, usize::from(how.is_some()), "{how:?}");
        pods.iter().for_each(|pod| host.delete(pod));
        assert!(host.addresses_in_use().is_empty());
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn del_and_gc_remove_everything_also_when_the_ledger_is_lost() {
    for how in DAMAGES {
        let host = Host::new(&BOTH);
        let pods = [Pod::new(), Pod::new(), Pod::new()];
        let before = pods.each_ref().map(|pod| host.traces(pod));
        pods.iter().for_each(|pod| drop(host.add(pod)));
        damage(&host, how);
        host.delete(&pods[0]);
        damage(&host, how);
        host.delete(&pods[0]);
        damage(&host, how);
        let answer = host.collect(&host.conf_without_agent(), &[&pods[1]]);
        assert!(answer.success && answer.json.is_null(), "{:#}", answer.json);
        assert_eq!(host.addresses_in_use().len(), 2, "{how:?}: the valid one stays");
        host.delete(&pods[1]);
        assert_eq!(pods.each_ref().map(|pod| host.traces(pod)), before, "{how:?}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_changed_pod_cidr_leaves_pods_that_are_there_alone_and_serves_new_ones() {
    let host = Host::new(&["10.244.1.0/30"]);
    let pods = [Pod::new(), Pod::new(), Pod::new()];
    let old = addresses(&host.add(&pods[0]));
    host.add(&pods[1]);
    fs::write(host.node_file(), r#"{"podCIDRs":["10.244.9.0/31"]}"#).expect("write");
    let new = addresses(&host.add(&pods[2]));
    assert_eq!(new[0].to_string(), "10.244.9.0");
    exchange(&pods[2].netns, &pods[0].netns, old[0]);
    let last = Pod::new();
    assert_eq!(addresses(&host.add(&last))[0].to_string(), "10.244.9.1");
    let (code, message) = host.cni("ADD", &Pod::new(), &host.conf_without_agent()).error();
    assert_eq!((code, message.as_str()), (101, "no free address in 10.244.9.0/31: 2 in use"));
    pods.iter().chain([&last]).for_each(|pod| host.delete(pod));
    assert!(host.addresses_in_use().is_empty());
}
