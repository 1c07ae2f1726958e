//! The form of a script.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use fairlead_core::decide::{Client, Flow};
use fairlead_core::index::Index;
use fairlead_core::model::ObjectName;
use fairlead_core::settings::{NodePortAddresses, Settings};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};

/// A script, read from its file.
#[derive(Clone, Debug)]
pub struct Script {
    /// The name of the proxy's own node.
    pub node: String,
    /// How many slots there are.
    pub slots: u32,
    /// How many backends there are.
    pub backends: u32,
    /// How many frontends fit, if that is limited.
    pub frontends: Option<u32>,
    /// What the operator chose.
    pub settings: Settings,
    /// The addresses of the node's interfaces.
    pub local_addresses: Vec<IpAddr>,
    /// Whether the ranges of ClusterIPs are expected too.
    pub shows_ranges: bool,
    /// Whether the outcome depends on the order of events, as it does where something runs out.
    pub fixed_order: bool,
    /// Events up to each expectation.
    pub steps: Vec<Step>,
}

/// Events and what the maps hold after them.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// At most one for each object, so that their order does not matter.
    pub events: Vec<Event>,
    /// The dump, line by line, if it matters.
    pub expected: Option<Vec<String>>,
    /// What becomes of packets.
    pub flows: Vec<ExpectedFlow>,
}

/// A packet and what becomes of it.
#[derive(Clone, Debug)]
pub struct ExpectedFlow {
    /// The line of the script.
    pub line: String,
    /// The packet.
    pub flow: Flow,
    /// The outcome as text.
    pub outcome: String,
    /// Whether kube-proxy would masquerade where Fairlead keeps the client's address.
    pub kube_proxy_masquerades: bool,
}

/// A change that a watch reports.
#[derive(Clone, Debug)]
pub enum Event {
    /// A Service was added or changed.
    Service(Box<core::Service>),
    /// An EndpointSlice was added or changed.
    Slice(Box<discovery::EndpointSlice>),
    /// A Node was added or changed.
    Node(Box<core::Node>),
    /// A ServiceCIDR was added or changed.
    ServiceCidr(Box<networking::ServiceCIDR>),
    /// The node's interfaces have these addresses.
    LocalAddresses(Vec<IpAddr>),
    /// An object of this kind was deleted.
    Deleted(Kind, ObjectName),
}

/// The kinds of objects in scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice,
    /// v1 Node.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

impl Event {
    /// Feeds it to an index, as the agent would.
    pub fn feed(&self, index: &mut Index) {
        match self {
            Self::Service(object) => index.apply_service(object),
            Self::Slice(object) => index.apply_slice(object),
            Self::Node(object) => index.apply_node(object),
            Self::ServiceCidr(object) => index.apply_service_cidr(object),
            Self::LocalAddresses(addresses) => index.set_local_addresses(addresses.clone()),
            Self::Deleted(Kind::ServiceCidr, name) => index.delete_service_cidr(&name.name),
            Self::Deleted(Kind::Service, name) => index.delete_service(name),
            Self::Deleted(Kind::Slice, name) => index.delete_slice(name),
            Self::Deleted(Kind::Node, name) => index.delete_node(&name.name),
        }
    }
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// If a section, an option or an object can't be understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut script = Self {
            node: "a".into(),
            slots: 1024,
            backends: 1024,
            frontends: None,
            settings: Settings::default(),
            local_addresses: Vec::new(),
            shows_ranges: false,
            fixed_order: false,
            steps: Vec::new(),
        };
        let mut sections = text.split("\n-- ");
        for line in sections.next().into_iter().flat_map(str::lines) {
            script.option(line).with_context(|| format!("line {line:?}"))?;
        }
        let mut step = Step::default();
        for section in sections {
            let (title, body) = section.split_once('\n').unwrap_or((section, ""));
            match title.trim_end_matches([' ', '-']) {
                "apply" => {
                    for document in body.split("\n---") {
                        step.events.push(parse_object(document).with_context(|| format!("in {document}"))?);
                    }
                }
                "delete" => {
                    for line in body.lines().filter(|line| !line.trim().is_empty()) {
                        step.events.push(parse_deleted(line).with_context(|| format!("line {line:?}"))?);
                    }
                }
                "addresses" => step.events.push(Event::LocalAddresses(parse_list(body.trim())?)),
                "expect" => {
                    let lines = body.lines().filter(|line| !line.trim().is_empty());
                    let lines = lines.map(|line| line.trim_end().into()).collect();
                    script.checked(&mut step).expected = Some(lines);
                }
                "flows" => {
                    let lines = body.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
                    let flows: Result<Vec<ExpectedFlow>> = lines
                        .map(|line| parse_flow(line).with_context(|| format!("line {line:?}")))
                        .collect();
                    script.checked(&mut step).flows.extend(flows?);
                }
                other => bail!("a section named {other:?}"),
            }
        }
        ensure!(step.events.is_empty(), "events after the last expectation");
        ensure!(!script.steps.is_empty(), "a script that expects nothing");
        Ok(script)
    }

    /// The step that an expectation is of: a new one if there were events since the last.
    fn checked(&mut self, step: &mut Step) -> &mut Step {
        if !step.events.is_empty() || self.steps.is_empty() {
            self.steps.push(std::mem::take(step));
        }
        let last = self.steps.len() - 1;
        &mut self.steps[last]
    }

    fn option(&mut self, line: &str) -> Result<()> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (name, value) = line.split_once(": ").context("neither a comment nor an option")?;
        match name {
            "node" => self.node = value.to_owned(),
            "slots" => self.slots = value.parse()?,
            "backends" => self.backends = value.parse()?,
            "frontends" => self.frontends = Some(value.parse()?),
            "nodeport_addresses" => {
                self.settings.nodeport_addresses = NodePortAddresses::Within(parse_list(value)?);
            }
            "nodeport_loopback" => self.settings.nodeport_loopback = value == "yes",
            "service_cidrs" => self.settings.service_cidrs = Some(parse_list(value)?),
            "maglev" => self.settings.maglev = Some(value.parse()?),
            "local_addresses" => self.local_addresses = parse_list(value)?,
            "ranges" => self.shows_ranges = value == "shown",
            "order" => self.fixed_order = value == "fixed",
            _ => bail!("no such option"),
        }
        Ok(())
    }
}

fn parse_object(document: &str) -> Result<Event> {
    let value: serde_json::Value = serde_saphyr::from_str(document)?;
    Ok(match value.get("kind").and_then(serde_json::Value::as_str) {
        Some("Service") => Event::Service(Box::new(serde_json::from_value(value)?)),
        Some("EndpointSlice") => Event::Slice(Box::new(serde_json::from_value(value)?)),
        Some("ServiceCIDR") => Event::ServiceCidr(Box::new(serde_json::from_value(value)?)),
        Some("Node") => Event::Node(Box::new(serde_json::from_value(value)?)),
        kind => bail!("an object of kind {kind:?}"),
    })
}

fn parse_deleted(line: &str) -> Result<Event> {
    let (kind, name) = line.trim().split_once(' ').context("no name")?;
    let kind = match kind {
        "Service" => Kind::Service,
        "EndpointSlice" => Kind::Slice,
        "Node" => Kind::Node,
        "ServiceCIDR" => Kind::ServiceCidr,
        other => bail!("an object of kind {other:?}"),
    };
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    Ok(Event::Deleted(kind, ObjectName::new(namespace, name)))
}

fn parse_list<T: std::str::FromStr>(text: &str) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.split([',', ' ']).filter(|part| !part.is_empty()).map(|part| Ok(part.parse()?)).collect()
}

/// A line such as `pod 10.0.0.2 -> 172.30.0.41:80/tcp: 10.180.0.1:80 | kube-proxy masquerades`.
fn parse_flow(line: &str) -> Result<ExpectedFlow> {
    let (fact, remark) = line.split_once(" | ").unwrap_or((line, ""));
    let kube_proxy_masquerades = remark == "kube-proxy masquerades";
    ensure!(kube_proxy_masquerades || remark.is_empty(), "a remark that says nothing");
    let (client, rest) = fact.trim().split_once(' ').context("no client")?;
    let (source, rest) = rest.trim().split_once(" -> ").context("no destination")?;
    let (destination, outcome) = rest.split_once(": ").context("no outcome")?;
    let (destination, protocol) = destination.split_once('/').context("no protocol")?;
    let (destination, port) = match destination.parse::<std::net::SocketAddr>() {
        Ok(socket) => (socket.ip(), socket.port()),
        Err(_) => (destination.parse()?, 0),
    };
    let flow = Flow {
        client: match client {
            "pod" | "node" => Client::Inside,
            "outside" => Client::Outside,
            other => bail!("a client named {other:?}"),
        },
        source: source.trim().parse()?,
        destination,
        port,
        protocol: match protocol {
            "tcp" => 6,
            "udp" => 17,
            "sctp" => 132,
            "icmp" => 1,
            other => bail!("a protocol named {other:?}"),
        },
    };
    Ok(ExpectedFlow {
        line: line.trim().to_owned(),
        flow,
        outcome: outcome.trim().to_owned(),
        kube_proxy_masquerades,
    })
}
