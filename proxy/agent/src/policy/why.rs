//! `fairlead-proxy why`: what becomes of a packet, and by which objects and rules.
//!
//! The answer comes from the code that fills the maps: [`fairlead_core::frontends`] for the choice of a backend,
//! [`fairlead_core::policy`] for what passes. Then the maps are read for the same packet, as far as they are this node's
//! to judge, and what they say is put beside it: a difference is a fault of Fairlead's, or a change under way.

mod services;

use std::net::{IpAddr, SocketAddr};

use fairlead_abi::{policies, verdicts};
use fairlead_core::dataplane::PolicyMaps as _;
use fairlead_core::model::{ObjectName, Protocol};
use fairlead_core::policy::{Direction, Explanation, Party, PartyView, Side};
use fairlead_core::view::{FrontendView, WithoutBackend};
use fairlead_net::agent::{Question, Registration};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Policies;
use crate::agent::{Agent, lock};
use crate::dataplane::egress;
use crate::errors::chain;

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// Who sends, as in `Pod shop/web`.
    pub from: String,
    /// What is dialled, as in `Service shop/api 10.96.0.10:80/tcp`.
    pub to: String,
    /// The Service's part, if it is to one.
    pub service: Option<ServiceStep>,
    /// What policies say: for each backend that may be chosen, or for the destination.
    pub paths: Vec<Path>,
    /// What else there is to know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The node's address, if the packet leaves the cluster with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_as: Option<IpAddr>,
    /// "allowed", "denied", "refused", "dropped", or "allowed to some backends".
    pub verdict: String,
}

/// How the address of a port of the node that leads to a pod came about.
pub(super) const HOST_PORT: &str = "hostPort";

/// How a Service chooses, or which pod a port of the node leads to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStep {
    /// The namespace and name of the Service, or of the pod that has the port.
    pub name: String,
    /// What is dialled.
    pub frontend: String,
    /// Where its address comes from, as in `ClusterIP`; a pod's is `hostPort`.
    pub kind: String,
    /// As what the client counts here: "inside" the cluster or "outside".
    #[serde(default)]
    pub region: String,
    /// The Service's traffic policy for such clients: "Cluster" or "Local"; none for a port of the node.
    #[serde(default)]
    pub traffic_policy: Option<String>,
    /// The backends that may be chosen.
    pub backends: Vec<String>,
    /// How one is chosen among them.
    #[serde(default)]
    pub choice: String,
    /// Which ranges may use the frontend, if not everybody may.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub admitted_ranges: Vec<String>,
    /// Whether the client is in one of them, or there are none.
    #[serde(default)]
    pub admitted: bool,
    /// Whether the backend sees the node's address in place of the client's.
    #[serde(default)]
    pub masqueraded: bool,
    /// Why there is no backend, if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absences: Vec<String>,
    /// What becomes of the packet where there is no backend.
    pub without_backend: String,
    /// What the maps have.
    pub maps: Check,
}

impl ServiceStep {
    /// Of which kind the object is that has the frontend.
    pub(crate) fn owner_kind(&self) -> &'static str {
        if self.kind == HOST_PORT { "Pod" } else { "Service" }
    }
}

/// What policies say about one way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// Who serves: the backend, or the destination.
    pub server: String,
    /// Whether it passes.
    pub allowed: bool,
    /// Whether the client is a pod of this node.
    #[serde(default)]
    pub from_here: bool,
    /// Each side's policies and the rule that decided.
    pub explanation: Value,
    /// The same in words.
    pub words: Vec<String>,
    /// What the maps say for each side that is a pod of this node.
    pub maps: Vec<Check>,
}

/// A look into the maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Whether they say the same.
    pub agrees: bool,
    /// What they say.
    pub found: String,
}

/// Answers the question, of this node.
///
/// # Errors
/// When it makes no sense, naming the part, or names an object that is not there.
pub fn answer(agent: &Agent, question: &Question) -> Result<Answer, String> {
    let protocol = protocol_of(question)?;
    let policies = &agent.policies;
    let client = policies.party(&question.from).map_err(|why| format!("--from {}: {why}", question.from))?;
    let to = |why: String| format!("--to {}: {why}", question.to);
    let dialled = match protocol {
        Some(protocol) => dialled(agent, &question.to, protocol, question.port).map_err(to)?,
        None => None,
    };
    let caller = caller(agent, &client);
    let step = dialled.as_ref().map(|dialled| services::step(agent, dialled, &caller));
    let servers: Vec<(Party, u16)> = match &step {
        Some(step) => step.backends.iter().filter_map(|text| backend(text)).collect(),
        None => vec![(policies.party(&question.to).map_err(to)?, question.port)],
    };
    let unclaimed = match (&step, protocol, servers.first()) {
        (None, Some(protocol), Some((Party::Address(address), port))) => {
            services::unclaimed(agent, *address, *port, protocol)
        }
        _ => None,
    };
    let mut notes = Vec::new();
    if let Some((verdict, why)) = unclaimed {
        let port = format!("{}/{}", question.protocol, question.port);
        return Ok(Answer {
            from: policies.label(&client),
            to: format!("{} {port}", question.to),
            service: None,
            paths: Vec::new(),
            notes: vec![why],
            leaves_as: None,
            verdict: verdict.to_owned(),
        });
    }
    let is_turned_away = step.as_ref().is_some_and(|step| !step.admitted);
    let paths: Vec<Path> = servers
        .iter()
        .filter(|_| !is_turned_away)
        .map(|(server, port)| policies.path(&client, server, protocol, *port))
        .collect::<Result<_, _>>()?;
    let leaves_as = match (servers.as_slice(), paths.as_slice()) {
        ([(Party::Address(outside), _)], [path]) if dialled.is_none() && path.from_here && path.allowed => {
            egress::source_of(&agent.pins, *outside).map_err(|e| chain(&e))?
        }
        _ => None,
    };
    if step.is_some() && caller.is_elsewhere {
        let note = "the client is a pod of another node: what it dials is translated there, so ask there too";
        notes.push(note.to_owned());
    }
    let verdict = match is_turned_away {
        true => "dropped",
        false => verdict(&paths, dialled.as_ref()),
    };
    let port = match protocol {
        Some(protocol) => format!(" {protocol}/{}", question.port),
        None => " icmp".to_owned(),
    };
    Ok(Answer {
        from: policies.label(&client),
        to: match &step {
            Some(step) => format!("{} {} at {} ({})", step.owner_kind(), step.name, step.frontend, step.kind),
            None => servers.first().map(|(server, _)| policies.label(server)).unwrap_or_default() + &port,
        },
        service: step,
        paths,
        notes,
        leaves_as,
        verdict: verdict.to_owned(),
    })
}

/// What a frontend is to know of the client.
struct Caller {
    /// Its addresses, as far as they are known.
    addresses: Vec<IpAddr>,
    /// Whether its packets come from a pod of this node, or from the node itself.
    is_inside: bool,
    /// Whether it is a pod of another node.
    is_elsewhere: bool,
}

fn caller(agent: &Agent, client: &Party) -> Caller {
    let endpoints = lock(&agent.endpoints);
    let is_meant = |registration: &&Registration| match client {
        Party::Pod(name) => {
            (registration.pod.namespace.as_str(), registration.pod.name.as_str())
                == (&*name.namespace, &*name.name)
        }
        Party::Address(address) => registration.addresses.contains(address),
    };
    let own = endpoints.registrations().find(is_meant).map(|found| found.addresses.clone());
    drop(endpoints);
    if let Some(addresses) = own {
        return Caller { addresses, is_inside: true, is_elsewhere: false };
    }
    let addresses = match client {
        Party::Address(address) => vec![*address],
        Party::Pod(_) => Vec::new(),
    };
    let own_node = Some(format!("Node {}", agent.facts.node_name));
    let is_node =
        addresses.iter().any(|address| address.is_loopback() || agent.policies.who(*address) == own_node);
    let is_pod = match client {
        Party::Pod(_) => true,
        Party::Address(address) => agent.policies.who(*address).is_some_and(|who| who.starts_with("Pod ")),
    };
    Caller { addresses, is_inside: is_node, is_elsewhere: is_pod }
}

/// The protocol that is asked about; none for ICMP.
fn protocol_of(question: &Question) -> Result<Option<Protocol>, String> {
    match question.protocol.as_str() {
        "tcp" => Ok(Some(Protocol::Tcp)),
        "udp" => Ok(Some(Protocol::Udp)),
        "sctp" => Ok(Some(Protocol::Sctp)),
        "icmp" => Ok(None),
        other => Err(format!("--port: {other:?} is none of tcp, udp, sctp, icmp")),
    }
}

/// A frontend that the packet is for.
pub(super) struct Dialled {
    name: ObjectName,
    address: SocketAddr,
    protocol: Protocol,
    view: FrontendView,
}

/// The frontend that `to` and the port are, if they are one.
fn dialled(agent: &Agent, to: &str, protocol: Protocol, port: u16) -> Result<Option<Dialled>, String> {
    let reconciler = lock(&agent.reconciler);
    let (wanted, name) = match (to.strip_prefix("service:"), to.strip_prefix("pod:")) {
        (Some(name), _) => (true, name),
        (None, Some(_)) => return Ok(None),
        (None, None) => (false, to),
    };
    let views = match (name.parse::<IpAddr>(), name.split_once('/')) {
        (Ok(_), _) => reconciler.services(),
        (Err(_), Some((namespace, name))) => reconciler.service(&ObjectName::new(namespace, name)),
        (Err(_), None) => Vec::new(),
    };
    drop(reconciler);
    let address = name.parse::<IpAddr>().ok();
    let is_named = address.is_none() && !views.is_empty();
    if is_named && !wanted && agent.policies.has_pod(name) {
        return Err("a Pod and a Service have this name: say pod: or service: before it".to_owned());
    }
    for service in views.into_iter().filter(|service| service.protocol == protocol) {
        for view in service.frontends {
            let Ok(frontend) = view.address.parse::<SocketAddr>() else { continue };
            if frontend.port() == port && address.is_none_or(|address| address == frontend.ip()) {
                let name = ObjectName::new(service.namespace.as_str(), service.name.as_str());
                return Ok(Some(Dialled { name, address: frontend, protocol, view }));
            }
        }
    }
    match wanted || is_named {
        true if is_named => Err(format!("the Service has no port {port}/{protocol}")),
        true => Err("there is no such Service with a virtual address".to_owned()),
        false => Ok(None),
    }
}

fn backend(text: &str) -> Option<(Party, u16)> {
    let address: SocketAddr = text.parse().ok()?;
    Some((Party::Address(address.ip()), address.port()))
}

fn verdict(paths: &[Path], dialled: Option<&Dialled>) -> &'static str {
    match (paths.iter().filter(|path| path.allowed).count(), dialled) {
        (0, Some(dialled)) if paths.is_empty() => match dialled.view.without_backend {
            WithoutBackend::Reject => "refused",
            WithoutBackend::Drop => "dropped",
        },
        (0, _) => "denied",
        (allowed, _) if allowed == paths.len() => "allowed",
        _ => "allowed to some backends",
    }
}

impl Policies {
    /// Whom the text names: a pod, or an address.
    fn party(&self, text: &str) -> Result<Party, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Party::Address(address));
        }
        let name = text.strip_prefix("pod:").unwrap_or(text);
        let Some((namespace, pod)) = name.split_once('/') else {
            return Err("neither an address nor namespace/name".to_owned());
        };
        if !self.has_pod(name) {
            return Err("there is no such Pod".to_owned());
        }
        Ok(Party::Pod(ObjectName::new(namespace, pod)))
    }

    fn has_pod(&self, name: &str) -> bool {
        let Some((namespace, name)) = name.split_once('/') else { return false };
        self.lock().engine.has_pod(&ObjectName::new(namespace, name))
    }

    fn label(&self, party: &Party) -> String {
        match party {
            Party::Pod(name) => format!("Pod {name}"),
            Party::Address(address) => match super::name_of(&self.lock().engine.who(*address)) {
                Some(who) => format!("{address} ({who})"),
                None => address.to_string(),
            },
        }
    }

    /// What policies say of a packet from `client` to `server`, and what the maps say of it.
    fn path(
        &self,
        client: &Party,
        server: &Party,
        protocol: Option<Protocol>,
        port: u16,
    ) -> Result<Path, String> {
        let server_label = self.label(server);
        let state = self.lock();
        let explanation = state.engine.why(client, server, protocol, port);
        let Explanation { client, server, egress, ingress, .. } = &explanation;
        let is_self = client.pod.is_some() && client.pod == server.pod;
        let check = |side: &Side, own: &PartyView, peer: &PartyView| {
            let (index, address) = (own.endpoint?, peer.address?);
            let isolation = state.maps.isolation(index).ok()?;
            let policy =
                if side.direction == Direction::Egress { isolation.egress } else { isolation.ingress };
            let number = protocol.map_or(fairlead_abi::protocol::ICMP, Protocol::number);
            Some(match state.maps.look_up(policy, address, number, port) {
                Ok(found) => Check {
                    agrees: policy != policies::CLOSED
                        && found.allows(is_self || peer.own_node) == side.allowed,
                    found: format!("{}: {}", side.direction, found.words(policy)),
                },
                Err(e) => Check { agrees: false, found: e.to_string() },
            })
        };
        let maps = [check(egress, client, server), check(ingress, server, client)];
        Ok(Path {
            server: match port {
                0 => server_label,
                port => format!("{server_label} port {port}"),
            },
            allowed: explanation.allowed,
            from_here: client.endpoint.is_some(),
            words: words(&explanation),
            maps: maps.into_iter().flatten().collect(),
            explanation: serde_json::to_value(&explanation).map_err(|e| e.to_string())?,
        })
    }
}

/// What each side's policies say, a line each and one for each policy that might have allowed it.
fn words(explanation: &Explanation) -> Vec<String> {
    let sides = [&explanation.egress, &explanation.ingress].map(ToString::to_string);
    sides.iter().flat_map(|side| side.lines()).map(str::to_owned).collect()
}

impl crate::dataplane::policies::Looked {
    /// Whether the packet passes; what no NetworkPolicy may forbid is `exempt`.
    fn allows(&self, exempt: bool) -> bool {
        self.verdict == verdicts::ALLOW || exempt && self.verdict == verdicts::DENY_NETWORK
    }

    fn words(&self, policy: u32) -> String {
        let verdict = match self.verdict {
            verdicts::ALLOW => "allow",
            verdicts::DENY_ADMIN => "deny (Admin)",
            verdicts::DENY_BASELINE => "deny (Baseline)",
            _ => "deny (NetworkPolicy)",
        };
        match policy {
            policies::CLOSED => "closed".to_owned(),
            policies::OPEN => "open".to_owned(),
            _ => format!("policy {policy}, identity {}, row {}: {verdict}", self.identity, self.row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(allowed: bool) -> Path {
        Path {
            server: "10.0.0.1 port 80".into(),
            allowed,
            from_here: false,
            explanation: Value::Null,
            words: vec!["egress: nobody selects the pod".into()],
            maps: vec![Check { agrees: false, found: "ingress: closed".into() }],
        }
    }

    #[test]
    fn an_answer_says_for_each_backend_what_becomes_of_the_packet() {
        assert_eq!(verdict(&[path(true), path(true)], None), "allowed");
        assert_eq!(verdict(&[path(true), path(false)], None), "allowed to some backends");
        assert_eq!(verdict(&[path(false)], None), "denied");
    }

    #[test]
    fn a_protocol_that_policies_do_not_know_is_refused_by_name() {
        let question = |protocol: &str| Question { protocol: protocol.into(), ..Question::default() };
        assert_eq!(protocol_of(&question("icmp")), Ok(None));
        assert!(protocol_of(&question("gre")).expect_err("refused").contains("gre"));
    }
}
