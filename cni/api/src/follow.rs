//! Following which servers there are: the EndpointSlices of the Service `default/kubernetes`, which the servers keep
//! themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use fairlead_daemon::repeated::Repeated;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};

use crate::servers::Servers;

/// The label of a slice that names its Service, and the Service's name.
const SELECTOR: &str = "kubernetes.io/service-name=kubernetes";
/// The name of the port, if there is more than one.
const PORT: &str = "https";

/// Has `servers` learn which there are, for ever.
pub(crate) async fn follow(client: Client, servers: &Servers) {
    let slices = Api::<EndpointSlice>::namespaced(client, "default");
    let config = watcher::Config::default().labels(SELECTOR);
    let mut events = std::pin::pin!(watcher(slices, config).default_backoff());
    let (mut known, repeated) = (BTreeMap::new(), Repeated::default());
    let mut listing = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listing.clear(),
            Ok(Event::InitApply(slice)) => {
                listing.insert(slice.name_any(), addresses(&slice));
                continue;
            }
            Ok(Event::InitDone) => known = std::mem::take(&mut listing),
            Ok(Event::Apply(slice)) => {
                known.insert(slice.name_any(), addresses(&slice));
            }
            Ok(Event::Delete(slice)) => {
                known.remove(&slice.name_any());
            }
            Err(error) => {
                repeated.warn(&format!("watch the EndpointSlices of default/kubernetes: {error}"));
                continue;
            }
        }
        servers.learn(known.values().flatten().copied().collect());
    }
}

/// Where the servers of a slice listen: those that are ready, as they are if nothing is said (EndpointConditions).
fn addresses(slice: &EndpointSlice) -> Vec<SocketAddr> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT));
    let Some(port) = named.or(ports.first()).and_then(|port| u16::try_from(port.port?).ok()) else {
        return Vec::new();
    };
    let is_ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
        endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
    };
    let endpoints = slice.endpoints.iter().flatten().filter(is_ready);
    let ips = endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok());
    ips.map(|ip: IpAddr| SocketAddr::new(ip, port)).collect()
}
