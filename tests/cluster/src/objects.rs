//! Objects that tests apply beside plain Pods and Services: lines of a Service's spec, hand-made EndpointSlices.

use std::net::IpAddr;

use anyhow::Result;
use fairlead_harness::{Cluster, RunningPod};
use serde_json::Value;

use crate::{POD_PORT, SERVICE_PORT};

/// A dual-stack Service of that type without a selector, whose EndpointSlices are made by hand ([`slices`]).
pub fn service_without_selector(name: &str, kind: &str) -> String {
    crate::service(name, name, kind).replace(&format!("  selector: {{ app: {name} }}\n"), "")
}

/// EndpointSlices of a Service, one for each family, that lead to these pods on [`POD_PORT`]; beside each pod what
/// else is said of it, as in `conditions: { ready: false }`. `part` tells several pairs of a Service apart.
///
/// # Errors
/// When a pod has only one address.
pub fn slices(service: &str, part: &str, pods: &[(&RunningPod, &str)]) -> Result<String> {
    let endpoints = pods.iter().map(|(pod, more)| {
        let of = |like: IpAddr| Ok::<_, anyhow::Error>(endpoint(pod.address(like)?, &pod.node, more));
        Ok([of(crate::IPV4)?, of(crate::IPV6)?])
    });
    let endpoints: Vec<[String; 2]> = endpoints.collect::<Result<_>>()?;
    let [v4, v6] = [0, 1].map(|family| endpoints.iter().map(|of| of[family].as_str()).collect::<String>());
    Ok(slice(service, part, "IPv4", &v4) + &slice(service, part, "IPv6", &v6))
}

/// One endpoint of a [`slice`] on that node.
pub fn endpoint(address: IpAddr, node: &str, more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    format!("  - {{ addresses: [\"{address}\"], nodeName: {node}{more} }}\n")
}

/// An EndpointSlice of these endpoints on [`POD_PORT`].
pub fn slice(service: &str, part: &str, family: &str, endpoints: &str) -> String {
    let name = format!("{service}-{part}-{}", family.to_lowercase());
    let endpoints = if endpoints.is_empty() { " []\n".to_owned() } else { format!("\n{endpoints}") };
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{ name: {name}, labels: {{ kubernetes.io/service-name: {service} }} }}
addressType: {family}
ports:
  - {{ name: tcp, port: {POD_PORT}, protocol: TCP }}
  - {{ name: udp, port: {POD_PORT}, protocol: UDP }}
  - {{ name: sctp, port: {POD_PORT}, protocol: SCTP }}
endpoints:{endpoints}"
    )
}

/// Merges JSON into an object, as in `patch(cluster, "service/echo", json!({ "spec": { … } }))`.
///
/// # Errors
/// When the API server refuses.
pub fn patch(cluster: &Cluster, object: &str, change: &Value) -> Result<()> {
    cluster.kubectl(&["patch", object, "--type=merge", "-p", &change.to_string()]).map(drop)
}

/// An object's spec as the API has it now, with all that it was given: addresses and node ports, say.
///
/// # Errors
/// When there is no such object.
pub fn spec_of(cluster: &Cluster, object: &str) -> Result<Value> {
    let object: Value = serde_json::from_str(&cluster.kubectl(&["get", object, "-o", "json"])?)?;
    Ok(object["spec"].clone())
}

/// Takes a pod out of every Service of its app at once, while it goes on running.
///
/// # Errors
/// When the API server refuses.
pub fn retire(cluster: &Cluster, pod: &str) -> Result<()> {
    cluster.kubectl(&["label", "pod", pod, "app=retired", "--overwrite"]).map(drop)
}

/// A line for a Service's spec, to stand behind what [`crate::service`] gives.
pub fn spec(line: &str) -> String {
    format!("  {line}\n")
}

/// The Service's frontends [`SERVICE_PORT`] at these addresses, by each protocol.
pub fn at(addresses: &[IpAddr]) -> Vec<(fairlead_harness::Protocol, std::net::SocketAddr)> {
    crate::variants(addresses, SERVICE_PORT)
}

/// externalIPs for a Service's spec: those of [`crate::scene::EXTERNAL`].
pub fn external_ips() -> String {
    let [v4, v6] = crate::scene::EXTERNAL;
    spec(&format!("externalIPs: [\"{v4}\", \"{v6}\"]"))
}
