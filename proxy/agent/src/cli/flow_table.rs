//! `fairlead-proxy flow-table`.

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::Request;

use super::ask::Ask;
use super::text::{BAD, Cell, HEAD, PLAIN, Table, bar, styled};
use crate::inquiry::flow_table::{FlowTableView, Group, Masquerade, Top};

/// Options of `flow-table`.
#[derive(Clone, Debug, Args)]
pub struct FlowTable {
    /// How many Services, clients and backends to name.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl FlowTable {
    pub(super) fn perform(self) -> Result<()> {
        self.ask.print(&Request::FlowTable { top: self.top }, show)
    }
}

/// What the table holds, for people.
fn show(table: &FlowTableView) -> String {
    let FlowTableView { places, entries, held, pressure, swept, masquerade, .. } = table;
    let style = if *pressure >= 0.9 { BAD } else { PLAIN };
    let mut page = format!("{}  {held} of {places} connections\n", styled(style, bar(*pressure)));
    page.push_str(&format!(
        "  entries      {entries}, two for each connection, those that are over included\n"
    ));
    page.push_str(&format!("  new ones     {}\n", chance(table.chance_of_no_place)));
    page.push_str(&format!("  swept        {swept} entries since the agent started\n"));
    let Masquerade { ports, busiest } = masquerade;
    let busiest = match busiest {
        Some(Top { name, count }) => {
            format!("{count} of {ports} ports are taken to {name}, more than to any other")
        }
        None => format!("no flow is masqueraded; there are {ports} ports to each receiver"),
    };
    page.push_str(&format!("  masquerade   {busiest}\n"));
    let rows = table.connections.iter().map(|Group { protocol, state, count }| {
        [protocol.clone().into(), state.clone().into(), Cell::number(count)]
    });
    section(&mut page, &Table::of(["PROTOCOL", "STATE", "CONNECTIONS"], rows).to_string());
    let mut from = 0;
    let rows: Vec<[Cell; 2]> = table
        .silence
        .iter()
        .map(|silence| {
            let range = match silence.below_seconds {
                Some(below) => format!("{} to {}", short(from), short(below)),
                None => format!("{} and more", short(from)),
            };
            from = silence.below_seconds.unwrap_or(from);
            [range.into(), Cell::number(silence.count)]
        })
        .collect();
    section(&mut page, &Table::of(["CLIENT SILENT FOR", "CONNECTIONS"], rows).to_string());
    for (header, most) in [
        (["SERVICE", "CONNECTIONS"], &table.services),
        (["CLIENT", "CONNECTIONS"], &table.clients),
        (["BACKEND", "CONNECTIONS"], &table.backends),
    ] {
        let rows = most.iter().map(|Top { name, count }| [name.clone().into(), Cell::number(count)]);
        section(&mut page, &Table::of(header, rows).to_string());
    }
    page
}

fn section(page: &mut String, table: &str) {
    if !table.is_empty() {
        page.push('\n');
        page.push_str(table);
    }
}

/// How likely it is that a new connection finds no place, in words.
fn chance(chance: f64) -> String {
    match chance {
        none if none < 1e-9 => "find a place at once".to_owned(),
        some if some < 0.01 => format!("find a place at once, but one in {:.0}", 1.0 / some),
        many => styled(
            HEAD,
            format!("{:.0} in a hundred wait for their sender's retry: see --max-flows", many * 100.0),
        ),
    }
}

fn short(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;
    use crate::inquiry::flow_table::Silence;

    #[test]
    fn a_table_is_shown_with_its_fill_its_silence_and_who_fills_it() {
        let top = |name: &str, count| Top { name: name.into(), count };
        let table = FlowTableView {
            places: 100,
            entries: 60,
            held: 25,
            pressure: 0.25,
            chance_of_no_place: 0.034,
            swept: 3,
            connections: vec![Group { protocol: "tcp".into(), state: "established".into(), count: 25 }],
            silence: vec![
                Silence { below_seconds: Some(1), count: 20 },
                Silence { below_seconds: Some(600), count: 4 },
                Silence { below_seconds: None, count: 1 },
            ],
            services: vec![top("Service shop/api", 24)],
            clients: Vec::new(),
            backends: Vec::new(),
            masquerade: Masquerade { ports: 16_384, busiest: Some(top("192.0.2.9:80/tcp", 7)) },
        };
        let text = plain(&show(&table));
        for expected in [
            "###·······  25 %  25 of 100 connections",
            "new ones     3 in a hundred wait",
            "7 of 16384 ports are taken to 192.0.2.9:80/tcp",
            "tcp       established           25",
            "0 s to 1 s                  20",
            "1 s to 10 min                4",
            "10 min and more              1",
            "Service shop/api           24",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
        assert!(!text.contains("CLIENT  "), "{text}");
        assert_eq!(chance(0.0), "find a place at once");
        assert_eq!(chance(0.001), "find a place at once, but one in 1000");
    }
}
