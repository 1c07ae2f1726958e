//! `fairlead-proxy services`: all of them, or all about one.

use anyhow::{Result, bail};
use clap::Args;
use fairlead_net::agent::Request;
use serde_json::Value;

use super::ask::Ask;
use super::text::{BAD, Cell, GOOD, HEAD, ODD, PLAIN, Table, list, styled};
use crate::inquiry::backends::named;

/// Options of `services`.
#[derive(Clone, Debug, Args)]
pub struct Services {
    /// All about this one; without it, every Service that is programmed, and every port of the node that leads to a pod.
    #[arg(value_name = "NAMESPACE/NAME", conflicts_with = "namespace")]
    pub service: Option<String>,
    /// Only those of this namespace.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only those that somebody would find no backend at, inside or outside the cluster, or that are not programmed.
    #[arg(long, conflicts_with = "service")]
    pub broken: bool,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Services {
    pub(super) fn perform(self) -> Result<()> {
        if let Some(service) = &self.service {
            let name = named(service).map_err(anyhow::Error::msg)?;
            let (namespace, name) = (name.namespace.to_string(), name.name.to_string());
            let detail = self.ask.ask(&Request::Service { namespace, name })?;
            if detail.is_null() {
                bail!("there is no Service {service} with a virtual address: a headless one has none");
            }
            return self.ask.show(&detail, show_one);
        }
        let mut services = self.ask.ask(&Request::Services)?;
        if let Some(services) = services.as_array_mut() {
            services.retain(|service| self.is_wanted(service));
        }
        self.ask.show(&services, show)
    }

    fn is_wanted(&self, service: &Value) -> bool {
        let is_in = self.namespace.as_ref().is_none_or(|namespace| service["namespace"] == **namespace);
        is_in && (!self.broken || is_broken(service))
    }
}

/// Whether somebody would find nobody there.
fn is_broken(service: &Value) -> bool {
    let is_empty = |list: &Value| list.as_array().is_none_or(Vec::is_empty);
    let frontend = |frontend: &Value| {
        frontend["id"].is_null() || is_empty(&frontend["internal"]) || is_empty(&frontend["external"])
    };
    !service["pending"].is_null() || items(&service["frontends"]).any(frontend)
}

/// Every Service.
fn show(services: &Value) -> String {
    let mut rows = Table::new(["SERVICE", "PORT", "KIND", "FRONTEND", "PROGRAMMED", "BACKENDS"]);
    for service in items(services) {
        let name = format!("{}/{}", text(&service["namespace"]), text(&service["name"]));
        let port = format!("{}/{}", text(&service["port"]), text(&service["protocol"]));
        for frontend in items(&service["frontends"]) {
            let (internal, external) = (&frontend["internal"], &frontend["external"]);
            let empty = format!("none: {}", text(&frontend["withoutBackend"]));
            let mut backends = backends(internal, &empty);
            if internal != external {
                backends = format!("{backends}; from outside {}", self::backends(external, &empty));
            }
            let style = if is_none(internal) { ODD } else { PLAIN };
            rows.push([
                name.clone().into(),
                port.trim_start_matches('/').into(),
                kind(&frontend["kind"]).into(),
                text(&frontend["address"]).into(),
                programmed(frontend),
                Cell::styled(style, backends),
            ]);
        }
    }
    if rows.is_empty() { "no Service is programmed\n".to_owned() } else { rows.to_string() }
}

/// One Service, with what its object asks and what its endpoints are.
fn show_one(detail: &Value) -> String {
    let name = format!("{}/{}", text(&detail["namespace"]), text(&detail["name"]));
    let mut page = format!("{}\n", styled(HEAD, format!("Service {name}")));
    let policy = |field: &str| text(&detail[field]);
    page.push_str(&format!(
        "  traffic      inside {}, outside {}\n",
        policy("internalTrafficPolicy"),
        policy("externalTrafficPolicy")
    ));
    let affinity = match detail["affinitySeconds"].as_u64() {
        Some(seconds) => format!("a client keeps its backend for {seconds} s (ClientIP)"),
        None => "none".to_owned(),
    };
    page.push_str(&format!("  affinity     {affinity}\n"));
    let ranges: Vec<String> = items(&detail["sourceRanges"]).map(text).collect();
    if !ranges.is_empty() {
        page.push_str(&format!("  admits       {} at load balancer addresses\n", ranges.join(", ")));
    }
    if let Some(port) = detail["healthCheckNodePort"].as_u64() {
        page.push_str(&format!("  health       asked by load balancers at port {port}\n"));
    }
    page.push_str(&format!("  slices       {}\n", detail["slices"]));
    for port in items(&detail["ports"]) {
        page.push_str(&show_port(port));
    }
    page
}

fn show_port(port: &Value) -> String {
    let name = text(&port["port"]);
    let name =
        if name.is_empty() { text(&port["protocol"]) } else { format!("{name}/{}", text(&port["protocol"])) };
    let mut page = format!("\n{}\n", styled(HEAD, format!("port {name}")));
    if let Some(pending) = port["pending"].as_str() {
        page.push_str(&format!("  {}\n", styled(BAD, format!("pending: {pending}"))));
    }
    for absence in items(&port["absences"]) {
        page.push_str(&format!("  {}\n", styled(ODD, text(absence))));
    }
    let rows = items(&port["frontends"]).map(|frontend| {
        let mut notes = Vec::new();
        if frontend["keepSource"] == true {
            notes.push("clients outside keep their address");
        }
        if frontend["guarded"] == true {
            notes.push("for the admitted ranges alone");
        }
        let size = |list: &Value| Cell::number(list.as_array().map_or(0, Vec::len));
        [
            text(&frontend["address"]).into(),
            kind(&frontend["kind"]).into(),
            programmed(frontend),
            size(&frontend["internal"]),
            size(&frontend["external"]),
            text(&frontend["withoutBackend"]).into(),
            list(&notes, "").into(),
        ]
    });
    let header = ["FRONTEND", "KIND", "PROGRAMMED", "INSIDE", "OUTSIDE", "IF NONE", ""];
    page.push_str(&Table::of(header, rows).to_string());
    let rows = items(&port["endpoints"]).map(|endpoint| {
        let is = |field: &str| endpoint[field] == true;
        let state = match (is("ready"), is("serving"), is("terminating")) {
            (true, _, _) => Cell::styled(GOOD, "ready"),
            (_, true, true) => Cell::styled(ODD, "terminating, still serves"),
            (_, _, true) => Cell::styled(ODD, "terminating"),
            _ => Cell::styled(ODD, "not ready"),
        };
        let optional = |field: &str| Cell::from(endpoint[field].as_str().unwrap_or("-"));
        let here = if is("local") { "here" } else { "" };
        [text(&endpoint["address"]).into(), state, optional("node"), optional("zone"), here.into()]
    });
    let endpoints = Table::of(["ENDPOINT", "STATE", "NODE", "ZONE", ""], rows);
    if !endpoints.is_empty() {
        page.push_str(&format!("\n{endpoints}"));
    }
    page
}

fn programmed(frontend: &Value) -> Cell {
    if frontend["id"].is_null() { Cell::styled(BAD, "no") } else { "yes".into() }
}

/// The kind as the API writes it.
fn kind(value: &Value) -> String {
    match value.as_str() {
        Some("cluster_ip") => "ClusterIP",
        Some("node_port") => "NodePort",
        Some("load_balancer") => "LoadBalancer",
        Some("external_ip") => "externalIP",
        Some("host_port") => "hostPort",
        other => other.unwrap_or_default(),
    }
    .to_owned()
}

fn backends(list: &Value, empty: &str) -> String {
    let backends: Vec<String> = items(list).map(text).collect();
    self::list(&backends, empty)
}

fn is_none(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::text::plain;
    use super::*;

    fn services() -> Value {
        json!([{
            "namespace": "default", "name": "web", "port": "http", "protocol": "TCP", "pending": null,
            "frontends": [
                {"address": "10.96.0.1:80", "kind": "cluster_ip", "id": 1, "withoutBackend": "reject",
                 "internal": ["10.0.0.1:8080"], "external": ["10.0.0.1:8080"]},
                {"address": "192.0.2.1:30000", "kind": "node_port", "id": null, "withoutBackend": "drop",
                 "internal": ["10.0.0.1:8080"], "external": []},
            ],
        }])
    }

    #[test]
    fn services_are_shown_with_their_backends_for_either_kind_of_client() {
        let text = plain(&show(&services()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(
            lines[1].contains("10.96.0.1:80") && lines[1].ends_with("yes         10.0.0.1:8080"),
            "{text}"
        );
        assert!(lines[2].ends_with("no          10.0.0.1:8080; from outside none: drop"), "{text}");
    }

    #[test]
    fn a_service_is_broken_if_anybody_finds_nobody_there() {
        assert!(is_broken(&services()[0]));
        let fine =
            json!({ "pending": null, "frontends": [{ "id": 1, "internal": ["a"], "external": ["a"] }] });
        assert!(!is_broken(&fine));
        assert!(is_broken(&json!({ "pending": "map full", "frontends": [] })));
    }

    #[test]
    fn one_service_is_shown_with_what_it_asks_and_why_nobody_answers() {
        let detail = json!({
            "namespace": "shop", "name": "api", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Local",
            "affinitySeconds": 60, "sourceRanges": ["192.0.2.0/24"], "healthCheckNodePort": 31000, "slices": 1,
            "ports": [{
                "port": "http", "protocol": "TCP", "pending": null,
                "absences": ["IPv4 clients outside the cluster find no backend: none is on this node"],
                "frontends": [{"address": "203.0.113.1:80", "kind": "load_balancer", "id": 4, "keepSource": true,
                               "guarded": true, "withoutBackend": "drop", "internal": ["a", "b"], "external": []}],
                "endpoints": [{"address": "10.0.0.1:8080", "node": "b", "zone": null, "local": false, "ready": true,
                               "serving": true, "terminating": false}],
            }],
        });
        let text = plain(&show_one(&detail));
        for expected in [
            "Service shop/api\n",
            "inside Cluster, outside Local",
            "for 60 s (ClientIP)",
            "192.0.2.0/24 at load balancer addresses",
            "port 31000",
            "port http/TCP",
            "find no backend: none is on this node",
            "clients outside keep their address, for the admitted ranges alone",
            "10.0.0.1:8080  ready  b     -",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
