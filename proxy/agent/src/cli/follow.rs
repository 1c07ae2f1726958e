//! Going on with what is to come: drops as the agent hears of them, connections by comparing two looks at the table.

use std::io::IsTerminal as _;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use fairlead_net::agent::Request;
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::ask::Output;
use super::flows::Flows;
use super::text::{self, GOOD, ODD, PLAIN, styled};
use crate::drops::Drop;
use crate::inquiry::flows::{FlowView, Flows as Listed, Happened, Kind, compare};

/// How often the agent is asked for new drops.
const POLL: Duration = Duration::from_millis(200);
/// How often the flow table is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How many connections are compared: of more, the rest is not told of.
const COMPARED: usize = 200_000;

/// Prints drops: those that are kept, and then those to come.
pub(super) fn drops(options: &Flows) -> Result<()> {
    let mut after = 0;
    let mut first = true;
    loop {
        let new: Vec<Drop> = options.ask.learn(&Request::Drops { after })?;
        after = new.last().map_or(after, |drop| drop.number);
        let mut wanted: Vec<&Drop> = new.iter().filter(|drop| options.wants(drop)).collect();
        if first {
            let skipped = wanted.len().saturating_sub(options.limit);
            wanted.drain(..skipped);
            first = false;
        }
        let mut lines = String::new();
        for drop in wanted {
            lines.push_str(&match options.ask.output {
                Output::Json => serde_json::to_string(drop)?,
                Output::Text => styled(if drop.refused { ODD } else { PLAIN }, drop),
            });
            lines.push('\n');
        }
        text::print(&lines)?;
        if !options.follow {
            return Ok(());
        }
        thread::sleep(POLL);
    }
}

/// What happened to a connection, as it is printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told<'a> {
    time: String,
    happened: Happened,
    flow: &'a FlowView,
}

/// Prints connections as they begin, get another backend and end.
pub(super) fn flows(options: &Flows) -> Result<()> {
    let request = Request::Flows { filter: options.filter(), limit: COMPARED };
    let mut before: Listed = options.ask.learn(&request)?;
    if std::io::stderr().is_terminal() {
        eprintln!("{} connections are there; from now on each second:", before.matched);
    }
    loop {
        thread::sleep(LOOK);
        let now: Listed = options.ask.learn(&request)?;
        let time = Timestamp::now().to_string();
        let mut lines = String::new();
        for (happened, flow) in compare(&before.flows, &now.flows) {
            lines.push_str(&match options.ask.output {
                Output::Json => serde_json::to_string(&Told { time: time.clone(), happened, flow })?,
                Output::Text => line(&time, happened, flow),
            });
            lines.push('\n');
        }
        text::print(&lines)?;
        before = now;
    }
}

fn line(time: &str, happened: Happened, flow: &FlowView) -> String {
    let what = match happened {
        Happened::Began => styled(GOOD, "began     "),
        Happened::Ended => styled(PLAIN, "ended     "),
        Happened::Rebalanced => styled(ODD, "rebalanced"),
    };
    let FlowView { protocol, client, frontend, backend, .. } = flow;
    let to = if flow.kind == Kind::Service { format!(" → {backend}") } else { String::new() };
    let masked = flow.masqueraded_as.map_or_else(String::new, |place| format!(", as {place}"));
    format!("{time} {what} {protocol} {client} → {frontend}{to}{masked}, {}", flow.state)
}
