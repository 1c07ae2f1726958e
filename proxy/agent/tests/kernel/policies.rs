//! Policies: the kernel's maps of them, and how pods come under them, across agents.

use fairlead_abi::{CellKey, Isolation, RowKey, policies, rows, verdicts};
use fairlead_core::dataplane::{MapCause, MapError, PolicyMaps, RowPrefix};
use fairlead_core::model::Protocol;
use fairlead_proxy::dataplane::policies::{KernelPolicyMaps, Looked};
use fairlead_proxy::pace::Work;
use fairlead_proxy::pods::PodApi;
use fairlead_proxy::policy::{PATIENCE, Policies, PolicyLoop};
use fairlead_proxy::watch::{Change, PolicyUpdate};
use serde_json::{Value, from_value, json};

use super::*;

fn range(text: &str) -> RangeKey {
    text.parse::<ipnet::IpNet>().expect("a range").into()
}

#[test]
#[ignore = "needs root: run make test"]
fn the_maps_say_what_the_programs_would_find() {
    let room = Room::new();
    let mut maps = room.load().maps.policies;
    let row = rows::FIRST;
    maps.write_row(&RowPrefix::whole(row), verdicts::DENY_NETWORK).expect("written");
    maps.write_row(&RowPrefix::ports(row, Protocol::Tcp, 8080, 12), verdicts::ALLOW).expect("written");
    maps.write_default(2, verdicts::DENY_NETWORK).expect("written");
    maps.write_cell(&CellKey { policy: 2, identity: 7 }, row).expect("written");
    maps.write_peer(&range("10.0.0.0/8"), 7).expect("written");
    maps.write_peer(&range("10.1.0.0/16"), 8).expect("written");

    let verdict = |maps: &KernelPolicyMaps, peer: &str, protocol, port| {
        maps.look_up(2, address(peer), protocol, port).expect("read").verdict
    };
    assert_eq!(verdict(&maps, "10.0.0.1", protocol::TCP, 8095), verdicts::ALLOW);
    assert_eq!(verdict(&maps, "10.0.0.1", protocol::TCP, 8096), verdicts::DENY_NETWORK);
    assert_eq!(verdict(&maps, "10.0.0.1", protocol::UDP, 8080), verdicts::DENY_NETWORK);
    assert_eq!(verdict(&maps, "10.1.0.1", protocol::TCP, 8080), verdicts::DENY_NETWORK);
    let open = maps.look_up(policies::OPEN, address("fd00::1"), protocol::TCP, 1).expect("read");
    assert_eq!(open, Looked { identity: 0, row: verdicts::ALLOW, verdict: verdicts::ALLOW });

    maps.remove_peer(&range("10.1.0.0/16")).expect("removed");
    maps.remove_peer(&range("10.1.0.0/16")).expect("removed twice");
    assert_eq!(verdict(&maps, "10.1.0.1", protocol::TCP, 8080), verdicts::ALLOW);
    maps.remove_cell(&CellKey { policy: 2, identity: 7 }).expect("removed");
    assert_eq!(verdict(&maps, "10.0.0.1", protocol::TCP, 8080), verdicts::DENY_NETWORK);
    assert_eq!((maps.peers().expect("read").len(), maps.cells().expect("read").len()), (1, 0));
    let key = RowPrefix { key: RowKey { row, ..RowKey::default() }, prefix_len: rows::ROW_BITS };
    assert!(maps.rows().expect("read").contains(&(key, verdicts::DENY_NETWORK)));
}

#[test]
#[ignore = "needs root: run make test"]
fn a_map_that_is_full_says_so_with_its_size() {
    let room = Room::new();
    let mut maps = room.load().maps.policies;
    let full = |written: Result<(), MapError>| match written {
        Ok(()) => false,
        Err(MapError { cause: MapCause::Full(64), .. }) => true,
        Err(e) => panic!("{e}"),
    };
    let mut cells = (0..1000).map(|identity| maps.write_cell(&CellKey { policy: 2, identity }, 1));
    assert!(cells.any(&full), "cells");
    let mut peers = (0..250).map(|n| maps.write_peer(&range(&format!("10.0.{n}.1/32")), 1));
    assert!(peers.any(&full), "peers");
    let mut ports = (0..250).map(|port| maps.write_row(&RowPrefix::ports(9, Protocol::Tcp, port, 16), 1));
    assert!(ports.any(&full), "rows");
}

/// An agent's policies, fed by hand.
struct Fed {
    policies: Arc<Policies>,
    turn: PolicyLoop,
}

impl Fed {
    fn new(room: &Room) -> Self {
        let maps = room.load().maps;
        let policies = Arc::new(Policies::new("a", maps.policies, maps.drop_counts, false, Arc::default()));
        Self { turn: PolicyLoop(Arc::clone(&policies)), policies }
    }

    /// What an API says that holds these pods and policies of the namespace `default`.
    fn lists(&mut self, pods: &[Value], rules: &[Value]) {
        let space =
            json!({"metadata": {"name": "default", "labels": {"kubernetes.io/metadata.name": "default"}}});
        let mut updates =
            vec![PolicyUpdate::Namespace(Change::Found(from_value(space).expect("a Namespace")))];
        updates.extend(
            pods.iter().map(|pod| PolicyUpdate::Pod(Change::Found(from_value(pod.clone()).expect("a Pod")))),
        );
        updates.extend(rules.iter().map(|policy| {
            PolicyUpdate::NetworkPolicy(Change::Found(from_value(policy.clone()).expect("a NetworkPolicy")))
        }));
        updates.extend([
            PolicyUpdate::Pod(Change::Listed),
            PolicyUpdate::Namespace(Change::Listed),
            PolicyUpdate::NetworkPolicy(Change::Listed),
            PolicyUpdate::ClusterPolicy(Change::Listed),
            PolicyUpdate::Node(Change::Listed),
        ]);
        self.turn.take(updates.into_iter());
        self.turn.work(std::time::Instant::now());
    }
}

fn pod_object(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": name, "labels": {"app": name}},
        "spec": {"nodeName": "a", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn deny_all() -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "deny"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

fn pod_ref(name: &str) -> PodRef {
    PodRef { namespace: "default".into(), name: name.into(), uid: name.into() }
}

#[test]
#[ignore = "needs root: run make test"]
fn a_pod_comes_under_its_policies_when_it_is_admitted_and_not_before_they_are_known() {
    let room = Room::new();
    let mut fed = Fed::new(&room);
    let (mut guard, addresses) = (Arc::clone(&fed.policies), [address("10.0.0.1")]);
    let error = guard.admit(0, &pod_ref("web"), &addresses).expect_err("nothing is listed");
    assert!(error.contains("not been listed"), "{error}");
    fed.lists(&[pod_object("web", "10.0.0.1")], &[deny_all()]);
    let error = guard.admit(1, &pod_ref("other"), &addresses).expect_err("nobody knows it");
    assert!(error.contains("no such Pod"), "{error}");
    let other = PodRef { uid: "its successor".into(), ..pod_ref("web") };
    guard.admit(1, &other, &addresses).expect_err("another one of the same name");
    guard.admit(0, &pod_ref("web"), &addresses).expect("admitted");
    let maps = room.load().maps.policies;
    let isolation = maps.isolation(0).expect("read");
    assert!(isolation.ingress >= policies::FIRST && isolation.egress == policies::OPEN, "{isolation:?}");
    assert_eq!(maps.isolation(1).expect("read"), Isolation::default(), "what was refused stays closed");
    guard.release(0);
    assert_eq!(maps.isolation(0).expect("read"), Isolation::default(), "what is gone is closed");
}

#[test]
#[ignore = "needs root: run make test"]
fn the_next_agent_leaves_verdicts_as_they_are_until_it_knows_better() {
    let room = Room::new();
    let mut fed = Fed::new(&room);
    let addresses = [address("10.0.0.1")];
    fed.lists(&[pod_object("web", "10.0.0.1")], &[deny_all()]);
    Arc::clone(&fed.policies).admit(0, &pod_ref("web"), &addresses).expect("admitted");
    let (before, state) = {
        let maps = room.load().maps.policies;
        (maps.isolation(0).expect("read"), maps.state().expect("read"))
    };
    drop(fed);

    let mut fed = Fed::new(&room);
    Arc::clone(&fed.policies).restore(0, true, &pod_ref("web"), &addresses);
    fed.policies.adopt(Vec::new()).expect("adopted");
    fed.turn.work(std::time::Instant::now());
    let maps = room.load().maps.policies;
    assert_eq!(maps.isolation(0).expect("read"), before, "nothing is listed yet");
    fed.lists(&[pod_object("web", "10.0.0.1")], &[deny_all()]);
    assert_eq!(maps.isolation(0).expect("read"), before, "the same id again");
    assert_ne!(maps.state().expect("read").revision, state.revision, "flows are judged again");
    fed.lists(&[pod_object("web", "10.0.0.1")], &[]);
    assert_eq!(maps.isolation(0).expect("read"), before, "a list of nothing takes nothing back by itself");
    fed.turn.take(std::iter::once(PolicyUpdate::NetworkPolicy(Change::Delete(
        fairlead_core::model::ObjectName::new("default", "deny"),
    ))));
    fed.turn.work(std::time::Instant::now());
    let open = Isolation { ingress: policies::OPEN, egress: policies::OPEN };
    assert_eq!(maps.isolation(0).expect("read"), open);
}

/// A client of an API that knows of one Pod, and of nothing else.
async fn api_with(known: Value) -> PodApi {
    let path = "/api/v1/namespaces/{namespace}/pods/{name}";
    let answer = async move |axum::extract::Path((_, name)): axum::extract::Path<(String, String)>| {
        let status = |code: u16| axum::http::StatusCode::from_u16(code).expect("a code");
        match known["metadata"]["name"] == name.as_str() {
            true => (status(200), axum::Json(known.clone())),
            false => (status(404), axum::Json(json!({"kind": "Status", "code": 404, "reason": "NotFound"}))),
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let router = axum::Router::new().route(path, axum::routing::get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let config = kube::Config::new(format!("http://{address}").parse().expect("a URI"));
    PodApi::new(kube::Client::try_from(config).expect("a client"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs root: run make test"]
async fn a_pod_that_no_watch_has_brought_is_asked_for_and_one_that_nobody_knows_is_refused_in_time() {
    let room = Room::new();
    let mut fed = Fed::new(&room);
    fed.lists(&[], &[deny_all()]);
    let api = api_with(pod_object("late", "10.0.0.9")).await;
    let policies = Arc::clone(&fed.policies);
    let asked = tokio::task::spawn_blocking(move || {
        policies.await_pod(&pod_ref("late"), &api).expect("the API has it");
        Arc::clone(&policies).admit(0, &pod_ref("late"), &[address("10.0.0.9")]).expect("admitted");
        let started = std::time::Instant::now();
        let error = policies.await_pod(&pod_ref("nobody"), &api).expect_err("nobody has it");
        (error, started.elapsed())
    });
    let (error, took) = asked.await.expect("asked");
    assert!(error.contains("no such Pod"), "{error}");
    assert!(took < PATIENCE + Duration::from_secs(2), "{took:?}");
    let isolation = room.load().maps.policies.isolation(0).expect("read");
    assert!(isolation.ingress >= policies::FIRST, "{isolation:?}");
}
