//! `fairlead-proxy endpoints`.

use anyhow::{Result, bail};
use clap::Args;
use fairlead_net::agent::Request;

use super::ask::Ask;
use super::text::{BAD, Cell, GOOD, HEAD, ODD, Table, list, styled};
use crate::inquiry::endpoints::{EndpointDetail, Isolation};

/// Options of `endpoints`.
#[derive(Clone, Debug, Args)]
pub struct Endpoints {
    /// All about this pod; without it, every pod of this node.
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Endpoints {
    pub(super) fn perform(self) -> Result<()> {
        let mut endpoints: Vec<EndpointDetail> = self.ask.learn(&Request::Endpoints)?;
        let Some(pod) = &self.pod else { return self.ask.show(&endpoints, |endpoints| show(endpoints)) };
        endpoints.retain(|endpoint| endpoint.view.pod == *pod);
        if endpoints.is_empty() {
            bail!("this node has no pod {pod} that Fairlead has wired");
        }
        self.ask.show(&endpoints, |endpoints| endpoints.iter().map(show_one).collect())
    }
}

fn show(endpoints: &[EndpointDetail]) -> String {
    let rows = endpoints.iter().map(|EndpointDetail { view, ingress, egress, fault }| {
        let cookie = view.netns_cookie.map_or_else(|| "-".to_owned(), |cookie| cookie.to_string());
        [
            view.pod.clone().into(),
            view.interface.clone().into(),
            list(&view.addresses, "-").into(),
            Cell::number(cookie),
            (if view.translated { "yes" } else { "no" }).into(),
            (if view.sockets { "yes" } else { "no" }).into(),
            state(ingress),
            state(egress),
            list(&view.host_ports, "").into(),
            fault.as_ref().map_or_else(|| Cell::styled(GOOD, "ok"), |fault| Cell::styled(BAD, fault.clone())),
        ]
    });
    let header = [
        "POD",
        "INTERFACE",
        "ADDRESSES",
        "NETNS",
        "TRANSLATED",
        "SOCKETS",
        "INGRESS",
        "EGRESS",
        "HOST PORTS",
        "PROGRAMS",
    ];
    let table = Table::of(header, rows);
    if table.is_empty() { "no pod of this node is wired by Fairlead\n".to_owned() } else { table.to_string() }
}

fn state(isolation: &Isolation) -> Cell {
    match isolation.state.as_str() {
        "closed" => Cell::styled(BAD, "closed"),
        "isolated" => Cell::styled(ODD, format!("{} policies", isolation.policies.len())),
        other => other.into(),
    }
}

fn show_one(EndpointDetail { view, ingress, egress, fault }: &EndpointDetail) -> String {
    let under = |isolation: &Isolation| match isolation.state.as_str() {
        "open" => "open: no policy selects it".to_owned(),
        "closed" => "closed: its policies are not known, nothing passes but what the node sends".to_owned(),
        _ => format!("isolated by {}", list(&isolation.policies, "?")),
    };
    let yes_or_no = |is: bool, yes: &str, no: &str| if is { yes.to_owned() } else { no.to_owned() };
    let lines = [
        ("interface", format!("{} (index {})", view.interface, view.interface_index)),
        ("addresses", list(&view.addresses, "none")),
        ("container", view.container_id.clone()),
        (
            "namespace",
            view.netns_cookie
                .map_or_else(|| "cookie not known".to_owned(), |cookie| format!("cookie {cookie}")),
        ),
        ("place", format!("{} in MARKS and ISOLATION", view.index)),
        ("ingress", under(ingress)),
        ("egress", under(egress)),
        (
            "marks",
            yes_or_no(
                view.translated,
                "translated: its packets ask the flow table",
                "none: its packets never ask the flow table",
            ),
        ),
        (
            "sockets",
            yes_or_no(
                view.sockets,
                "translated at connect()",
                "not translated: its packets are, where they enter the node",
            ),
        ),
        ("host ports", list(&view.host_ports, "none")),
        ("queue", yes_or_no(view.shaped, "limits what it is sent", "does not limit what it is sent")),
        ("programs", fault.as_ref().map_or_else(|| styled(GOOD, "attached"), |fault| styled(BAD, fault))),
    ];
    let lines: String = lines.iter().map(|(what, text)| format!("  {what:<12} {text}\n")).collect();
    format!("{}\n{lines}", styled(HEAD, format!("Pod {}", view.pod)))
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;
    use crate::dataplane::endpoints::EndpointView;

    fn endpoint() -> EndpointDetail {
        EndpointDetail {
            view: EndpointView {
                pod: "shop/web".into(),
                interface: "fl1".into(),
                addresses: vec!["10.244.0.2".parse().expect("an address")],
                translated: true,
                sockets: false,
                container_id: "c1".into(),
                interface_index: 7,
                index: 3,
                netns_cookie: Some(4711),
                host_ports: vec!["8080/tcp → 80".into()],
                shaped: false,
            },
            ingress: Isolation { state: "isolated".into(), policies: vec!["NetworkPolicy shop/web".into()] },
            egress: Isolation { state: "open".into(), policies: Vec::new() },
            fault: Some("its entry for 10.244.0.2 is missing or differs".into()),
        }
    }

    #[test]
    fn a_pod_is_shown_with_its_isolation_its_ports_and_what_is_wrong() {
        let text = plain(&show(&[endpoint()]));
        let row = text.lines().nth(1).unwrap_or_default();
        for expected in ["shop/web", "4711", "1 policies", "open", "8080/tcp → 80", "is missing or differs"]
        {
            assert!(row.contains(expected), "{expected:?} is not in\n{text}");
        }
        let text = plain(&show_one(&endpoint()));
        for expected in
            ["index 7", "isolated by NetworkPolicy shop/web", "open: no policy", "ask the flow table"]
        {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
