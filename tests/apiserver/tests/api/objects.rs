//! Writes: conflicts, patches, deletion, and what the control plane does with Services, Pods, Nodes and Namespaces.

use std::collections::BTreeMap;

use crate::common::{eventually, object, refused, start};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

async fn apply<K>(api: &Api<K>, value: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &object(value)).await.unwrap()
}

/// A Node and a ready Pod on it.
async fn web_pod(client: &Client, name: &str, address: u8) -> Pod {
    let nodes: Api<Node> = Api::all(client.clone());
    if nodes.get_opt("n1").await.unwrap().is_none() {
        apply(&nodes, json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}}))
            .await;
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let container = json!({"name": "c", "ports": [{"name": "http", "containerPort": 8080}]});
    apply(
        &pods,
        json!({"metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n1", "containers": [container]}}),
    )
    .await;
    let (v4, v6) = (format!("10.244.0.{address}"), format!("fd00:10:244::{address:x}"));
    let status = json!({"status": {"phase": "Running", "podIP": v4, "podIPs": [{"ip": v4}, {"ip": v6}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap()
}

fn web_service() -> Value {
    json!({"metadata": {"name": "web"}, "spec": {"ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}]}})
}

/// The slices of the Service `web`: family to (address, port, ready, serving, terminating).
async fn slices(client: &Client) -> BTreeMap<String, Vec<(String, i32, bool, bool, bool)>> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let params = ListParams::default().labels("kubernetes.io/service-name=web");
    let mut found: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for slice in api.list(&params).await.unwrap() {
        let endpoints = found.entry(slice.address_type.clone()).or_default();
        let port = slice.ports.iter().flatten().find_map(|p| p.port).unwrap_or_default();
        for endpoint in serde_json::to_value(&slice).unwrap()["endpoints"].as_array().into_iter().flatten() {
            let condition = |name: &str| endpoint["conditions"][name] == true;
            endpoints.push((
                endpoint["addresses"][0].as_str().unwrap().to_owned(),
                port,
                condition("ready"),
                condition("serving"),
                condition("terminating"),
            ));
        }
    }
    found
}

#[tokio::test]
async fn slices_follow_a_pod_from_readiness_to_its_end_and_go_with_the_service() {
    let (_server, client) = start().await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    apply(&services, web_service()).await;
    eventually("empty slices of both families", async || {
        (slices(&client).await == BTreeMap::from([("IPv4".into(), vec![]), ("IPv6".into(), vec![])]))
            .then_some(())
    })
    .await;
    web_pod(&client, "p1", 2).await;
    let state = |ready, serving, terminating| {
        let endpoint = |ip: &str| vec![(ip.to_owned(), 8080, ready, serving, terminating)];
        BTreeMap::from([("IPv4".into(), endpoint("10.244.0.2")), ("IPv6".into(), endpoint("fd00:10:244::2"))])
    };
    let is = async |expected: BTreeMap<_, _>| {
        eventually("the slices", async || (slices(&client).await == expected).then_some(())).await;
    };
    is(state(true, true, false)).await;

    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let marked = pods.delete("p1", &DeleteParams::default().grace_period(5)).await.unwrap().left().unwrap();
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(5));
    is(state(false, true, true)).await;
    let gone = pods.delete("p1", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(gone.is_right());
    is(BTreeMap::from([("IPv4".into(), vec![]), ("IPv6".into(), vec![])])).await;

    let by_hand: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let labels = json!({"kubernetes.io/service-name": "web"});
    let endpoints = json!([{"addresses": ["192.0.2.1"]}]);
    apply(
        &by_hand,
        json!({"metadata": {"name": "by-hand", "labels": labels}, "addressType": "IPv4", "endpoints": endpoints}),
    )
    .await;
    services.delete("web", &DeleteParams::default()).await.unwrap();
    eventually("the controller's slices to go", async || {
        let left =
            by_hand.list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.unwrap();
        (left.items.len() == 1 && left.items[0].name_any() == "by-hand").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_unready_pod_is_listed_as_such_and_published_where_the_service_asks_for_it() {
    let (_server, client) = start().await;
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    apply(&services, web_service()).await;
    web_pod(&client, "p1", 2).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    pods.patch_status("p1", &PatchParams::default(), &Patch::Strategic(unready)).await.unwrap();
    let v4 = async |ready| {
        let expected = vec![("10.244.0.2".to_owned(), 8080, ready, false, false)];
        eventually("the slice", async || (slices(&client).await["IPv4"] == expected).then_some(())).await;
    };
    v4(false).await;
    let publish = Patch::Merge(json!({"spec": {"publishNotReadyAddresses": true}}));
    services.patch("web", &PatchParams::default(), &publish).await.unwrap();
    v4(true).await;
}

#[tokio::test]
async fn a_write_from_an_older_version_conflicts() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let mut first = apply(&api, json!({"metadata": {"generateName": "c-"}})).await;
    let name = first.name_any();
    assert!(name.len() == 7 && name.starts_with("c-"), "{name}");
    let patch = Patch::Json::<()>(
        serde_json::from_value(json!([{"op": "add", "path": "/data", "value": {"a": "1"}}])).unwrap(),
    );
    let second = api.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    assert_ne!(first.resource_version(), second.resource_version());
    let same =
        api.patch(&name, &PatchParams::default(), &Patch::Merge(json!({"data": {"a": "1"}}))).await.unwrap();
    assert_eq!(
        same.resource_version(),
        second.resource_version(),
        "a patch that changes nothing stores nothing"
    );

    first.data = Some(BTreeMap::from([("b".to_owned(), "2".to_owned())]));
    let (code, reason, _) = refused(api.replace(&name, &PostParams::default(), &first).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    let (code, reason, _) = refused(api.create(&PostParams::default(), &second).await);
    assert_eq!((code, reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(refused(api.get("absent").await).0, 404);
}

#[tokio::test]
async fn an_object_with_finalizers_stays_until_the_last_is_removed() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    apply(&api, json!({"metadata": {"name": "c", "finalizers": ["example.com/x"]}})).await;
    let marked = api.delete("c", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    api.get("c").await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    api.patch("c", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(refused(api.get("c").await).0, 404);
}

#[tokio::test]
async fn services_get_their_addresses_and_ports_and_keep_them_through_updates() {
    let (_server, client) = start().await;
    let api: Api<Service> = Api::namespaced(client, "default");
    let ports =
        json!([{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP", "nodePort": 30_053}]);
    let spec = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6"], "ports": ports});
    let made = apply(&api, json!({"metadata": {"name": "web"}, "spec": spec})).await.spec.unwrap();
    let addresses = made.cluster_ips.clone().unwrap();
    assert!(addresses[0].starts_with("fd00:10:96::") && addresses[1].starts_with("10.96."), "{addresses:?}");
    let node_ports: Vec<_> = made.ports.as_ref().unwrap().iter().map(|p| p.node_port.unwrap()).collect();
    assert!((30_000..=32_767).contains(&node_ports[0]) && node_ports[1] == 30_053, "{node_ports:?}");

    let spec = json!({"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ports":
        [{"name": "a", "port": 80}, {"name": "b", "port": 53, "protocol": "UDP"}], "selector": {"x": "y"}});
    let update = object(json!({"metadata": {"name": "web"}, "spec": spec}));
    let updated = api.replace("web", &PostParams::default(), &update).await.unwrap().spec.unwrap();
    assert_eq!(updated.cluster_ips, made.cluster_ips);
    let kept: Vec<_> = updated.ports.unwrap().iter().map(|p| p.node_port.unwrap()).collect();
    assert_eq!(kept, node_ports);

    let single = Patch::Merge(json!({"spec": {"type": "ClusterIP", "ipFamilyPolicy": "SingleStack",
        "ports": [{"name": "a", "port": 80}]}}));
    let single = api.patch("web", &PatchParams::default(), &single).await.unwrap().spec.unwrap();
    assert_eq!(single.cluster_ips.unwrap(), addresses[..1]);
    assert_eq!(single.ports.unwrap()[0].node_port, None);
    // What it gave up can be had by others.
    let other =
        json!({"clusterIP": addresses[1], "type": "NodePort", "ports": [{"port": 1, "nodePort": 30_053}]});
    apply(&api, json!({"metadata": {"name": "other"}, "spec": other})).await;
}

#[tokio::test]
async fn bad_services_are_refused_by_field() {
    let (_server, client) = start().await;
    let api: Api<Service> = Api::namespaced(client, "default");
    let taken =
        json!({"clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]});
    apply(&api, json!({"metadata": {"name": "taken"}, "spec": taken})).await;
    for (spec, field) in [
        (json!({"ports": [{"port": 70_000}]}), "spec.ports[0].port"),
        (json!({"ports": []}), "spec.ports"),
        (json!({"ports": [{"port": 80}, {"port": 81}]}), "spec.ports[0].name"),
        (json!({"ports": [{"port": 80, "nodePort": 30_000}]}), "spec.ports[0].nodePort"),
        (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}), "spec.ports[0].nodePort"),
        (json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_080}]}), "spec.ports[0].nodePort"),
        (json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}), "spec.clusterIPs[0]"),
        (json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]}), "spec.clusterIPs[0]"),
        (json!({"type": "Odd", "ports": [{"port": 80}]}), "spec.type"),
        (json!({"ipFamilies": ["IPv5"], "ports": [{"port": 80}]}), "spec.ipFamilies[0]"),
        (json!({"externalIPs": ["127.0.0.1"], "ports": [{"port": 80}]}), "spec.externalIPs[0]"),
    ] {
        let service = object(json!({"metadata": {"name": "bad"}, "spec": spec}));
        match api.create(&PostParams::default(), &service).await {
            Err(kube::Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{spec}");
                let causes = status.details.as_ref().unwrap().causes.clone();
                assert!(causes.iter().any(|c| c.field == field), "{spec}: {causes:?}");
            }
            other => panic!("{spec} was not refused: {other:?}"),
        }
    }
}

#[tokio::test]
async fn nodes_get_distinct_pod_ranges_of_both_families() {
    let (_server, client) = start().await;
    let api: Api<Node> = Api::all(client);
    let mut ranges = Vec::new();
    for name in ["n1", "n2"] {
        ranges.push(apply(&api, json!({"metadata": {"name": name}})).await.spec.unwrap().pod_cidrs.unwrap());
    }
    assert_eq!(ranges, [["10.244.0.0/24", "fd00:10:244::/64"], ["10.244.1.0/24", "fd00:10:244:1::/64"]]);
}

#[tokio::test]
async fn namespaces_must_exist_and_take_their_content_with_them() {
    let (_server, client) = start().await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "team");
    let map: ConfigMap = object(json!({"metadata": {"name": "c"}}));
    let (code, _, message) = refused(api.create(&PostParams::default(), &map).await);
    assert_eq!(code, 404);
    assert!(message.contains("namespaces \"team\" not found"), "{message}");
    let namespaces: Api<Namespace> = Api::all(client);
    apply(&namespaces, json!({"metadata": {"name": "team"}})).await;
    api.create(&PostParams::default(), &map).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the namespace to go", async || {
        namespaces.get_opt("team").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn server_side_apply_creates_merges_and_removes_its_own() {
    let (_server, client) = start().await;
    let api: Api<Service> = Api::namespaced(client, "default");
    let params = PatchParams::apply("me");
    let service = |ports: Value| {
        Patch::Apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"ports": ports}}))
    };
    let both =
        json!([{"name": "a", "port": 80, "protocol": "TCP"}, {"name": "b", "port": 81, "protocol": "TCP"}]);
    let made = api.patch("web", &params, &service(both)).await.unwrap();
    let one = json!([{"name": "b", "port": 81, "protocol": "TCP", "targetPort": 8081}]);
    let changed = api.patch("web", &params, &service(one)).await.unwrap();
    assert_eq!(changed.metadata.uid, made.metadata.uid);
    let ports = changed.spec.unwrap().ports.unwrap();
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].port, 81);
}
