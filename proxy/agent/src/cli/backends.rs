//! `fairlead-proxy backends`.

use anyhow::Result;
use clap::Args;
use fairlead_net::agent::Request;
use serde_json::Value;

use super::ask::Ask;
use super::text::{Cell, ODD, Table};

/// Options of `backends`.
#[derive(Clone, Debug, Args)]
pub struct Backends {
    /// Those of this Service; without it, of all.
    #[arg(value_name = "NAMESPACE/NAME")]
    pub service: Option<String>,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Backends {
    pub(super) fn perform(self) -> Result<()> {
        self.ask.print(&Request::Backends { service: self.service.clone() }, show)
    }
}

/// The agent's answer to [`Request::Backends`], for people.
fn show(backends: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let rows = backends.as_array().into_iter().flatten().map(|backend| {
        let address = text(&backend["address"]);
        let address = if address.contains(':') { format!("[{address}]") } else { address };
        let state = match (backend["terminating"] == true, backend["takesNew"] == true) {
            (true, true) => Cell::styled(ODD, "terminating"),
            (true, false) => Cell::styled(ODD, "terminating, keeps its connections"),
            (false, true) => "serves".into(),
            (false, false) => Cell::styled(ODD, "keeps its connections"),
        };
        [
            text(&backend["owner"]).into(),
            Cell::number(&backend["id"]),
            format!("{address}:{}/{}", backend["port"], text(&backend["protocol"]).to_lowercase()).into(),
            text(&backend["pod"]).into(),
            text(&backend["node"]).into(),
            text(&backend["zone"]).into(),
            state,
            Cell::number(&backend["generation"]),
            Cell::number(&backend["flows"]),
        ]
    });
    let header = ["OWNER", "ID", "ADDRESS", "POD", "NODE", "ZONE", "STATE", "GENERATION", "FLOWS"];
    let table = Table::of(header, rows);
    if table.is_empty() { "there are no backends\n".to_owned() } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::text::plain;
    use super::*;

    #[test]
    fn a_backend_is_shown_with_whose_it_is_and_what_goes_to_it() {
        let text = plain(&show(&serde_json::json!([
            { "id": 3, "owner": "Service shop/api", "protocol": "TCP", "address": "fd00::2", "port": 80, "takesNew": false,
              "node": "a", "zone": null, "terminating": true, "pod": "Pod shop/api-1", "generation": 12, "flows": 4 },
        ])));
        let row = text.lines().nth(1).unwrap_or_default();
        assert_eq!(
            row,
            "Service shop/api   3  [fd00::2]:80/tcp  Pod shop/api-1  a     -     terminating, keeps its connections          12      4"
        );
    }
}
