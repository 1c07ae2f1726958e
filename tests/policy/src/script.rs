//! Golden scripts: objects in, a table of who reaches whom out.
//!
//! A script is a text file under `data/`. It starts with what it is about, as `#` lines, and options, each a line
//! `name: value`. Then come sections:
//!
//! ```text
//! -- apply --              objects as YAML, separated by `---`
//! -- delete --             lines `Kind namespace/name`
//! -- reach tcp/80 --       who reaches whom: a row for each client, a column for each server
//!       x/a x/b y/a
//! x/a   +   e   e
//! y/a   i   +   +
//! ```
//!
//! A cell is a [`Verdict`] as it is displayed: `+` passes, `e` is denied by the client's NetworkPolicies and `i` by the
//! server's; `eA`, `iA`, `eB` and `iB` by ClusterNetworkPolicies. A section may name several protocols with their ports,
//! which then share the table, and `ipv4` or `ipv6`, or it is of both.
//!
//! Every script has a cluster to begin with:
//!
//! | who | what |
//! |---|---|
//! | the namespaces x, y and z | labelled `ns: x` and so on, and with their names |
//! | the Pods a, b and c in each | labelled `pod: a` and so on; 10.1.0.11 and fd00:1::11 is x/a, 10.1.0.23 is y/c; container ports `serve-80-tcp`, `serve-81-udp` and so on, of each protocol |
//! | `node`, `node2` | the node that they are on, by its first and its second address |
//! | `other` | another node |
//! | `out`, `out2` | machines outside of the cluster, 198.51.100.7 and 198.51.100.130 |
//!
//! `pods: x/a y/b` says which Pods there are, if not all. Those that `remote: z/a` names are the other node's, with
//! addresses like 10.2.0.31. Of a Pod or a Namespace that is there already a script says what changes (RFC 7396).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use fairlead_oracle::case::Kind;
use fairlead_prog_tests::{FAMILIES, Family};
use serde_json::{Value, json};

use crate::case::{Endpoint, Object, Probe, Step};
#[cfg(doc)]
use crate::oracle::Verdict;
use crate::world::{self, NODE, OTHER_NODE};

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];
const PORTS: [u16; 2] = [80, 81];
/// The port of the first probe's client; each has its own.
const FIRST_PORT: u16 = 10_000;

/// A script, read from its file.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Events up to each expectation, and what is expected then.
    pub parts: Vec<Part>,
    pods: Vec<String>,
    remote: Vec<String>,
    /// The Pods and Namespaces as they are.
    objects: BTreeMap<String, Value>,
    probes: u16,
}

/// Events, and what becomes of packets after them.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// The line of the script that it begins after.
    pub line: usize,
    /// What happens.
    pub steps: Vec<Step>,
    /// The packets.
    pub expected: Vec<Expected>,
}

/// A packet, and what becomes of it.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The packet in words.
    pub what: String,
    /// The packet.
    pub probe: Probe,
    /// The verdict as it is displayed.
    pub verdict: String,
}

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// If a section, an option, an object or a table can't be understood.
    pub fn parse(text: &str) -> Result<Self> {
        let mut script = Self::default();
        let of_each = |namespace| PODS.map(|pod| format!("{namespace}/{pod}"));
        script.pods = NAMESPACES.iter().flat_map(of_each).collect();
        let mut sections = text.split("\n-- ");
        for line in sections.next().into_iter().flat_map(str::lines) {
            script.option(line).with_context(|| format!("line {line:?}"))?;
        }
        let mut part = Part { line: 1, steps: script.base()?, expected: Vec::new() };
        let mut line = text.split("\n-- ").next().map_or(0, |header| header.matches('\n').count() + 1);
        for section in sections {
            let (title, body) = section.split_once('\n').unwrap_or((section, ""));
            let title = title.trim_end_matches([' ', '-']);
            let is_event = !title.starts_with("reach");
            if is_event && !part.expected.is_empty() {
                script.parts.push(std::mem::replace(&mut part, Part { line, ..Part::default() }));
            }
            line += section.matches('\n').count() + 1;
            script.section(title, body, &mut part).with_context(|| format!("in section {title:?}"))?;
        }
        ensure!(!part.expected.is_empty(), "nothing is expected in the end");
        script.parts.push(part);
        Ok(script)
    }

    fn option(&mut self, line: &str) -> Result<()> {
        if line.trim().is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (name, value) = line.split_once(": ").context("neither a comment nor an option")?;
        let pods = value.split_whitespace().map(str::to_owned).collect();
        match name {
            "pods" => self.pods = pods,
            "remote" => self.remote = pods,
            _ => bail!("no such option"),
        }
        Ok(())
    }

    fn section(&mut self, title: &str, body: &str, part: &mut Part) -> Result<()> {
        match title.split_once(' ').unwrap_or((title, "")) {
            ("apply", "") => {
                for document in body.split("\n---") {
                    let object = self.object(document).with_context(|| format!("in {document}"))?;
                    part.steps.push(Step::Apply(object));
                }
            }
            ("delete", "") => {
                for line in lines_of(body) {
                    let object = self.deleted(line).with_context(|| format!("line {line:?}"))?;
                    part.steps.push(Step::Delete(object));
                }
            }
            ("reach", packets) => self.table(packets, body, part)?,
            _ => bail!("no such section"),
        }
        Ok(())
    }

    /// What every script begins with.
    fn base(&mut self) -> Result<Vec<Step>> {
        let mut steps = vec![Step::Addresses(world::node_addresses())];
        for name in [NODE, OTHER_NODE] {
            let ips: Vec<Value> = FAMILIES
                .iter()
                .map(|family| if name == NODE { family.node() } else { world::other_node(*family) })
                .map(|address| json!({ "type": "InternalIP", "address": address }))
                .collect();
            let metadata = json!({ "name": name, "labels": { "node": name } });
            steps.push(self.apply(json!({
                "kind": "Node",
                "metadata": metadata,
                "status": { "addresses": ips },
            }))?);
        }
        for name in NAMESPACES {
            let labels = json!({ "ns": name, "kubernetes.io/metadata.name": name });
            let metadata = json!({ "name": name, "labels": labels });
            steps.push(self.apply(json!({ "kind": "Namespace", "metadata": metadata }))?);
        }
        for (index, name) in (0..).zip(self.pods.clone()) {
            let (namespace, own) = name.split_once('/').context("a Pod without namespace")?;
            steps.push(self.apply(self.pod(&name)?)?);
            if !self.remote.contains(&name) {
                let addresses = FAMILIES.iter().map(|family| self.address(&name, *family));
                let addresses = addresses.collect::<Result<_>>()?;
                let (namespace, own) = (namespace.to_owned(), own.to_owned());
                let uid = name.clone();
                steps.push(Step::Attach(Endpoint { index, namespace, name: own, uid, addresses }));
            }
        }
        Ok(steps)
    }

    fn pod(&self, name: &str) -> Result<Value> {
        let (namespace, own) = name.split_once('/').context("a Pod without namespace")?;
        let ips: Vec<IpAddr> =
            FAMILIES.iter().map(|family| self.address(name, *family)).collect::<Result<_>>()?;
        let mut ports = Vec::new();
        for protocol in PROTOCOLS {
            for port in PORTS {
                ports.push(json!({
                    "name": format!("serve-{port}-{protocol}"),
                    "containerPort": port,
                    "protocol": protocol.to_uppercase(),
                }));
            }
        }
        Ok(json!({
            "kind": "Pod",
            "metadata": { "namespace": namespace, "name": own, "uid": name, "labels": { "pod": own } },
            "spec": {
                "nodeName": if self.remote.iter().any(|remote| remote == name) { OTHER_NODE } else { NODE },
                "containers": [{ "name": "server", "ports": ports }],
            },
            "status": {
                "phase": "Running",
                "podIP": ips[0],
                "podIPs": ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>(),
            },
        }))
    }

    /// The object of a document. What is there already is changed by it, if it is a Pod or a Namespace.
    fn object(&mut self, document: &str) -> Result<Object> {
        // y is the name of a namespace, which YAML 1.1 takes for a truth.
        let options = serde_saphyr::options! { strict_booleans: true };
        let patch: Value = serde_saphyr::from_str_with_options(document, options)?;
        match self.apply(patch)? {
            Step::Apply(object) => Ok(object),
            _ => bail!("no object"),
        }
    }

    fn apply(&mut self, patch: Value) -> Result<Step> {
        let kind = patch["kind"].as_str().context("no kind")?.to_owned();
        let meta = &patch["metadata"];
        let name = match meta["namespace"].as_str() {
            Some(namespace) => format!("{kind} {namespace}/{}", meta["name"].as_str().unwrap_or_default()),
            None => format!("{kind} {}", meta["name"].as_str().unwrap_or_default()),
        };
        let before = self.objects.get(&name).filter(|_| ["Pod", "Namespace"].contains(&kind.as_str()));
        let mut value = before.cloned().unwrap_or_else(|| json!({}));
        merge(&mut value, patch);
        self.objects.insert(name, value.clone());
        Ok(Step::Apply(parse_object(&kind, value)?))
    }

    fn deleted(&mut self, line: &str) -> Result<Object> {
        let value = self.objects.remove(line.trim()).context("there is no such object")?;
        let kind = line.split(' ').next().unwrap_or_default();
        parse_object(kind, value)
    }

    fn table(&mut self, packets: &str, body: &str, part: &mut Part) -> Result<()> {
        let mut families = Vec::new();
        let mut kinds = Vec::new();
        for word in packets.split_whitespace() {
            match word {
                "ipv4" => families.push(Family::V4),
                "ipv6" => families.push(Family::V6),
                _ => kinds.push((word, parse_kind(word).with_context(|| format!("packets {word:?}"))?)),
            }
        }
        let families = if families.is_empty() { FAMILIES.to_vec() } else { families };
        let mut lines = lines_of(body);
        let servers: Vec<&str> = lines.next().context("no servers")?.split_whitespace().collect();
        for line in lines {
            let mut words = line.split_whitespace();
            let client = words.next().context("no client")?;
            let cells: Vec<&str> = words.collect();
            ensure!(cells.len() == servers.len(), "line {line:?}: not a cell for each server");
            for (server, verdict) in servers.iter().zip(cells) {
                for (word, (kind, port)) in &kinds {
                    for family in &families {
                        self.probes += 1;
                        let from_port = if *kind == Kind::Echo { 0 } else { FIRST_PORT + self.probes };
                        let from = SocketAddr::new(self.address(client, *family)?, from_port);
                        let to = SocketAddr::new(self.address(server, *family)?, *port);
                        let what = format!("{client} to {server} {word}");
                        let probe = Probe { kind: *kind, from, to };
                        part.expected.push(Expected { what, probe, verdict: verdict.to_owned() });
                    }
                }
            }
        }
        Ok(())
    }

    /// The address of someone that a table names.
    fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        let [out, out2, _] = world::outsiders(family);
        Ok(match name {
            "node" => family.node(),
            "node2" => world::second_address(family),
            "other" => world::other_node(family),
            "out" => out,
            "out2" => out2,
            _ => {
                let (namespace, pod) = name.split_once('/').context("nobody has this name")?;
                let place = |all: &[&str], one| all.iter().position(|name| *name == one);
                let namespace = place(&NAMESPACES, namespace).context("no such namespace")?;
                let pod = place(&PODS, pod).context("no such Pod")?;
                let number = (namespace as u32 + 1) * 10 + pod as u32 + 1;
                let is_remote = self.remote.iter().any(|remote| remote == name);
                if is_remote { world::remote_pod(family, number) } else { world::local_pod(family, number) }
            }
        })
    }
}

/// The lines that are neither empty nor comments.
fn lines_of(body: &str) -> impl Iterator<Item = &str> {
    body.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
}

/// A packet, as in `tcp/80` or `icmp`.
fn parse_kind(word: &str) -> Result<(Kind, u16)> {
    let (protocol, port) = word.split_once('/').unwrap_or((word, "0"));
    let kind = match protocol {
        "tcp" => Kind::Syn,
        "udp" => Kind::Udp,
        "sctp" => Kind::Init,
        "icmp" => Kind::Echo,
        _ => bail!("no such protocol"),
    };
    Ok((kind, port.parse()?))
}

fn parse_object(kind: &str, value: Value) -> Result<Object> {
    Ok(match kind {
        "Node" => Object::Node(Box::new(serde_json::from_value(value)?)),
        "Namespace" => Object::Namespace(Box::new(serde_json::from_value(value)?)),
        "Pod" => Object::Pod(Box::new(serde_json::from_value(value)?)),
        "NetworkPolicy" => Object::NetworkPolicy(Box::new(serde_json::from_value(value)?)),
        "ClusterNetworkPolicy" => Object::ClusterNetworkPolicy(value),
        kind => bail!("an object of kind {kind:?}"),
    })
}

/// RFC 7396, section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in patch {
        if value.is_null() {
            if let Some(target) = target.as_object_mut() {
                target.remove(&name);
            }
        } else {
            merge(&mut target[name], value);
        }
    }
}
