//! ADD as a transaction: whatever stops it, and wherever, nothing is left after the runtime's DEL, or after GC alone.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fairlead_net::agent::{Reply, Request};
use fairlead_net::attachment::Attachment;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::agent::{FakeAgent, Mood};
use crate::host::{BINARY, Host, Pod};
use crate::runtime::output;
use crate::steps::{Progress, Traced};
use crate::traffic::{addresses, exchange};

const BOTH: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

/// Starts an ADD and gives it its configuration.
fn start_add(host: &Host, pod: &Pod, conf: &Value) -> Child {
    let mut command: Command = host.command(BINARY, "ADD", pod);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = host.netns.enter(&mut command).spawn().expect("start the plugin");
    child.stdin.take().expect("stdin").write_all(conf.to_string().as_bytes()).expect("write");
    child
}

/// Cleans up as a runtime does that knows of the ADD, or as one that has forgotten it.
fn clean(host: &Host, pod: &Pod, by_del: bool) {
    let answer = if by_del { host.cni("DEL", pod, &host.conf()) } else { host.collect(&host.conf(), &[]) };
    assert!(answer.success, "{:#}", answer.json);
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_killed_at_any_moment_leaves_nothing_after_del_or_gc() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let begin = Instant::now();
    host.cni("ADD", &pod, &host.conf()).result();
    let whole = begin.elapsed();
    assert!(host.cni("DEL", &pod, &host.conf()).success);
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").subsec_nanos();
    eprintln!("seed {seed}, an ADD takes {whole:?}");
    // A multiplicative generator: its upper half is random enough for delays.
    let mut state = u64::from(seed) | 1;
    for run in 0..120 {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d);
        let delay = whole.mul_f64((state >> 32) as f64 / f64::from(u32::MAX));
        let mut child = start_add(&host, &pod, &host.conf());
        thread::sleep(delay);
        child.kill().expect("kill");
        child.wait().expect("wait");
        clean(&host, &pod, run % 2 == 0);
        assert_eq!(host.traces(&pod), before, "run {run}, killed after {delay:?}");
        assert!(agent.endpoints().is_empty(), "run {run}, killed after {delay:?}");
    }
    let files = fs::read_dir(host.dir.path().join("data/pods")).expect("data directory").count();
    assert!(files <= 3, "temporary files do not pile up: {files}");
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_killed_before_any_of_its_steps_leaves_nothing_after_del_or_gc() {
    let host = Host::new(&BOTH);
    let agent = host.agent(Mood::Willing);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let conf = host.conf().to_string();
    for steps in 0.. {
        let mut command = host.command(BINARY, "ADD", &pod);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = host.netns.enter(&mut command).spawn().expect("start the plugin");
        let mut traced = Traced::seize(child);
        traced.child().stdin.take().expect("stdin").write_all(conf.as_bytes()).expect("write");
        let progress = traced.run(steps);
        traced.kill();
        clean(&host, &pod, steps % 2 == 0);
        assert_eq!(host.traces(&pod), before, "killed before step {steps}");
        assert!(agent.endpoints().is_empty(), "killed before step {steps}");
        if progress == Progress::Ended {
            eprintln!("an ADD takes {steps} steps");
            assert!(steps > 40, "it takes more than {steps}");
            return;
        }
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_killed_while_the_agent_is_asked_or_just_after_leaves_nothing() {
    for (answers, by_del) in [(false, true), (false, false), (true, true), (true, false)] {
        let host = Host::new(&BOTH);
        let pod = Pod::new();
        let before = host.traces(&pod);
        let agent = FakeAgent::listen_with(&host.socket(), &host.netns, move |request, asker| {
            if !matches!(request, Request::AddEndpoint(_)) {
                return Some(Reply::Ok(Value::Null));
            }
            if answers {
                thread::spawn(move || {
                    thread::sleep(Duration::from_micros(500));
                    kill(asker, Signal::SIGKILL)
                });
                return Some(Reply::Ok(Value::Null));
            }
            kill(asker, Signal::SIGKILL).expect("kill");
            None
        });
        for _ in 0..5 {
            // It may have got through, where it was answered.
            start_add(&host, &pod, &host.conf()).wait().expect("wait");
            assert_eq!(agent.endpoints().len(), 1, "it had told the agent");
            clean(&host, &pod, by_del);
            assert_eq!(host.traces(&pod), before);
            assert!(agent.endpoints().is_empty());
        }
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_that_meets_an_obstacle_at_any_step_says_which_and_leaves_nothing() {
    let name = |pod: &Pod| Attachment::new(&pod.id, "eth0").expect("valid").host_ifname();
    type Obstacle = fn(&Host, &Pod, &str);
    let cases: [(Obstacle, u64, &str); 7] = [
        (
            |host, _, _| fs::write(host.dir.path().join("data"), "a file").expect("write"),
            5,
            "addresses in use: write ",
        ),
        (
            |host, _, name| {
                output(&host.netns, &["ip", "link", "add", name, "type", "veth", "peer", "name", "x0"]);
            },
            100,
            "exists already on the host",
        ),
        (
            |_, pod, _| {
                output(&pod.netns, &["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x0"]);
            },
            100,
            "interface eth0 exists already in the pod",
        ),
        (
            |_, pod, _| drop(output(&pod.netns, &["ip", "route", "add", "default", "dev", "lo"])),
            5,
            "eth0: add route 0.0.0.0/0 via 169.254.1.1: File exists",
        ),
        (
            |_, pod, _| drop(output(&pod.netns, &["ip", "-6", "route", "add", "default", "dev", "lo"])),
            5,
            "eth0: add route ::/0 via fe80::1: File exists",
        ),
        (
            |host, _, _| drop(output(&host.netns, &["ip", "route", "add", "10.244.1.1/32", "dev", "lo"])),
            5,
            ": add route 10.244.1.1/32: File exists",
        ),
        (
            |host, _, _| {
                output(&host.netns, &["ip", "-6", "route", "add", "fd00:10:244:1::1/128", "dev", "lo"]);
            },
            5,
            ": add route fd00:10:244:1::1/128: File exists",
        ),
    ];
    for (obstacle, code, expected) in cases {
        let host = Host::new(&BOTH);
        let agent = host.agent(Mood::Willing);
        let pod = Pod::new();
        obstacle(&host, &pod, &name(&pod));
        let before = host.traces(&pod);
        let (got, message) = host.cni("ADD", &pod, &host.conf()).error();
        assert_eq!(got, code, "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(host.traces(&pod), before, "{message}");
        assert!(agent.endpoints().is_empty(), "{message}");
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_whose_commit_fails_leaves_nothing() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let obstacle = host.dir.path().join("data/pods/.ledger.json.new");
    let place = obstacle.clone();
    let agent = FakeAgent::listen_with(&host.socket(), &host.netns, move |request, _| {
        if matches!(request, Request::AddEndpoint(_)) {
            fs::create_dir(&place).expect("an obstacle");
        }
        Some(Reply::Ok(Value::Null))
    });
    let (code, message) = host.cni("ADD", &pod, &host.conf()).error();
    assert_eq!(code, 5);
    assert!(message.starts_with("addresses in use: write "), "{message}");
    // The addresses stay reserved, since that can't be taken back either; nothing else is left.
    let [in_use, kernel @ ..] = host.traces(&pod);
    assert_eq!((in_use.len(), kernel.as_slice()), (2, &before[1..]));
    assert!(agent.endpoints().is_empty());
    fs::remove_dir(&obstacle).expect("remove the obstacle");
    clean(&host, &pod, true);
    assert_eq!(host.traces(&pod), before);
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_that_is_overtaken_by_its_del_fails_and_leaves_nothing() {
    let host = std::sync::Arc::new(Host::new(&BOTH));
    let pod = std::sync::Arc::new(Pod::new());
    let before = host.traces(&pod);
    let (there, its) = (std::sync::Arc::clone(&host), std::sync::Arc::clone(&pod));
    let agent = FakeAgent::listen_with(&host.socket(), &host.netns, move |request, _| {
        if matches!(request, Request::AddEndpoint(_)) {
            there.delete(&its);
        }
        Some(Reply::Ok(Value::Null))
    });
    let (code, message) = host.cni("ADD", &pod, &host.conf()).error();
    assert!(matches!(code, 3 | 5), "{code}: {message}");
    assert_eq!(host.traces(&pod), before);
    assert!(agent.endpoints().is_empty());
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_whose_answer_nobody_hears_is_cleaned_up_by_its_del() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    let mut command = host.command(BINARY, "ADD", &pod);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = host.netns.enter(&mut command).spawn().expect("start the plugin");
    drop(child.stdout.take());
    let conf = host.conf_without_agent().to_string();
    child.stdin.take().expect("stdin").write_all(conf.as_bytes()).expect("write");
    assert!(!child.wait().expect("wait").success());
    host.delete(&pod);
    assert_eq!(host.traces(&pod), before);
}

#[test]
#[ignore = "needs root: run make test"]
fn an_add_after_one_that_was_killed_takes_over_what_it_left() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let first = addresses(&host.add(&pod));
    // As if it had been killed after wiring, before its commit.
    let text = fs::read_to_string(host.ledger()).expect("ledger");
    fs::write(host.ledger(), text.replace("\"committed\":true", "\"committed\":false")).expect("write");
    assert_eq!(addresses(&host.add(&pod)), first);
    assert_eq!(host.addresses_in_use().len(), 2);
    host.delete(&pod);
}

#[test]
#[ignore = "needs root: run make test"]
fn fifty_parallel_adds_get_different_addresses_and_fifty_parallel_dels_leave_nothing() {
    let host = Host::new(&BOTH);
    let witness = Pod::new();
    let before = host.traces(&witness);
    let pods: Vec<Pod> = (0..50).map(|_| Pod::new()).collect();
    let given: Vec<Vec<IpAddr>> = thread::scope(|scope| {
        let adds: Vec<_> = pods.iter().map(|pod| scope.spawn(|| addresses(&host.add(pod)))).collect();
        adds.into_iter().map(|add| add.join().expect("ADD")).collect()
    });
    let distinct: BTreeSet<&IpAddr> = given.iter().flatten().collect();
    assert_eq!(distinct.len(), 100);
    for (n, pod) in pods.iter().enumerate().skip(1) {
        exchange(&pods[n - 1].netns, &pod.netns, given[n][n % 2]);
    }
    // Others come while these go.
    let late: Vec<Pod> = (0..10).map(|_| Pod::new()).collect();
    thread::scope(|scope| {
        pods.iter().for_each(|pod| drop(scope.spawn(|| host.delete(pod))));
        late.iter().for_each(|pod| drop(scope.spawn(|| drop(host.add(pod)))));
    });
    assert_eq!(host.addresses_in_use().len(), 20);
    thread::scope(|scope| late.iter().for_each(|pod| drop(scope.spawn(|| host.delete(pod)))));
    assert_eq!(host.traces(&witness), before);
}

#[test]
#[ignore = "needs root: run make test"]
fn del_goes_on_without_an_agent_that_hangs_and_whatever_else_the_configuration_says() {
    let host = Host::new(&BOTH);
    let pod = Pod::new();
    let before = host.traces(&pod);
    host.add(&pod);
    let _hanging = UnixListener::bind(host.socket()).expect("bind");
    let mut conf = host.conf();
    conf["runtimeConfig"] = json!({"portMappings": "none", "bandwidth": {"ingressRate": 1}});
    conf["prevResult"] = json!("garbage");
    for _ in 0..2 {
        assert!(host.cni("DEL", &pod, &conf).success);
        assert_eq!(host.traces(&pod), before);
    }
}
