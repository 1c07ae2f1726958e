//! `fairlead-proxy status`: one screen, what is wrong first.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::{AgentError, Request};

use super::DEFAULT_BPFFS;
use super::ask::{Ask, NO_AGENT};
use super::text::{BAD, Cell, GOOD, ODD, PLAIN, Table, ago, bar, clock, count, list, styled};
use crate::dataplane::Pins;
use crate::dataplane::sizes::MapSize;
use crate::kernel::KernelView;
use crate::masquerade::MasqueradeView;
use crate::policy::PolicyStatus;
use crate::status::{self, MapView, ProgramView, faults};
use crate::takeover::drain::DrainView;

/// How many of the things that are wrong are shown in full.
const SHOWN: usize = 20;
/// How many interfaces of a program are named.
const NAMED: usize = 3;

/// Options of `status`.
#[derive(Clone, Debug, Args)]
pub struct Status {
    /// Where maps and links are pinned: looked at when no agent answers.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Status {
    pub(super) fn perform(self) -> Result<ExitCode> {
        let answer = match self.ask.ask(&Request::Status) {
            Ok(answer) => answer,
            Err(e @ (AgentError::Connect { .. } | AgentError::Talk { .. })) => {
                eprintln!("fairlead-proxy: {}", crate::errors::chain(&e));
                eprint!("{}", anstream::adapter::strip_str(&no_agent(&self.bpffs)));
                return Ok(ExitCode::from(NO_AGENT));
            }
            Err(e) => return Err(e.into()),
        };
        let status: status::Status = serde_json::from_value(answer.clone())?;
        self.ask.show(&answer, |_| show(&status))?;
        Ok(if faults(&status).is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What to do when no agent answers.
fn no_agent(bpffs: &Path) -> String {
    let links = Pins::new(bpffs).links();
    let datapath = match std::fs::read_dir(&links).map(Iterator::count) {
        Ok(links) if links > 0 => format!(
            "The datapath goes on without it: {links} links are pinned in {}. Nothing new is programmed meanwhile, and \
             no pod can be added.",
            bpffs.display()
        ),
        _ => format!("Nothing is pinned in {}: no program of this layout is attached here.", links.display()),
    };
    format!(
        "{datapath}\nLook at: kubectl -n kube-system logs ds/fairlead -c proxy --previous; \
         kubectl -n kube-system describe pod -l app.kubernetes.io/name=fairlead.\n\
         Where the agent has another --state-dir or --socket, say so by --socket.\n"
    )
}

/// The whole screen.
fn show(status: &status::Status) -> String {
    let mut page = verdict(status);
    page.push_str(&facts(status));
    for section in
        [watches(status), programs(status), maps(status), endpoints(status), checks(status), drops(status)]
    {
        if !section.is_empty() {
            page.push('\n');
            page.push_str(&section);
        }
    }
    page
}

/// What is wrong, or that nothing is.
fn verdict(status: &status::Status) -> String {
    let faults = faults(status);
    let head = format!("fairlead-proxy {} on node {}: ", status.version, status.node_name);
    if faults.is_empty() {
        let since = status
            .first_programmed
            .as_deref()
            .map_or_else(String::new, |since| format!(", everything programmed since {}", clock(since)));
        return format!("{head}{}\n", styled(GOOD, format!("ready{since}")));
    }
    let state = if status.ready { "ready, but" } else { "not ready:" };
    let things = count(faults.len(), "thing is wrong", "things are wrong");
    let mut text = format!("{head}{}\n", styled(BAD, format!("{state} {things}")));
    for fault in faults.iter().take(SHOWN) {
        text.push_str(&format!("  {}\n", styled(BAD, fault)));
    }
    if faults.len() > SHOWN {
        text.push_str(&format!("  and {} more: status -o json\n", faults.len() - SHOWN));
    }
    text
}

fn facts(status: &status::Status) -> String {
    let status::Status { node, masquerade, policies, flow_table, .. } = status;
    let when = |time: &str| format!("{}, {}", clock(time), ago(time, &status.time));
    let mut lines = vec![("started", when(&status.started))];
    let last = status.last_programmed.as_deref().map_or_else(|| "never".to_owned(), when);
    let waiting = match &status.queued_since {
        Some(since) => {
            let changes = count(status.queued_changes as usize, "change waits", "changes wait");
            format!("; {changes} since {}", ago(since, &status.time))
        }
        None => "; nothing waits".to_owned(),
    };
    lines.push(("last sync", last + &waiting));
    lines.push(("addresses", list(&node.addresses, "unknown: the API has no such Node")));
    lines.push(("uplinks", format!("{} (by {})", list(&node.uplinks, "none"), status.attachment)));
    if !node.pod_interfaces.is_empty() {
        lines.push(("other pods", format!("behind {}", list(&node.pod_interfaces, "none"))));
    }
    let MasqueradeView { outside, inside, .. } = masquerade;
    let leaves = if *outside { "with the node's address, but to" } else { "with the pod's address," };
    lines.push(("pods leave", format!("{leaves} {inside} ranges of the cluster")));
    let DrainView { draining, rules, left, .. } = &status.drain;
    if *draining {
        let rules = if *rules { ", and its rules are there: see fairlead-proxy takeover" } else { "" };
        lines.push(("kube-proxy", format!("{left} connections of before are left{rules}")));
    }
    if let Some(kernel) = &status.kernel {
        let features =
            format!("{}, {} of {} features", kernel.release, kernel.found(), kernel.features.len());
        lines.push(("kernel", features));
    }
    let lacking = lacks(status);
    if !lacking.is_empty() {
        lines.push(("lacks", lacking.join("; ")));
    }
    lines.push(("pins", status.pins.clone()));
    lines.push(("cgroup", status.cgroup.clone()));
    lines.push(("services", format!("{}, {} pending", status.services, status.pending.len())));
    let PolicyStatus { synced, objects, compiled } = policies;
    let force = if *synced { "in force" } else { "not known yet: no pod is added" };
    lines.push(("policies", format!("{objects} objects, {compiled} compiled here, {force}")));
    lines.push(("writes", format!("{}, {} failed", status.writes, status.failed_writes)));
    let full = format!("{} of {} connections", flow_table.held, flow_table.places);
    lines.push(("flow table", format!("{}  {full}", bar(flow_table.pressure))));
    lines.into_iter().map(|(what, text)| format!("  {what:<12} {text}\n")).collect()
}

/// What this node has not, and others may have.
fn lacks(status: &status::Status) -> Vec<String> {
    let mut lacks = Vec::new();
    let addresses = &status.node.addresses;
    for (name, has) in [
        ("IPv4", addresses.iter().any(std::net::IpAddr::is_ipv4)),
        ("IPv6", addresses.iter().any(std::net::IpAddr::is_ipv6)),
    ] {
        if !has && !addresses.is_empty() {
            lacks.push(format!("an {name} address: no NodePorts and no masquerading by {name}"));
        }
    }
    if status.attachment == "clsact" {
        lacks.push(
            "tcx (kernel 6.6, or --datapath clsact was asked for): filters of clsact in its place".to_owned(),
        );
    }
    let missing = status.kernel.iter().flat_map(KernelView::missing).filter(|feature| feature.name != "tcx");
    lacks.extend(missing.map(|feature| format!("{}: {}", feature.name, feature.without)));
    lacks
}

fn watches(status: &status::Status) -> String {
    let rows = status.watches.iter().map(|(kind, state)| {
        let doing = match (state.listed, state.connected) {
            (true, true) => Cell::styled(GOOD, "watching"),
            (false, true) => Cell::styled(ODD, "listing"),
            (_, false) => Cell::styled(BAD, "not connected"),
        };
        let last =
            state.last_heard.as_deref().map_or_else(|| "none yet".to_owned(), |at| ago(at, &status.time));
        [
            kind.clone().into(),
            doing,
            Cell::number(state.events),
            last.into(),
            Cell::number(state.failures),
            state.last_error.clone().unwrap_or_default().into(),
        ]
    });
    Table::of(["WATCH", "STATE", "EVENTS", "LAST HEARD", "FAILURES", "LAST ERROR"], rows).to_string()
}

fn programs(status: &status::Status) -> String {
    let counted = status.programs.iter().any(|program| program.runs > 0);
    let rows = status.programs.iter().map(|program| {
        let ProgramView { name, attached_to, verified_instructions, runs, nanoseconds } = program;
        let place = match attached_to.len() {
            0 => Cell::styled(PLAIN, "nowhere"),
            1..=NAMED => list(attached_to, "").into(),
            many => format!("{} and {} more", list(&attached_to[..NAMED], ""), many - NAMED).into(),
        };
        let verified = verified_instructions.map_or_else(|| "-".to_owned(), |verified| verified.to_string());
        let each = if *runs == 0 { "-".to_owned() } else { (nanoseconds / runs).to_string() };
        let runs = if counted { runs.to_string() } else { "-".to_owned() };
        [name.clone().into(), place, Cell::number(verified), Cell::number(runs), Cell::number(each)]
    });
    let table = Table::of(["PROGRAM", "ATTACHED TO", "VERIFIED", "RUNS", "NS EACH"], rows).to_string();
    let hint = "runs are counted while sysctl kernel.bpf_stats_enabled=1\n";
    if counted || table.is_empty() { table } else { table + hint }
}

fn maps(status: &status::Status) -> String {
    let rows = status.maps.iter().map(|MapView { size: MapSize { name, capacity, wanted }, entries }| {
        let share = entries.map(|entries| entries as f64 / f64::from((*capacity).max(1)));
        let note = if wanted == capacity {
            String::new()
        } else {
            format!("{wanted} asked for: takes effect after fairlead-proxy cleanup")
        };
        let style = if share.is_some_and(|share| share >= 0.9) { BAD } else { PLAIN };
        [
            name.clone().into(),
            Cell::number(entries.map_or_else(|| "-".to_owned(), |entries| entries.to_string())),
            Cell::number(capacity),
            Cell::styled(style, share.map(bar).unwrap_or_default()),
            Cell::styled(ODD, note),
        ]
    });
    Table::of(["MAP", "ENTRIES", "CAPACITY", "FILL", ""], rows).to_string()
}

fn endpoints(status: &status::Status) -> String {
    let rows = status.endpoints.iter().map(|endpoint| {
        let yes_or_no = |is| Cell::from(if is { "yes" } else { "no" });
        [
            endpoint.pod.clone().into(),
            endpoint.interface.clone().into(),
            list(&endpoint.addresses, "-").into(),
            yes_or_no(endpoint.translated),
            yes_or_no(endpoint.sockets),
        ]
    });
    Table::of(["POD", "INTERFACE", "ADDRESSES", "TRANSLATED", "SOCKETS"], rows).to_string()
}

fn checks(status: &status::Status) -> String {
    let rows = status.health_checks.iter().map(|check| {
        let note = check.error.clone().unwrap_or_default();
        let local = Cell::number(check.local_endpoints);
        [check.service.clone().into(), check.place.clone().into(), local, Cell::styled(BAD, note)]
    });
    Table::of(["HEALTH CHECK OF", "AT", "LOCAL ENDPOINTS", ""], rows).to_string()
}

fn drops(status: &status::Status) -> String {
    let rows = status.packets.iter().filter(|(_, count)| **count > 0);
    let packets = rows.map(|(what, count)| [what.clone().into(), Cell::number(count)]);
    let packets = Table::of(["PACKETS", "COUNT"], packets).to_string();
    let rows = status.drops.iter().filter(|(_, count)| **count > 0);
    let dropped = rows.map(|(reason, count)| {
        let reasons = fairlead_abi::Reason::ALL.iter();
        let meaning = reasons.filter(|known| known.label() == reason).map(|known| known.sentence().trim());
        [Cell::styled(ODD, reason.clone()), Cell::number(count), meaning.collect::<String>().into()]
    });
    let dropped = Table::of(["DROPPED", "COUNT", ""], dropped).to_string();
    match (packets.is_empty(), dropped.is_empty()) {
        (false, false) => format!("{packets}\n{dropped}"),
        _ => packets + &dropped,
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;
    use crate::status::{FlowTableStatus, ProblemView, Status};
    use crate::watch::WatchState;

    #[test]
    fn who_is_paged_reads_first_what_is_wrong_with_which_object() {
        let status = Status {
            node_name: "a".into(),
            pending: vec!["Service default/web: program frontend 10.96.0.1:80/tcp: map full (1)".into()],
            problems: vec![ProblemView {
                object: "Service default/bad".into(),
                field: "spec.ports[0].port".into(),
                message: "0 is no port".into(),
            }],
            maps: vec![MapView {
                size: MapSize { name: "FRONTENDS".into(), capacity: 4, wanted: 8 },
                entries: Some(1),
            }],
            ..Status::default()
        };
        let text = plain(&show(&status));
        for expected in [
            "on node a: not ready: 3 things are wrong\n",
            "  pending: Service default/web: program frontend 10.96.0.1:80/tcp: map full (1)\n",
            "  left out of Service default/bad: spec.ports[0].port: 0 is no port\n",
            "FRONTENDS        1         4  ###·······  25 %  8 asked for",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_node_that_is_well_says_since_when_and_what_waits() {
        let node = crate::uplinks::NodeView {
            addresses: vec!["192.0.2.1".parse().expect("an address")],
            uplinks: vec!["eth0".into()],
            ..Default::default()
        };
        let watch = WatchState {
            listed: true,
            connected: true,
            events: 7,
            last_heard: Some("2026-01-02T03:04:05Z".into()),
            ..WatchState::default()
        };
        let status = Status {
            version: "1".into(),
            node_name: "a".into(),
            ready: true,
            time: "2026-01-02T03:05:05Z".into(),
            started: "2026-01-01T03:05:05Z".into(),
            first_programmed: Some("2026-01-01T03:05:06Z".into()),
            last_programmed: Some("2026-01-02T03:05:00Z".into()),
            attachment: "clsact".into(),
            node,
            watches: [("Service".to_owned(), watch)].into(),
            policies: PolicyStatus { synced: true, ..PolicyStatus::default() },
            flow_table: FlowTableStatus { places: 100, held: 25, pressure: 0.25 },
            drops: [("no_endpoint".to_owned(), 3), ("malformed".to_owned(), 0)].into(),
            ..Status::default()
        };
        let text = plain(&show(&status));
        for expected in [
            "fairlead-proxy 1 on node a: ready, everything programmed since 2026-01-01 03:05:06Z\n",
            "last sync    2026-01-02 03:05:00Z, 5.0 s ago; nothing waits\n",
            "started      2026-01-01 03:05:05Z, 1d ago\n",
            "lacks        an IPv6 address: no NodePorts and no masquerading by IPv6; tcx (kernel 6.6",
            "flow table   ###·······  25 %  25 of 100 connections\n",
            "Service  watching       7  1m ago             0\n",
            "no_endpoint      3  The Service has no endpoint at all",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains("malformed"), "{text}");
    }

    #[test]
    fn where_no_agent_answers_it_is_said_what_goes_on() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(no_agent(directory.path()).starts_with("Nothing is pinned"));
        let links = Pins::new(directory.path()).links();
        std::fs::create_dir_all(&links).expect("made");
        std::fs::write(links.join("pod-1-ingress"), "").expect("written");
        assert!(no_agent(directory.path()).starts_with("The datapath goes on without it: 1 links"));
    }
}
