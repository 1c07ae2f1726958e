//! `fairlead-proxy why`.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::{Question, Request};

use super::ask::Ask;
use super::text::{BAD, GOOD, ODD, styled};
use super::values;
use crate::policy::why::{Answer, Check, Path, ServiceStep};

/// Options of `why`.
#[derive(Clone, Debug, Args)]
pub struct Why {
    /// Who sends: a pod as namespace/name, or an address.
    #[arg(long, value_name = "NAMESPACE/POD|ADDRESS")]
    pub from: String,
    /// Whom it is sent to: a pod or a Service as namespace/name, or an address; pod: or service: before a name that
    /// both have.
    #[arg(long, value_name = "NAMESPACE/NAME|ADDRESS")]
    pub to: String,
    /// What is dialled, as in tcp/80; icmp has no port.
    #[arg(long, value_name = "PROTOCOL/PORT", value_parser = values::protocol_and_port)]
    pub port: (String, u16),
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Why {
    pub(super) fn perform(self) -> Result<()> {
        let Self { from, to, port: (protocol, port), ask } = self;
        ask.print(&Request::Why(Question { from, to, protocol, port }), show)
    }
}

/// The answer, for people.
fn show(answer: &Answer) -> String {
    let style = match answer.verdict.as_str() {
        "allowed" => GOOD,
        "allowed to some backends" => ODD,
        _ => BAD,
    };
    let mut page = format!("{} → {}: {}\n", answer.from, answer.to, styled(style, &answer.verdict));
    for note in &answer.notes {
        let _ = writeln!(page, "  {note}");
    }
    if let Some(step) = &answer.service {
        page.push_str(&show_service(step));
    }
    for Path { server, allowed, words, maps, .. } in &answer.paths {
        let verdict = if *allowed { styled(GOOD, "allowed") } else { styled(BAD, "denied") };
        let _ = writeln!(page, "  {server}: {verdict}");
        for line in words {
            let _ = writeln!(page, "    {line}");
        }
        for check in maps {
            let _ = writeln!(page, "    maps: {}", show_check(check));
        }
    }
    if let Some(address) = answer.leaves_as {
        let _ = writeln!(page, "  leaves with the node's address {address}");
    }
    page
}

fn show_service(step: &ServiceStep) -> String {
    let mut page = String::new();
    let policy =
        step.traffic_policy.as_ref().map_or_else(String::new, |policy| format!(", traffic policy {policy}"));
    let _ = writeln!(page, "  the client counts as {} the cluster here{policy}", step.region);
    if !step.admitted_ranges.is_empty() {
        let ranges = step.admitted_ranges.join(", ");
        let _ = match step.admitted {
            true => writeln!(page, "  source ranges: {ranges} admit the client"),
            false => writeln!(
                page,
                "  {}",
                styled(BAD, format!("source ranges: {ranges} do not admit the client (source_not_allowed)"))
            ),
        };
    }
    match step.backends.as_slice() {
        [] => {
            let _ = writeln!(page, "  {}", styled(BAD, &step.without_backend));
        }
        backends => {
            let _ = writeln!(page, "  translated to one of {}", backends.join(", "));
            let _ = writeln!(page, "  chosen {}", step.choice);
            let source = if step.masqueraded {
                "the node's address: it is masqueraded"
            } else {
                "the client's address"
            };
            let _ = writeln!(page, "  the backend sees {source}");
        }
    }
    for absence in &step.absences {
        let _ = writeln!(page, "  {}", styled(ODD, absence));
    }
    let _ = writeln!(page, "  maps: {}", show_check(&step.maps));
    page
}

fn show_check(Check { agrees, found }: &Check) -> String {
    let agrees = if *agrees { "the same".to_owned() } else { styled(BAD, "OTHERWISE") };
    format!("{agrees} ({found})")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::text::plain;
    use super::*;

    fn answer() -> Answer {
        Answer {
            from: "Pod shop/web".into(),
            to: "Service shop/api at 203.0.113.1:80/tcp (LoadBalancer)".into(),
            service: None,
            paths: vec![Path {
                server: "10.0.0.1 port 80".into(),
                allowed: false,
                from_here: false,
                explanation: Value::Null,
                words: vec!["egress: nobody selects the pod".into()],
                maps: vec![Check { agrees: false, found: "ingress: closed".into() }],
            }],
            notes: Vec::new(),
            leaves_as: None,
            verdict: "denied".into(),
        }
    }

    #[test]
    fn an_answer_shows_people_where_the_maps_say_otherwise() {
        let text = plain(&show(&answer()));
        for expected in [
            "Pod shop/web → Service shop/api",
            ": denied",
            "nobody selects",
            "maps: OTHERWISE (ingress: closed)",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_services_part_says_who_is_turned_away_and_why_nobody_answers() {
        let step = ServiceStep {
            name: "shop/api".into(),
            frontend: "203.0.113.1:80/tcp".into(),
            kind: "LoadBalancer".into(),
            region: "outside".into(),
            traffic_policy: Some("Local".into()),
            backends: Vec::new(),
            choice: "at random".into(),
            admitted_ranges: vec!["192.0.2.0/24".into()],
            admitted: false,
            masqueraded: false,
            absences: vec!["IPv4 clients outside the cluster find no backend: none of its endpoints".into()],
            without_backend: "dropped: no endpoint that its traffic policy admits here".into(),
            maps: Check { agrees: true, found: "Service port 3, 0 backends, guarded".into() },
        };
        let text = plain(&show(&Answer { service: Some(step), paths: Vec::new(), ..answer() }));
        for expected in [
            "counts as outside the cluster here, traffic policy Local",
            "192.0.2.0/24 do not admit the client (source_not_allowed)",
            "dropped: no endpoint that its traffic policy admits",
            "find no backend: none of its endpoints",
            "maps: the same (Service port 3",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
