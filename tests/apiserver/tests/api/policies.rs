//! NetworkPolicies and ClusterNetworkPolicies: what is filled in, what is refused, and by which field.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fairlead_apiserver::ALL;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::common::{next, object, refused, start};
use crate::faults::order;

fn cluster_policies(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("policy.networking.k8s.io", "v1alpha2", "ClusterNetworkPolicy");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "clusternetworkpolicies"))
}

/// A policy of the Admin tier for all pods, with a rule each way.
fn cluster_policy(name: &str) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 10, "subject": {"namespaces": {}},
            "ingress": [{"name": "in", "action": "Deny", "from": [{"namespaces": {"matchLabels": {"a": "b"}}}],
                "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}],
            "egress": [{"action": "Accept", "to": [{"networks": ["192.0.2.0/24", "2001:db8::/32"]}]}]}})
}

/// Asserts that a creation is refused as invalid because of `field`.
#[track_caller]
fn assert_invalid<T: std::fmt::Debug>(result: kube::Result<T>, field: &str, what: &Value) {
    match result {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{what}");
            let causes = status.details.as_ref().unwrap().causes.clone();
            assert!(causes.iter().any(|cause| cause.field == field), "{what}: {causes:?}");
        }
        other => panic!("{what} was not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_policy_gets_its_types_protocols_and_generation() {
    let (_server, client) = start().await;
    let api: Api<NetworkPolicy> = Api::namespaced(client, "default");
    let make = async |name: &str, spec: Value| {
        let policy = object(json!({"metadata": {"name": name}, "spec": spec}));
        api.create(&PostParams::default(), &policy).await.unwrap().spec.unwrap()
    };
    let both = make("both", json!({"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]})).await;
    assert_eq!(both.policy_types.unwrap(), ["Ingress", "Egress"]);
    assert_eq!(both.egress.unwrap()[0].ports.as_ref().unwrap()[0].protocol.as_deref(), Some("TCP"));
    let closed = make("closed", json!({"podSelector": {}, "egress": []})).await;
    assert_eq!(closed.policy_types.unwrap(), ["Ingress"]);

    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    let labelled = api.patch("closed", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(labelled.metadata.generation, Some(1));
    let patch = Patch::Merge(json!({"spec": {"policyTypes": ["Egress"]}}));
    let changed = api.patch("closed", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
}

#[tokio::test]
async fn bad_policies_are_refused_by_field() {
    let (_server, client) = start().await;
    let api: Api<NetworkPolicy> = Api::namespaced(client, "default");
    let port = |port: Value| json!({"podSelector": {}, "ingress": [{"ports": [port]}]});
    let peer = |peer: Value| json!({"podSelector": {}, "egress": [{"to": [{"podSelector": {}}, peer]}]});
    let (of_port, of_peer) = ("spec.ingress[0].ports[0]", "spec.egress[0].to[1]");
    let block = |cidr: &str, except: &str| peer(json!({"ipBlock": {"cidr": cidr, "except": [except]}}));
    let requirement = |r: Value| json!({"podSelector": {"matchExpressions": [r]}});
    let of_requirement = "spec.podSelector.matchExpressions[0]";
    for (spec, field) in [
        (port(json!({"port": 81, "endPort": 80})), format!("{of_port}.endPort")),
        (port(json!({"port": "http", "endPort": 80})), format!("{of_port}.endPort")),
        (port(json!({"endPort": 80})), format!("{of_port}.endPort")),
        (port(json!({"port": 80, "endPort": 65_536})), format!("{of_port}.endPort")),
        (port(json!({"port": 0})), format!("{of_port}.port")),
        (port(json!({"port": "not_a_name"})), format!("{of_port}.port")),
        (port(json!({"port": 80, "protocol": "ICMP"})), format!("{of_port}.protocol")),
        (peer(json!({})), of_peer.to_owned()),
        (peer(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})), of_peer.to_owned()),
        (peer(json!({"ipBlock": {"cidr": ""}})), format!("{of_peer}.ipBlock.cidr")),
        (peer(json!({"ipBlock": {"cidr": "10.0.0.0"}})), format!("{of_peer}.ipBlock.cidr")),
        (block("10.0.0.0/8", "11.0.0.0/16"), format!("{of_peer}.ipBlock.except[0]")),
        (block("10.0.0.0/8", "10.0.0.0/8"), format!("{of_peer}.ipBlock.except[0]")),
        (block("10.0.0.0/8", "fd00::/64"), format!("{of_peer}.ipBlock.except[0]")),
        (block("10.0.0.0/8", "x"), format!("{of_peer}.ipBlock.except[0]")),
        (requirement(json!({"key": "a", "operator": "Near"})), format!("{of_requirement}.operator")),
        (requirement(json!({"key": "a", "operator": "In"})), format!("{of_requirement}.values")),
        (
            requirement(json!({"key": "a", "operator": "Exists", "values": ["b"]})),
            format!("{of_requirement}.values"),
        ),
        (requirement(json!({"key": "", "operator": "Exists"})), format!("{of_requirement}.key")),
        (json!({"podSelector": {"matchLabels": {"a": "b c"}}}), "spec.podSelector.matchLabels".to_owned()),
        (json!({"podSelector": {}, "policyTypes": ["Both"]}), "spec.policyTypes[0]".to_owned()),
    ] {
        let policy = object(json!({"metadata": {"name": "bad"}, "spec": spec}));
        assert_invalid(api.create(&PostParams::default(), &policy).await, &field, &spec);
    }
    let good = peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.3.4/32"]}}));
    let policy = object(json!({"metadata": {"name": "good"}, "spec": good}));
    api.create(&PostParams::default(), &policy).await.unwrap();
}

#[tokio::test]
async fn cluster_policies_are_written_watched_and_given_a_status() {
    let (_server, client) = start().await;
    let api = cluster_policies(&client);
    let now = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut told = api.watch(&WatchParams::default(), &now).await.unwrap().boxed();
    let apply = PatchParams::apply("me");
    let made = api.patch("one", &apply, &Patch::Apply(cluster_policy("one"))).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert!(matches!(next(&mut told).await, Ok(WatchEvent::Added(policy)) if policy.name_any() == "one"));

    let mut less = cluster_policy("one");
    less["spec"]["egress"][0]["to"][0]["networks"] = json!(["192.0.2.0/24"]);
    let less = api.patch("one", &apply, &Patch::Apply(less)).await.unwrap();
    assert_eq!(less.data["spec"]["egress"][0]["to"][0]["networks"], json!(["192.0.2.0/24"]));
    assert_eq!(less.metadata.generation, Some(2));

    let condition = json!({"type": "Programmed", "status": "True", "reason": "Done", "message": "",
        "lastTransitionTime": "2026-01-31T12:00:00Z"});
    let status = Patch::Merge(json!({"status": {"conditions": [condition]}}));
    let reported = api.patch_status("one", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(reported.data["status"]["conditions"][0]["reason"], "Done");
    assert_eq!(reported.metadata.generation, Some(2));
    let mut vague = condition.clone();
    vague["reason"] = json!("");
    let vague = Patch::Merge(json!({"status": {"conditions": [vague]}}));
    let vague = api.patch_status("one", &PatchParams::default(), &vague).await;
    assert_invalid(vague, "status.conditions[0].reason", &condition);

    // No strategic merge for what is no built-in kind.
    let strategic = Patch::Strategic(json!({"spec": {"priority": 11}}));
    assert_eq!(refused(api.patch("one", &PatchParams::default(), &strategic).await).0, 415);
    api.delete("one", &DeleteParams::default()).await.unwrap();
    assert_eq!(refused(api.get("one").await).0, 404);
}

#[tokio::test]
async fn bad_cluster_policies_are_refused_by_field() {
    let (_server, client) = start().await;
    let api = cluster_policies(&client);
    let rules = |count: usize| vec![cluster_policy("")["spec"]["egress"][0].clone(); count];
    let (tcp, to) = ("/spec/ingress/0/protocols/0/tcp", "/spec/egress/0/to/0");
    let mut named = rules(1)[0].clone();
    named["protocols"] = json!([{"destinationNamedPort": "http"}]);
    let range = json!({"destinationPort": {"range": {"start": 90, "end": 80}}});
    for (at, value, field) in [
        ("/spec/tier", json!("NetworkPolicy"), "spec.tier"),
        ("/spec/tier", Value::Null, "spec.tier"),
        ("/spec/priority", json!(1001), "spec.priority"),
        ("/spec/priority", json!(-1), "spec.priority"),
        ("/spec/priority", json!("10"), "spec.priority"),
        ("/spec/subject", json!({}), "spec.subject"),
        ("/spec/subject", json!({"namespaces": {}, "pods": {"podSelector": {}}}), "spec.subject"),
        ("/spec/subject", json!({"pods": {"namespaceSelector": {}}}), "spec.subject.pods.podSelector"),
        ("/spec/egress", json!(rules(26)), "spec.egress"),
        ("/spec/egress/0/to", json!([]), "spec.egress[0].to"),
        ("/spec/egress/0/action", json!("Allow"), "spec.egress[0].action"),
        ("/spec/egress/0", named, "spec.egress[0]"),
        ("/spec/ingress/0/name", json!("n".repeat(101)), "spec.ingress[0].name"),
        (
            "/spec/ingress/0/from/0",
            json!({"namespaces": {}, "pods": {"podSelector": {}}}),
            "spec.ingress[0].from[0]",
        ),
        (tcp, json!({}), "spec.ingress[0].protocols[0].tcp"),
        (
            tcp,
            json!({"destinationPort": {"number": 0}}),
            "spec.ingress[0].protocols[0].tcp.destinationPort.number",
        ),
        (tcp, range, "spec.ingress[0].protocols[0].tcp.destinationPort.range"),
        (to, json!({}), "spec.egress[0].to[0]"),
        (to, json!({"networks": ["10.0.0.0/33"]}), "spec.egress[0].to[0].networks[0]"),
        (to, json!({"networks": ["::/0", "::/0"]}), "spec.egress[0].to[0].networks[1]"),
        (to, json!({"domainNames": ["a..b"]}), "spec.egress[0].to[0].domainNames[0]"),
    ] {
        let mut policy = cluster_policy("bad");
        *policy.pointer_mut(at).unwrap() = value.clone();
        assert_invalid(api.create(&PostParams::default(), &object(policy)).await, field, &value);
    }
    // What a later version may add is kept as it is.
    let mut later = cluster_policy("later");
    later["spec"]["egress"][0]["to"][0] = json!({"services": {"matchLabels": {}}});
    let kept = api.create(&PostParams::default(), &object(later.clone())).await.unwrap();
    assert_eq!(kept.data["spec"], later["spec"]);
}

#[tokio::test]
async fn where_nobody_defined_it_the_kind_is_unknown() {
    let (server, client) = start().await;
    let api = cluster_policies(&client);
    api.create(&PostParams::default(), &object(cluster_policy("one"))).await.unwrap();
    let groups = async || {
        let groups = client.list_api_groups().await.unwrap().groups;
        groups.into_iter().map(|group| group.name).collect::<Vec<_>>()
    };
    assert!(groups().await.contains(&"policy.networking.k8s.io".to_owned()));
    order(&server, "POST", "undefine").await;
    assert_eq!(refused(api.list(&ListParams::default()).await).0, 404);
    assert!(!groups().await.contains(&"policy.networking.k8s.io".to_owned()));
    order(&server, "DELETE", "undefine").await;
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn namespaces_carry_their_name_as_a_label_that_nobody_can_take_away() {
    let (_server, client) = start().await;
    let api: Api<Namespace> = Api::all(client);
    let team = object(json!({"metadata": {"name": "team", "labels": {"tier": "front"}}}));
    api.create(&PostParams::default(), &team).await.unwrap();
    let patch =
        Patch::Merge(json!({"metadata": {"labels": {"kubernetes.io/metadata.name": null, "tier": null}}}));
    api.patch("team", &PatchParams::default(), &patch).await.unwrap();
    let found = api.list(&ListParams::default().labels("kubernetes.io/metadata.name=team")).await.unwrap();
    assert_eq!(found.items[0].labels().len(), 1);
    let bad = object(json!({"metadata": {"name": "bad", "labels": {"tier": "front row"}}}));
    assert_invalid(api.create(&PostParams::default(), &bad).await, "metadata.labels", &json!(null));
}

#[tokio::test]
async fn the_first_of_a_pods_addresses_is_in_both_fields() {
    let (_server, client) = start().await;
    let api: Api<Pod> = Api::namespaced(client, "default");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    api.create(&PostParams::default(), &object(pod)).await.unwrap();
    let write = async |status: Value| {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status("p", &PatchParams::default(), &patch).await.unwrap().status.unwrap()
    };
    let alone = write(json!({"podIP": "10.244.0.2"})).await;
    assert_eq!(alone.pod_ips.unwrap()[0].ip, "10.244.0.2");
    let both = write(json!({"podIPs": [{"ip": "10.244.0.3"}, {"ip": "fd00::3"}]})).await;
    assert_eq!(both.pod_ip.as_deref(), Some("10.244.0.3"));
}

#[tokio::test]
async fn bad_ports_of_pods_are_refused_by_field() {
    let (_server, client) = start().await;
    let api: Api<Pod> = Api::namespaced(client, "default");
    for (port, field) in [
        (json!({"containerPort": 0}), "containerPort"),
        (json!({"containerPort": 80, "name": "a-name-of-16-char"}), "name"),
        (json!({"containerPort": 80, "name": "8080"}), "name"),
        (json!({"containerPort": 80, "name": "web"}), "name"),
        (json!({"containerPort": 80, "protocol": "ICMP"}), "protocol"),
    ] {
        let ports = json!([{"containerPort": 8080, "name": "web"}, port]);
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "ports": ports}]}});
        let made = api.create(&PostParams::default(), &object(pod)).await;
        assert_invalid(made, &format!("spec.containers[0].ports[1].{field}"), &port);
    }
}

#[tokio::test]
async fn the_example_manifests_are_accepted() {
    let (_server, client) = start().await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests/examples");
    let mut texts: Vec<_> = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path()).collect();
    // Namespaces before what is in them.
    texts.sort_by_key(|path| !path.ends_with("network-policies.yaml"));
    let mut accepted = BTreeSet::new();
    for path in texts {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(&path).unwrap()).unwrap();
        for document in documents {
            let kind = document["kind"].as_str().unwrap().to_owned();
            let resource = ALL.into_iter().find(|resource| resource.kind == kind).unwrap();
            let gvk = GroupVersionKind::gvk(resource.group, resource.version, resource.kind);
            let as_named = ApiResource::from_gvk_with_plural(&gvk, resource.plural);
            let api: Api<DynamicObject> = if resource.namespaced {
                let namespace = document["metadata"]["namespace"].as_str().unwrap_or("default");
                Api::namespaced_with(client.clone(), namespace, &as_named)
            } else {
                Api::all_with(client.clone(), &as_named)
            };
            let made = api.create(&PostParams::default(), &object(document)).await;
            made.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            accepted.insert(kind);
        }
    }
    for kind in ["NetworkPolicy", "ClusterNetworkPolicy", "Service"] {
        assert!(accepted.contains(kind), "{accepted:?}");
    }
}
