//! `fairlead-proxy flows`: connections in the flow table, or packets that were dropped; those there are, or those to
//! come.

use anyhow::Result;
use clap::Args;
use fairlead_abi::Reason;
use fairlead_net::agent::{FlowFilter, Request};

use super::ask::Ask;
use super::follow;
use super::text::{Cell, GOOD, ODD, PLAIN, Table, duration};
use crate::drops::Drop;
use crate::ends::admits;
use crate::inquiry::flows::{FlowView, Flows as Listed, Kind};

/// Options of `flows`.
#[derive(Clone, Debug, Args)]
pub struct Flows {
    /// Packets that were dropped or refused, in place of connections: the last thousand of which the programs told. Of
    /// what policies drop they tell ten in a second for each pod, of every other reason twenty; all are counted.
    #[arg(long)]
    pub drops: bool,
    /// Of drops, only those of this reason, as fairlead_drops_total labels it; repeatable.
    #[arg(long, requires = "drops", value_name = "REASON", value_parser = known_reason)]
    pub reason: Vec<String>,
    /// Go on with those to come. Of connections it is told when they begin, get another backend and end, by a look at
    /// the table each second: what begins and is removed between two looks is missed, which only happens while the
    /// table is nearly full, since ended connections stay in it for ten seconds at least.
    #[arg(short, long)]
    pub follow: bool,
    /// Only those that this pod is an end of.
    #[arg(long, value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,
    /// Only those to this Service.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,
    /// Only those that this one began: an address, a range, or a name.
    #[arg(long, value_name = "ADDRESS|CIDR|NAMESPACE/NAME")]
    pub from: Option<String>,
    /// Only those to this one, as it was dialled or as who serves: an address, a range, or a name.
    #[arg(long, value_name = "ADDRESS|CIDR|NAMESPACE/NAME")]
    pub to: Option<String>,
    /// Only those to this port, as it was dialled or as it is served.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Only those of this protocol: tcp, udp, sctp, or a number.
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Only those in this state.
    #[arg(long, value_parser = ["opening", "established", "closing", "closed"], conflicts_with = "drops")]
    pub state: Option<String>,
    /// At most so many: those that were heard of last.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Flows {
    pub(super) fn perform(self) -> Result<()> {
        match (self.drops, self.follow) {
            (true, _) => follow::drops(&self),
            (false, true) => follow::flows(&self),
            (false, false) => {
                let request = Request::Flows { filter: self.filter(), limit: self.limit };
                self.ask.print(&request, show)
            }
        }
    }

    /// Which connections are asked for.
    pub(super) fn filter(&self) -> FlowFilter {
        let Self { pod, service, from, to, port, protocol, state, .. } = self.clone();
        FlowFilter { pod, service, from, to, port, protocol, state }
    }

    /// Whether this drop is asked for.
    pub(super) fn wants(&self, drop: &Drop) -> bool {
        let is_of_reason = self.reason.is_empty() || self.reason.contains(&drop.reason);
        let is_at_pod =
            self.pod.as_ref().is_some_and(|pod| drop.pod.as_deref() == Some(&format!("Pod {pod}")));
        let without_pod = FlowFilter { pod: None, ..self.filter() };
        let filter = if is_at_pod { without_pod } else { self.filter() };
        is_of_reason && admits(&filter, drop.seen())
    }
}

fn known_reason(text: &str) -> Result<String, String> {
    if Reason::ALL.iter().any(|reason| reason.label() == text) {
        return Ok(text.to_owned());
    }
    let all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.label()).collect();
    Err(format!("none of {}", all.join(", ")))
}

/// The connections, for people.
fn show(listed: &Listed) -> String {
    let Listed { matched, flows } = listed;
    if flows.is_empty() {
        return "no connection of the flow table is like that\n".to_owned();
    }
    let rows = flows.iter().map(|flow| {
        let idle = Cell::number(duration(flow.idle_seconds));
        let [protocol, client, frontend, backend, masked, state] = cells(flow);
        [protocol, client, frontend, backend, masked, state, idle]
    });
    let header = ["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "MASQUERADED AS", "STATE", "IDLE"];
    let mut page = Table::of(header, rows).to_string();
    if *matched > flows.len() {
        page.push_str(&format!("{} of {matched}, those heard of last: see --limit\n", flows.len()));
    }
    page
}

/// A connection in cells.
pub(super) fn cells(flow: &FlowView) -> [Cell; 6] {
    let style = match flow.state.as_str() {
        "established" => GOOD,
        "opening" => ODD,
        _ => PLAIN,
    };
    // What leaves as it came, or with another source alone, has no other receiver.
    let backend = if flow.kind == Kind::Service { flow.backend.to_string() } else { "-".to_owned() };
    [
        flow.protocol.clone().into(),
        flow.client.to_string().into(),
        flow.frontend.to_string().into(),
        backend.into(),
        flow.masqueraded_as.map_or_else(|| "-".to_owned(), |place| place.to_string()).into(),
        Cell::styled(style, flow.state.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::text::plain;
    use super::super::{Cli, Command};
    use super::*;
    use crate::ends::End;

    fn end(address: &str, port: u16, name: Option<&str>) -> End {
        End { address: address.parse().expect("an address"), port, name: name.map(str::to_owned) }
    }

    fn options(line: &str) -> Flows {
        let arguments = ["fairlead-proxy", "flows"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(arguments).expect("parsed").command {
            Command::Flows(flows) => flows,
            _ => panic!("not flows"),
        }
    }

    #[test]
    fn a_connection_is_shown_with_the_names_of_its_ends() {
        let flow = FlowView {
            protocol: "tcp".into(),
            kind: Kind::Service,
            client: end("192.0.2.9", 4000, None),
            frontend: end("192.0.2.1", 30_080, Some("Service shop/api")),
            backend: end("10.244.1.3", 8080, Some("Pod shop/api-1")),
            masqueraded_as: Some("192.0.2.1:50000".parse().expect("an address")),
            state: "established".into(),
            idle_seconds: 61.0,
            backend_id: 4,
            generation: 9,
        };
        let text = plain(&show(&Listed { matched: 7, flows: vec![flow] }));
        let row = text.lines().nth(1).unwrap_or_default();
        assert_eq!(
            row,
            "tcp       192.0.2.9:4000  192.0.2.1:30080 (Service shop/api)  10.244.1.3:8080 (Pod shop/api-1)  \
             192.0.2.1:50000  established  1m 1s"
        );
        assert!(text.ends_with("1 of 7, those heard of last: see --limit\n"), "{text}");
    }

    #[test]
    fn drops_are_asked_for_by_reason_and_by_the_pod_at_whose_interface_they_were() {
        let drop = Drop {
            number: 1,
            time: String::new(),
            reason: "spoofed_source".into(),
            meaning: String::new(),
            refused: false,
            socket: false,
            interface: Some("fl1".into()),
            pod: Some("Pod shop/web".into()),
            direction: None,
            tier: None,
            client: end("192.0.2.9", 4000, None),
            server: end("10.96.0.1", 80, Some("Service shop/api")),
            protocol: "tcp".into(),
            reply: false,
            policies: Vec::new(),
        };
        for line in
            ["--drops", "--drops --reason spoofed_source --pod shop/web", "--drops --service shop/api"]
        {
            assert!(options(line).wants(&drop), "{line}");
        }
        for line in ["--drops --reason malformed", "--drops --pod shop/other", "--drops --port 81"] {
            assert!(!options(line).wants(&drop), "{line}");
        }
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for line in
            ["--reason malformed", "--drops --reason nonsense", "--state asleep", "--drops --state closed"]
        {
            let arguments = ["fairlead-proxy", "flows"].into_iter().chain(line.split_whitespace());
            assert!(Cli::try_parse_from(arguments).is_err(), "{line}");
        }
    }
}
