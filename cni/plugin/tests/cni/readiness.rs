//! What `fairlead-cni node` says of the node in the API, and what it keeps on the node.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{FakeApi, node};
use crate::host::{Host, Pod};
use crate::sites::{Daemon, eventually, eventually_within, log, uplink};

/// The condition NetworkUnavailable of the node under test: status and reason.
fn condition(api: &FakeApi) -> Option<(String, String)> {
    let node = api.objects.node("a");
    let conditions = node["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == "NetworkUnavailable")?;
    let text = |field: &str| found[field].as_str().expect("text").to_owned();
    Some((text("status"), text("reason")))
}

fn is(status: &str, reason: &str) -> Option<(String, String)> {
    Some((status.into(), reason.into()))
}

#[test]
#[ignore = "needs root: run make test"]
fn the_node_is_said_to_be_ready_once_it_is_and_that_is_written_once() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let mut own = node("a", &[], &["192.0.2.1"]);
    own["status"]["conditions"] = json!([{"type": "Ready", "status": "True", "reason": "KubeletReady"}]);
    let api = FakeApi::serve(&host.netns, &[own]);
    let daemon = Daemon::start(&host, &api);
    eventually("the reason", || condition(&api) == is("True", "NoPodCIDRs"));
    assert!(!host.dir.path().join("conf/10-fairlead.conflist").exists());

    let mut own = api.objects.node("a");
    own["spec"] = json!({"podCIDRs": ["10.244.1.0/24"]});
    api.send("MODIFIED", &own);
    eventually("the good news", || condition(&api) == is("False", "FairleadIsUp"));
    assert!(host.dir.path().join("conf/10-fairlead.conflist").exists());
    let conditions = api.objects.node("a")["status"]["conditions"].as_array().expect("conditions").len();
    assert_eq!(conditions, 2, "the kubelet's own is still there");

    // Nor after a restart, nor because another node comes.
    let written = api.objects.patches().len();
    daemon.stop();
    let _daemon = Daemon::start(&host, &api);
    api.send("ADDED", &node("b", &["10.244.2.0/24"], &["192.0.2.2"]));
    eventually("a further pass", || log(&host).contains("route 10.244.2.0/24"));
    sleep(Duration::from_millis(300));
    assert_eq!(api.objects.patches().len(), written);
}

#[test]
#[ignore = "needs root: run make test"]
fn what_can_not_be_installed_makes_the_node_unavailable_and_the_rest_goes_on() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    // A file where the directory has to be.
    fs::write(host.dir.path().join("bin"), "").expect("write");
    let own = node("a", &["10.244.1.0/24"], &["192.0.2.1"]);
    let api = FakeApi::serve(&host.netns, &[own, node("b", &["10.244.2.0/24"], &["192.0.2.2"])]);
    let _daemon = Daemon::start(&host, &api);
    eventually("the reason", || condition(&api) == is("True", "NotInstalled"));
    assert!(log(&host).contains("route 10.244.2.0/24"));
    fs::remove_file(host.dir.path().join("bin")).expect("make room");
    eventually("the good news", || condition(&api) == is("False", "FairleadIsUp"));
}

#[test]
#[ignore = "needs root: run make test"]
fn a_setting_that_can_not_be_made_is_named_and_the_rest_goes_on() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let switch_off = || fs::write("/proc/sys/net/ipv4/ip_forward", "0");
    host.netns.run(switch_off).expect("enter").expect("switch off");
    let own = node("a", &["10.244.1.0/24"], &["192.0.2.1"]);
    let api = FakeApi::serve(&host.netns, &[own, node("b", &["10.244.2.0/24"], &["192.0.2.2"])]);
    let _daemon = Daemon::start_confined(&host, &api);
    eventually("the reason", || condition(&api) == is("True", "SettingsNotMade"));
    let said = "sysctl net/ipv4/ip_forward is 0, and can't be set to 1, which forwarding between pods and other \
                nodes needs: Read-only file system";
    assert!(log(&host).contains(said), "{}", log(&host));
    assert!(log(&host).contains("route 10.244.2.0/24"));
    assert!(host.dir.path().join("conf/10-fairlead.conflist").exists());
}

#[test]
#[ignore = "needs root: run make test"]
fn what_is_removed_or_changed_on_the_node_is_put_back() {
    let host = Host::new(&["10.0.0.0/8"]);
    let outside = Pod::new();
    let _uplink = uplink(&host, &outside);
    let conf = host.dir.path().join("conf");
    fs::create_dir_all(&conf).expect("create");
    fs::write(conf.join("05-other.conflist"), "{}").expect("write");
    let api = FakeApi::serve(&host.netns, &[node("a", &["10.244.1.0/24"], &["192.0.2.1"])]);
    let _daemon = Daemon::start(&host, &api);
    let conflist = conf.join("10-fairlead.conflist");
    let plugin = host.dir.path().join("bin/fairlead-cni");
    eventually("the conflist", || conflist.exists());
    eventually("the warning", || log(&host).contains("05-other.conflist"));
    let installed = fs::read(&conflist).expect("read");

    fs::write(&conflist, "somebody else's").expect("write");
    fs::remove_file(&plugin).expect("remove");
    let forward = "/proc/sys/net/ipv4/ip_forward";
    host.netns.run(|| fs::write(forward, "0")).expect("enter").expect("switch off");
    // Sooner than the daemon looks again by itself.
    eventually_within(Duration::from_secs(5), "all of it", || {
        let forwards = host.netns.run(|| fs::read_to_string(forward)).expect("enter").expect("read");
        fs::read(&conflist).is_ok_and(|now| now == installed) && plugin.exists() && forwards.trim() == "1"
    });
    let file: Value = serde_json::from_slice(&fs::read(host.node_file()).expect("read")).expect("JSON");
    assert_eq!(file["podCIDRs"], json!(["10.244.1.0/24"]));
}
