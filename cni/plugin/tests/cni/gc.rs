//! GC by the runtime's list, and by the daemon.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread::sleep;
use std::time::Duration;

use fairlead_net::attachment::Attachment;
use serde_json::{Value, json};

use crate::agent::Mood;
use crate::api::{FakeApi, node};
use crate::host::{Host, Pod};
use crate::runtime::output;
use crate::sites::{Daemon, eventually};
use crate::traffic::{addresses, exchange};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

#[test]
#[ignore = "needs root: run make test"]
fn what_the_runtime_still_lists_stays_and_everything_else_goes() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let (valid, peer, stale) = (Pod::new(), Pod::new(), Pod::new());
    let nothing = host.traces(&stale);
    let conf = host.conf();
    let kept = host.cni("ADD", &valid, &conf).result();
    host.cni("ADD", &peer, &conf).result();
    let before = host.traces(&stale);
    host.cni("ADD", &stale, &conf).result();
    assert!(host.collect(&conf, &[&valid, &peer]).success);
    assert_eq!(host.traces(&stale), before);
    assert_eq!(agent.endpoints(), [valid.id.clone(), peer.id.clone()].into());
    exchange(&peer.netns, &valid.netns, addresses(&kept)[0]);
    // An empty list removes everything, and then there is nothing to do.
    for _ in 0..2 {
        assert!(host.collect(&conf, &[]).success);
        assert_eq!(host.traces(&stale), nothing);
        assert!(agent.endpoints().is_empty());
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn gc_without_a_list_or_with_a_bad_one_removes_nothing() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    host.add(&pod);
    let before = host.traces(&pod);
    let conf = host.conf_without_agent();
    let with = |list: Value| {
        let mut conf = conf.clone();
        conf["cni.dev/valid-attachments"] = list;
        conf
    };
    for (conf, problem) in [
        (conf.clone(), ": is missing"),
        (with(Value::Null), ": is missing"),
        (with(json!("all")), ": is no list"),
        (with(json!([{"containerID": "x"}])), "[0]: missing field `ifname`"),
    ] {
        let (code, message) = host.cni("GC", &pod, &conf).error();
        assert_eq!((code, message), (7, format!("cni.dev/valid-attachments{problem}")));
        assert_eq!(host.traces(&pod), before);
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn gc_works_without_the_agent_and_after_the_namespaces_have_gone() {
    let host = Host::new(&BOTH);
    let witness = Pod::new();
    let before = host.traces(&witness);
    {
        let _agent = host.agent(Mood::Willing);
        for _ in 0..3 {
            host.cni("ADD", &Pod::new(), &host.conf()).result();
        }
    }
    assert_eq!(host.addresses_in_use().len(), 6);
    // It listens and does not answer: that is waited for once.
    let hanging = UnixListener::bind(host.socket()).expect("bind");
    assert!(host.collect(&host.conf(), &[]).success);
    assert_eq!(host.traces(&witness), before);
    drop(hanging);
}

#[test]
#[ignore = "needs root: run make test"]
fn gc_names_what_it_could_not_remove_and_removes_the_rest() {
    let host = Host::new(&BOTH);
    let pods = [Pod::new(), Pod::new()];
    pods.iter().for_each(|pod| drop(host.add(pod)));
    // The ledger can't be written: a directory is where its new content would be.
    let obstacle = host.ledger().with_file_name(".ledger.json.new");
    fs::create_dir(&obstacle).expect("an obstacle");
    let answer = host.collect(&host.conf_without_agent(), &[]);
    let details = answer.json["details"].as_str().expect("details").to_owned();
    assert_eq!(answer.error(), (5, "2 of 2 stale attachments are left".into()));
    for pod in &pods {
        assert!(details.contains(&format!("{}/eth0: addresses in use: write", pod.id)), "{details}");
        // The pairs, at least, are gone.
        let gone = pod.netns.run(|| nix::net::if_::if_nametoindex("eth0").is_err());
        assert!(gone.expect("enter"));
    }
    fs::remove_dir(&obstacle).expect("remove the obstacle");
    assert!(host.collect(&host.conf_without_agent(), &[]).success);
    assert!(host.addresses_in_use().is_empty());
}

#[test]
#[ignore = "needs root: run make test"]
fn the_daemon_takes_no_pod_for_garbage_because_its_record_is_lost() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    host.add(&pod);
    let before = host.traces(&pod);
    fs::remove_dir_all(host.dir.path().join("data")).expect("lose the record");
    let api = FakeApi::serve(&host.netns, &[node("a", &[], &["192.0.2.1"])]);
    let daemon = Daemon::start_as("a", &host, &api, &["--sweep-seconds", "1"]);
    eventually("the record is made anew", || !host.addresses_in_use().is_empty());
    sleep(Duration::from_millis(3500));
    let [in_use, _, pods] = host.traces(&pod);
    assert_eq!((in_use, pods), (before[0].clone(), before[2].clone()));
    daemon.stop();
}

#[test]
#[ignore = "needs root: run make test"]
fn the_daemon_removes_what_nobody_knows_any_more_and_nothing_else() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let (alive, vanished, unrecorded) = (Pod::new(), Pod::new(), Pod::new());
    let api = FakeApi::serve(&host.netns, &[node("a", &[], &["192.0.2.1"])]);
    let ifname = |pod: &Pod| Attachment::new(&pod.id, "eth0").expect("valid").host_ifname();
    for pod in [&alive, &vanished, &unrecorded] {
        host.cni("ADD", pod, &host.conf()).result();
    }
    // Named like ours, and somebody else's.
    let foreign = "fl0123456789a";
    output(&host.netns, &["ip", "link", "add", foreign, "type", "veth", "peer", "name", "peer0"]);
    // A namespace that went without DEL, and a record that was lost.
    output(&host.netns, &["ip", "link", "del", &ifname(&vanished)]);
    let mut ledger: Value = serde_json::from_slice(&fs::read(host.ledger()).expect("read")).expect("JSON");
    let leases = ledger["leases"].as_object_mut().expect("leases");
    leases.remove(&format!("{}/eth0", unrecorded.id)).expect("its lease");
    fs::write(host.ledger(), ledger.to_string()).expect("write");

    let socket = host.socket().to_string_lossy().into_owned();
    let daemon = Daemon::start_as("a", &host, &api, &["--agent-socket", &socket, "--sweep-seconds", "1"]);
    let only_alive = [alive.id.clone()].into();
    eventually("the others are gone", || agent.endpoints() == only_alive);
    sleep(Duration::from_millis(2500));
    assert_eq!(host.addresses_in_use().len(), 2);
    let links = output(&host.netns, &["ip", "-o", "link"]);
    assert!(links.contains(&ifname(&alive)) && links.contains(foreign), "{links}");
    assert!(!links.contains(&ifname(&unrecorded)), "{links}");
    daemon.stop();
}
