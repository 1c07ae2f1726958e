//! The Service's part of the answer: which frontend, as what the client counts there, who is turned away, how a backend
//! is chosen, and why there is none.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use fairlead_abi::{FrontendKey, frontend_flags};
use fairlead_core::detail::ServiceDetail;
use fairlead_core::frontends::FrontendKind;
use fairlead_core::model::{Protocol, TrafficPolicy, frontend_key, socket_label};
use fairlead_core::view::{FrontendView, WithoutBackend};
use ipnet::IpNet;

use super::{Caller, Check, Dialled, HOST_PORT, ServiceStep};
use crate::agent::{Agent, lock};
use crate::dataplane::services::{self, FoundFrontend};
use crate::errors::chain;

/// How the frontend treats this client.
pub(super) fn step(agent: &Agent, dialled: &Dialled, caller: &Caller) -> ServiceStep {
    let Dialled { name, address, protocol, view } = dialled;
    let detail = lock(&agent.reconciler).detail(name).filter(|_| view.kind != FrontendKind::HostPort);
    // What a pod of another node dials is translated there, as from inside; only what stands on this node alone meets it
    // here, from outside.
    let of_node = matches!(view.kind, FrontendKind::NodePort | FrontendKind::HostPort);
    let is_inside = caller.is_inside || caller.is_elsewhere && !of_node;
    let backends = if is_inside { &view.internal } else { &view.external };
    let found = services::look_up(&agent.pins, &frontend_key(address.ip(), address.port(), *protocol));
    let client = caller.addresses.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4());
    let ranges = admitted_ranges(view, detail.as_ref(), address.ip());
    let admitted =
        ranges.is_empty() || client.is_some_and(|client| ranges.iter().any(|range| range.contains(&client)));
    ServiceStep {
        name: name.to_string(),
        frontend: format!("{address}/{protocol}"),
        kind: match view.kind {
            FrontendKind::ClusterIp => "ClusterIP",
            FrontendKind::NodePort => "NodePort",
            FrontendKind::LoadBalancer => "LoadBalancer",
            FrontendKind::ExternalIp => "externalIP",
            FrontendKind::HostPort => HOST_PORT,
        }
        .to_owned(),
        region: if is_inside { "inside" } else { "outside" }.to_owned(),
        traffic_policy: detail.as_ref().map(|detail| {
            let policy =
                if is_inside { detail.internal_traffic_policy } else { detail.external_traffic_policy };
            match policy {
                TrafficPolicy::Cluster => "Cluster",
                TrafficPolicy::Local => "Local",
            }
            .to_owned()
        }),
        backends: backends.clone(),
        choice: choice(agent, view, found.as_ref().ok().and_then(Option::as_ref), client, is_inside),
        admitted_ranges: ranges.iter().map(IpNet::to_string).collect(),
        admitted,
        masqueraded: !is_inside && !view.keep_source,
        absences: match (backends.is_empty(), &detail) {
            (true, Some(detail)) => absences(detail, address, *protocol, is_inside),
            _ => Vec::new(),
        },
        without_backend: match view.without_backend {
            WithoutBackend::Reject => "refused: the Service has no endpoint".to_owned(),
            WithoutBackend::Drop => "dropped: no endpoint that its traffic policy admits here".to_owned(),
        },
        maps: check(found.map_err(|e| chain(&e)), backends, is_inside),
    }
}

/// Which ranges may use the frontend; none: everybody.
fn admitted_ranges(view: &FrontendView, detail: Option<&ServiceDetail>, address: IpAddr) -> Vec<IpNet> {
    let ranges =
        detail.filter(|_| view.guarded).map(|detail| detail.source_ranges.clone()).unwrap_or_default();
    ranges.into_iter().filter(|range| range.addr().is_ipv4() == address.is_ipv4()).collect()
}

/// How one of the backends is chosen.
fn choice(
    agent: &Agent,
    view: &FrontendView,
    found: Option<&FoundFrontend>,
    client: Option<IpAddr>,
    is_inside: bool,
) -> String {
    let drawn = match found {
        Some(found) if !is_inside && found.frontend.maglev.len > 0 => {
            "by the hash of the client's address and port"
        }
        _ => "at random",
    };
    if view.affinity == 0 {
        return drawn.to_owned();
    }
    let kept = format!("a client keeps its backend for {} s (sessionAffinity)", view.affinity);
    let remembered = match (found, client) {
        (Some(found), Some(client)) => services::remembered(&agent.pins, found.frontend.service, client),
        _ => return format!("{drawn}; {kept}"),
    };
    match remembered {
        Ok(Some((backend, ago))) if ago < Duration::from_secs(view.affinity.into()) => {
            let backend = socket_label(backend.address.into(), backend.port.number());
            format!(
                "by what is remembered: this one has {backend}, last dialled {} s ago; {kept}",
                ago.as_secs()
            )
        }
        Ok(_) => format!("{drawn}, since this one has none yet; {kept}"),
        Err(e) => format!("{drawn}; {kept}; what it has can't be read: {}", chain(&e)),
    }
}

fn absences(
    detail: &ServiceDetail,
    address: &SocketAddr,
    protocol: Protocol,
    is_inside: bool,
) -> Vec<String> {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let clients = if is_inside { "inside" } else { "outside" };
    let dialled = socket_label(address.ip(), address.port());
    let is_meant = |port: &&fairlead_core::detail::PortDetail| {
        port.view.protocol == protocol
            && port.view.frontends.iter().any(|frontend| frontend.address == dialled)
    };
    let ports = detail.ports.iter().filter(is_meant).flat_map(|port| &port.absences);
    ports.filter(|text| text.starts_with(&format!("{family} clients {clients}"))).cloned().collect()
}

/// What the maps say of the same frontend and kind of client.
fn check(found: Result<Option<FoundFrontend>, String>, backends: &[String], is_inside: bool) -> Check {
    match found {
        Ok(Some(found)) => {
            let region = if is_inside { &found.internal } else { &found.external };
            let mut in_maps: Vec<String> = region
                .iter()
                .map(|backend| socket_label(backend.address.into(), backend.port.number()))
                .collect();
            in_maps.sort();
            let mut wanted = backends.to_vec();
            wanted.sort();
            let flags = match found.frontend.flags & frontend_flags::GUARDED {
                0 => "",
                _ => ", guarded",
            };
            let service = found.frontend.service;
            let found = format!("Service port {service}, {} backends{flags}", in_maps.len());
            Check { agrees: in_maps == wanted, found }
        }
        Ok(None) => Check { agrees: false, found: "no such frontend".to_owned() },
        Err(found) => Check { agrees: false, found },
    }
}

/// What becomes of a packet to a port that no frontend has, at an address where Services are: the verdict, and why.
pub(super) fn unclaimed(
    agent: &Agent,
    address: IpAddr,
    port: u16,
    protocol: Protocol,
) -> Option<(&'static str, String)> {
    let reconciler = lock(&agent.reconciler);
    if let Some(owner) = reconciler.frontend_owner(&FrontendKey::whole(address.into())) {
        return Some((
            "refused",
            format!("{owner} has the address, but no port {port}/{protocol} (unknown_port)"),
        ));
    }
    let range = reconciler.index().service_cidrs().into_iter().find(|range| range.contains(&address))?;
    Some((
        "dropped",
        format!("the address is in the ServiceCIDR {range}, and no Service has it (no_service)"),
    ))
}
