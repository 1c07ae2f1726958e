//! What Services go through: types that change, slices by hand, hints, ranges of addresses, a load balancer's status.

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::common::{eventually, next, object, refused, start};

fn services(client: &Client) -> Api<Service> {
    Api::namespaced(client.clone(), "default")
}

async fn create<K>(api: &Api<K>, value: Value) -> K
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &object(value)).await.unwrap()
}

async fn merge(api: &Api<Service>, patch: Value) -> Value {
    let patched = api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    serde_json::to_value(patched.spec.unwrap()).unwrap()
}

#[tokio::test]
async fn a_service_gets_and_gives_up_what_its_type_needs() {
    let (_server, client) = start().await;
    let api = services(&client);
    create(&api, json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})).await;
    let of_type = |kind: &str| json!({"spec": {"type": kind}});
    let first = merge(&api, of_type("NodePort")).await;
    let (address, port) = (first["clusterIP"].clone(), first["ports"][0]["nodePort"].clone());
    assert!(address.is_string() && port.is_u64(), "{first}");
    assert_eq!(first["externalTrafficPolicy"], "Cluster");

    let balanced = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}});
    let balanced = merge(&api, balanced).await;
    assert_eq!((&balanced["clusterIP"], &balanced["ports"][0]["nodePort"]), (&address, &port), "kept");
    let health = balanced["healthCheckNodePort"].clone();
    assert!(health.is_u64() && health != port, "{balanced}");

    let inside = merge(&api, of_type("ClusterIP")).await;
    assert_eq!(inside["clusterIP"], address);
    for gone in
        [&inside["ports"][0]["nodePort"], &inside["healthCheckNodePort"], &inside["externalTrafficPolicy"]]
    {
        assert_eq!(*gone, Value::Null, "{inside}");
    }
    // Both ports can be had by others now.
    let other = json!({"type": "NodePort", "ports": [
        {"name": "a", "port": 1, "nodePort": port}, {"name": "b", "port": 2, "nodePort": health}]});
    create(&api, json!({"metadata": {"name": "other"}, "spec": other})).await;

    let named = merge(&api, json!({"spec": {"type": "ExternalName", "externalName": "example.com"}})).await;
    assert_eq!(named["clusterIP"], Value::Null, "{named}");
    create(
        &api,
        json!({"metadata": {"name": "heir"}, "spec": {"clusterIP": address, "ports": [{"port": 1}]}}),
    )
    .await;
    let back = merge(&api, json!({"spec": {"type": "ClusterIP", "externalName": null}})).await;
    assert!(back["clusterIP"].is_string() && back["clusterIP"] != address, "{back}");
}

#[tokio::test]
async fn a_service_without_selector_has_the_slices_that_are_made_by_hand() {
    let (_server, client) = start().await;
    let api = services(&client);
    create(&api, json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}})).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client, "default");
    let labels = json!({"kubernetes.io/service-name": "web"});
    let by_hand = json!({"metadata": {"name": "mine", "labels": labels}, "addressType": "IPv4",
        "ports": [{"port": 80}], "endpoints": [{"addresses": ["192.0.2.7"], "hints": {"forZones": [{"name": "a"}]}}]});
    let made = create(&slices, by_hand).await;
    merge(&api, json!({"metadata": {"labels": {"any": "change"}}})).await;
    let listed = slices.list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.unwrap();
    assert_eq!(listed.items, [made]);
}

#[tokio::test]
async fn hints_follow_the_wish_of_the_service_and_the_zone_of_the_node() {
    let (_server, client) = start().await;
    let nodes: Api<Node> = Api::all(client.clone());
    let labels = json!({"topology.kubernetes.io/zone": "a"});
    create(&nodes, json!({"metadata": {"name": "n1", "labels": labels}})).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    create(&pods, json!({"metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {"nodeName": "n1", "containers": []}}))
        .await;
    let status = json!({"status": {"podIPs": [{"ip": "10.244.0.9"}], "conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("p", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let api = services(&client);
    let spec =
        json!({"selector": {"app": "web"}, "ports": [{"port": 80}], "trafficDistribution": "PreferSameNode"});
    create(&api, json!({"metadata": {"name": "web"}, "spec": spec})).await;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let has = async |hints: Value| {
        eventually(&format!("hints {hints}"), async || {
            let listed =
                slices.list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.unwrap();
            let slice = serde_json::to_value(listed.items.first()?).unwrap();
            (slice["endpoints"][0]["hints"] == hints).then_some(())
        })
        .await;
    };
    let zone = |name: &str| json!([{"name": name}]);
    has(json!({"forZones": zone("a"), "forNodes": zone("n1")})).await;
    let moved = Patch::Merge(json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "b"}}}));
    nodes.patch("n1", &PatchParams::default(), &moved).await.unwrap();
    has(json!({"forZones": zone("b"), "forNodes": zone("n1")})).await;
    merge(&api, json!({"spec": {"trafficDistribution": "PreferSameZone"}})).await;
    has(json!({"forZones": zone("b")})).await;
    merge(&api, json!({"spec": {"trafficDistribution": null}})).await;
    has(Value::Null).await;
}

#[tokio::test]
async fn service_cidrs_are_followed_and_give_addresses_as_long_as_they_are_there() {
    let (_server, client) = start().await;
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    let listed = ranges.list(&ListParams::default()).await.unwrap();
    let own = listed.items[0].spec.clone().unwrap().cidrs.unwrap();
    assert_eq!((listed.items[0].name_any().as_str(), own.len()), ("kubernetes", 2));
    let now = listed.metadata.resource_version.unwrap();
    let mut watch = ranges.watch(&WatchParams::default(), &now).await.unwrap().boxed();
    let api = services(&client);
    let service = |name: &str, address: &str| {
        object::<Service>(
            json!({"metadata": {"name": name}, "spec": {"clusterIP": address, "ports": [{"port": 80}]}}),
        )
    };
    assert_eq!(refused(api.create(&PostParams::default(), &service("a", "10.112.0.9")).await).0, 422);
    create(&ranges, json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.112.0.0/24"]}})).await;
    let added = next(&mut watch).await.unwrap();
    assert!(matches!(&added, WatchEvent::Added(cidr) if cidr.name_any() == "more"), "{added:?}");
    api.create(&PostParams::default(), &service("a", "10.112.0.9")).await.unwrap();
    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    assert!(matches!(next(&mut watch).await, Ok(WatchEvent::Deleted(_))));
    assert_eq!(refused(api.create(&PostParams::default(), &service("b", "10.112.0.10")).await).0, 422);
    for bad in [json!([]), json!(["10.112.0.1/24"]), json!(["10.112.0.0/24", "10.113.0.0/24"])] {
        let cidr = object(json!({"metadata": {"name": "bad"}, "spec": {"cidrs": bad}}));
        assert_eq!(refused(ranges.create(&PostParams::default(), &cidr).await).0, 422, "{bad}");
    }
}

#[tokio::test]
async fn a_load_balancers_status_is_written_whole_or_in_part() {
    let (_server, client) = start().await;
    let api = services(&client);
    let made = create(
        &api,
        json!({"metadata": {"name": "web"}, "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}),
    )
    .await;
    let ingress =
        |mode: &str| json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": mode}]}}});
    let patch = Patch::Merge(ingress("Proxy"));
    let patched = api.patch_status("web", &PatchParams::default(), &patch).await.unwrap();
    let mode = |service: &Service| {
        serde_json::to_value(service).unwrap()["status"]["loadBalancer"]["ingress"][0]["ipMode"].clone()
    };
    assert_eq!(mode(&patched), "Proxy");
    let mut whole = serde_json::to_value(&patched).unwrap();
    whole["status"] = ingress("VIP")["status"].clone();
    whole["spec"]["ports"][0]["port"] = json!(81);
    let put = api.replace_status("web", &PostParams::default(), &object(whole)).await.unwrap();
    assert_eq!(mode(&put), "VIP");
    assert_eq!(put.spec, made.spec, "the spec is none of the status's business");
}

#[tokio::test]
async fn a_watch_of_a_nodes_pods_sees_them_come_and_go() {
    let (_server, client) = start().await;
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let now = pods.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut watch =
        pods.watch(&WatchParams::default().fields("spec.nodeName=n1"), &now).await.unwrap().boxed();
    for (name, node) in [("a", "n2"), ("b", "n1")] {
        create(&pods, json!({"metadata": {"name": name}, "spec": {"nodeName": node, "containers": []}}))
            .await;
    }
    assert!(matches!(next(&mut watch).await, Ok(WatchEvent::Added(pod)) if pod.name_any() == "b"));
    pods.delete("b", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert!(matches!(next(&mut watch).await, Ok(WatchEvent::Deleted(pod)) if pod.name_any() == "b"));
}
