//! `fairlead-proxy wait`: until the maps of this node hold what an object says.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{ArgGroup, Args};
use fairlead_net::agent::{Awaited, AwaitedKind, Request, ask};

use super::ask::Ask;
use crate::in_effect::View;

/// How much longer than asked for the agent may take to answer.
const GRACE: Duration = Duration::from_secs(10);
/// What it ends with when the time is over.
const NOT_IN_EFFECT: u8 = 1;

/// Options of `wait`.
#[derive(Clone, Debug, Args)]
#[command(
    group = ArgGroup::new("object").required(true),
    after_help = "Ends with 0 when it is in effect, 1 when the time is over, 2 when the agent can't be asked."
)]
pub struct Wait {
    /// Wait for a Service and its endpoints.
    #[arg(long, value_name = "NAMESPACE/NAME", group = "object", value_parser = namespaced)]
    pub service: Option<(String, String)>,
    /// Wait for a NetworkPolicy.
    #[arg(long, value_name = "NAMESPACE/NAME", group = "object", value_parser = namespaced)]
    pub network_policy: Option<(String, String)>,
    /// Wait for a ClusterNetworkPolicy.
    #[arg(long, value_name = "NAME", group = "object")]
    pub cluster_network_policy: Option<String>,
    /// Wait for a Pod: if it is on this node, until it is wired and under its policies.
    #[arg(long, value_name = "NAMESPACE/NAME", group = "object", value_parser = namespaced)]
    pub pod: Option<(String, String)>,
    /// At least this version of the object, as kubectl get -o jsonpath='{.metadata.resourceVersion}' shows it; by default
    /// what the agent has heard.
    #[arg(long, value_name = "VERSION")]
    pub resource_version: Option<String>,
    /// Wait until nothing of the object is in effect any more.
    #[arg(long, conflicts_with = "resource_version")]
    pub deleted: bool,
    /// How long to wait, as in 500ms, 30s or 2m; 0s looks once.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Where and how it is asked.
    #[command(flatten)]
    pub ask: Ask,
}

impl Wait {
    pub(super) fn perform(self) -> Result<ExitCode> {
        let answer = ask(&self.ask.socket, &Request::Wait(self.awaited()), self.timeout + GRACE)?;
        let view: View = serde_json::from_value(answer)?;
        self.ask.show(&view, |view| self.told(view))?;
        Ok(if view.in_effect { ExitCode::SUCCESS } else { ExitCode::from(NOT_IN_EFFECT) })
    }

    /// What is printed for people.
    fn told(&self, view: &View) -> String {
        let View { object, resource_version, missing, left_out, note, .. } = view;
        let version =
            resource_version.as_ref().map_or(String::new(), |version| format!(" at version {version}"));
        let mut text = match (missing, self.deleted) {
            (None, false) => format!("{object} is in effect{version}\n"),
            (None, true) => format!("{object} is gone\n"),
            (Some(why), deleted) => {
                format!("{object} is not {}: {why}\n", if deleted { "gone" } else { "in effect" })
            }
        };
        if missing.is_none() {
            let parts = left_out.iter().map(|part| format!("left out: {}: {}\n", part.field, part.message));
            text.extend(parts);
        }
        text.extend(note.iter().map(|note| format!("note: {note}\n")));
        text
    }

    /// What the agent is asked for.
    fn awaited(&self) -> Awaited {
        let of = |kind, named: &Option<(String, String)>| named.clone().map(|named| (kind, named));
        let cluster = self.cluster_network_policy.clone().map(|name| (String::new(), name));
        let (kind, (namespace, name)) = of(AwaitedKind::Service, &self.service)
            .or_else(|| of(AwaitedKind::NetworkPolicy, &self.network_policy))
            .or_else(|| of(AwaitedKind::Pod, &self.pod))
            .or_else(|| of(AwaitedKind::ClusterNetworkPolicy, &cluster))
            .unwrap_or((AwaitedKind::Service, Default::default()));
        Awaited {
            kind,
            namespace,
            name,
            resource_version: self.resource_version.clone(),
            deleted: self.deleted,
            timeout_ms: u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// `namespace/name`.
fn namespaced(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("not NAMESPACE/NAME".to_owned()),
    }
}

/// A time as in `500ms`, `30s`, `2m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 500ms, 30s or 2m");
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    // A year is longer than anybody waits, and far from where clocks overflow.
    milliseconds.filter(|ms| *ms <= 31_536_000_000).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<Wait, String> {
        let arguments = ["fairlead-proxy", "wait"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(arguments).map_err(|e| e.to_string())?.command {
            Command::Wait(wait) => Ok(wait),
            _ => panic!("not wait"),
        }
    }

    #[test]
    fn one_object_is_waited_for() {
        let wait = parse("--network-policy shop/web --resource-version 7 --timeout 2m").expect("parsed");
        let awaited = wait.awaited();
        assert_eq!((awaited.kind, awaited.timeout_ms), (AwaitedKind::NetworkPolicy, 120_000));
        assert_eq!((awaited.namespace.as_str(), awaited.name.as_str()), ("shop", "web"));
        assert_eq!(awaited.resource_version.as_deref(), Some("7"));
        let awaited = parse("--cluster-network-policy guard --deleted").expect("parsed").awaited();
        assert_eq!((awaited.kind, awaited.deleted), (AwaitedKind::ClusterNetworkPolicy, true));
        for wrong in
            ["", "--service web", "--service a/b --pod a/b", "--pod a/b --deleted --resource-version 7"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        for (text, milliseconds) in
            [("500ms", 500), ("0s", 0), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)));
        }
        for wrong in ["", "30", "s", "-1s", "1.5s", "1d", "99999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
