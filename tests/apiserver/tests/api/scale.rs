//! Sizes and speeds that the tests of a data plane need: the server must not be what they wait for.

use std::time::{Duration, Instant};

use fairlead_apiserver::{ENDPOINT_SLICES, SERVICES, Selector, Server, Target};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::common::{eventually, next, object, start};

const SERVICES_OF_A_LARGE_CLUSTER: usize = 10_000;
const ENDPOINTS_OF_EACH: usize = 10;

#[tokio::test]
async fn ten_thousand_services_are_allocated_sliced_and_listed() {
    let (server, client) = start().await;
    for i in 0..SERVICES_OF_A_LARGE_CLUSTER {
        let service = json!({"metadata": {"name": format!("s{i}")}, "spec": {
            "ipFamilyPolicy": "PreferDualStack", "selector": {"app": format!("s{i}")}, "ports": [{"port": 80}]}});
        server.cluster().create(&SERVICES, "default", service, false).unwrap();
        if i % 1000 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let listed = Api::<Service>::all(client).list(&ListParams::default()).await.unwrap();
    assert_eq!(listed.items.len(), SERVICES_OF_A_LARGE_CLUSTER + 1);
    let addresses: std::collections::BTreeSet<_> =
        listed.iter().flat_map(|s| s.spec.clone().unwrap().cluster_ips.unwrap()).collect();
    assert_eq!(addresses.len(), 2 * SERVICES_OF_A_LARGE_CLUSTER + 1);
    eventually("a slice per Service and family", async || {
        (count(&server, &ENDPOINT_SLICES) == 2 * SERVICES_OF_A_LARGE_CLUSTER + 1).then_some(())
    })
    .await;
}

/// The bounds are those that tests with real processes can live with, wide enough for a busy machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_endpoints_are_written_in_seconds_and_listed_in_one() {
    let (_server, client) = start().await;
    let begin = Instant::now();
    let services = (0..SERVICES_OF_A_LARGE_CLUSTER).map(|i| {
        object::<Service>(json!({"metadata": {"name": format!("s{i}")}, "spec": {"ports": [{"port": 80}]}}))
    });
    create_all(&client, services).await;
    create_all(&client, (0..SERVICES_OF_A_LARGE_CLUSTER).map(|i| slice(i, ENDPOINTS_OF_EACH))).await;
    let written = begin.elapsed();
    let begin = Instant::now();
    let request = http::Request::get("/apis/discovery.k8s.io/v1/endpointslices").body(Vec::new()).unwrap();
    let text = client.request_text(request).await.unwrap();
    let listed = begin.elapsed();
    println!("written in {written:?}, {} MiB listed in {listed:?}", text.len() >> 20);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), SERVICES_OF_A_LARGE_CLUSTER + 1);
    assert!(written < Duration::from_secs(60), "written in {written:?}");
    assert!(listed < Duration::from_secs(5), "listed in {listed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_changes_a_second_reach_every_watch_at_once() {
    const WATCHES: usize = 10;
    const CHANGES: usize = 3000;
    let (_server, client) = start().await;
    create_all(&client, (0..200).map(|i| slice(i, ENDPOINTS_OF_EACH))).await;
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let now = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let watches = (0..WATCHES).map(|_| {
        let (api, now) = (api.clone(), now.clone());
        tokio::spawn(async move {
            let mut stream = api.watch(&WatchParams::default(), &now).await.unwrap().boxed();
            let mut late: Vec<Duration> = Vec::new();
            while late.len() < CHANGES {
                let Ok(WatchEvent::Modified(slice)) = next(&mut stream).await else { continue };
                let sent: u128 = slice.annotations()["sent"].parse().unwrap();
                late.push(Duration::from_nanos((since_epoch() - sent) as u64));
            }
            late.sort_unstable();
            late[CHANGES / 2]
        })
    });
    let watches: Vec<_> = watches.collect();
    let begin = Instant::now();
    let change = async |i: usize| {
        tokio::time::sleep_until((begin + Duration::from_millis(i as u64)).into()).await;
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"sent": since_epoch().to_string()}}}));
        api.patch(&format!("s{}", i % 200), &PatchParams::default(), &patch).await.unwrap();
    };
    stream::iter((0..CHANGES).map(change)).buffer_unordered(16).collect::<Vec<()>>().await;
    let took = begin.elapsed();
    for watch in watches {
        let median = watch.await.unwrap();
        println!("{CHANGES} changes in {took:?}, median from write to event {median:?}");
        assert!(median < Duration::from_millis(100), "{median:?} from write to event");
    }
    assert!(took < Duration::from_secs(12), "{CHANGES} changes took {took:?}");
}

#[tokio::test]
async fn one_pod_among_thousands_changes_one_service_at_once() {
    let (server, client) = start().await;
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&PostParams::default(), &object(json!({"metadata": {"name": "n1"}}))).await.unwrap();
    for i in 0..2000 {
        let service = json!({"metadata": {"name": format!("s{i}")}, "spec": {
            "selector": {"app": format!("a{i}")}, "ports": [{"port": 80}]}});
        server.cluster().create(&SERVICES, "default", service, false).unwrap();
    }
    let pods: Api<Pod> = Api::namespaced(client, "default");
    for i in 0..2000 {
        let pod = json!({"metadata": {"name": format!("p{i}"), "labels": {"app": format!("a{i}")}},
            "spec": {"nodeName": "n1", "containers": []}});
        server.cluster().create(&fairlead_apiserver::PODS, "default", pod, false).unwrap();
        if i % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let ready = |i: usize, ready: bool| {
        let status = if ready { "True" } else { "False" };
        Patch::Merge(json!({"status": {"podIPs": [{"ip": format!("10.244.{}.{}", i / 250, i % 250 + 1)}],
            "conditions": [{"type": "Ready", "status": status}]}}))
    };
    let slice_of = |i: usize| {
        let selector = Selector::parse(&format!("kubernetes.io/service-name=s{i}"), "").unwrap();
        let (_, slices) = server.cluster().list(&ENDPOINT_SLICES, Some("default"), &selector);
        slices.into_iter().next()
    };
    let shows = |i: usize, ready: bool| {
        slice_of(i).is_some_and(|s| s.value["endpoints"][0]["conditions"]["ready"] == ready)
    };
    let mut late = Vec::new();
    for i in [7, 700, 1700] {
        for wanted in [true, false, true] {
            pods.patch_status(&format!("p{i}"), &PatchParams::default(), &ready(i, wanted)).await.unwrap();
            let begin = Instant::now();
            while !shows(i, wanted) {
                assert!(begin.elapsed() < crate::common::PATIENCE, "s{i} does not follow its pod");
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
            late.push(begin.elapsed());
        }
    }
    late.sort_unstable();
    println!("from a pod's change to its slice's: {late:?}");
    assert!(late[late.len() / 2] < Duration::from_millis(100), "{late:?}");
    let target = Target::new(&ENDPOINT_SLICES, "default", slice_of(7).unwrap().name());
    assert!(server.cluster().get(&target).is_ok());
}

fn since_epoch() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

fn count(server: &Server, resource: &fairlead_apiserver::Resource) -> usize {
    server.cluster().list(resource, None, &Selector::default()).1.len()
}

fn slice(number: usize, endpoints: usize) -> EndpointSlice {
    let address = |i: usize| format!("10.{}.{}.{}", i >> 16 & 255, i >> 8 & 255, i & 255);
    let endpoints: Vec<Value> = (number * endpoints..(number + 1) * endpoints)
        .map(|i| json!({"addresses": [address(i)], "conditions": {"ready": true}, "nodeName": "n1", "zone": "z1"}))
        .collect();
    object(json!({
        "metadata": {"name": format!("s{number}"), "labels": {"kubernetes.io/service-name": format!("s{number}")}},
        "addressType": "IPv4", "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints}))
}

async fn create_all<K>(client: &Client, objects: impl Iterator<Item = K>)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let (api, how) = (Api::<K>::namespaced(client.clone(), "default"), PostParams::default());
    let create = async |object: K| api.create(&how, &object).await.map(drop);
    let created = stream::iter(objects.map(create)).buffer_unordered(32).try_collect::<()>();
    created.await.unwrap();
}
