//! Where the log goes and how: to stderr, as text or as JSON, at a level for all or for parts.
//!
//! What each level holds is said in `docs/logs.md`.

use std::io::{self, IsTerminal};
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// The options of a daemon about its log.
#[derive(Clone, Debug, Args)]
// The daemons' own options are a group of that name.
#[group(skip)]
pub struct Options {
    /// How much is logged: error, warn, info, debug or trace, and after commas what differs for parts, as in
    /// info,fairlead_proxy::watch=debug; RUST_LOG stands in for the option.
    #[arg(long, value_name = "LEVEL[,PART=LEVEL…]", env = "RUST_LOG", default_value = "info")]
    pub log_level: Level,
    /// How it is written, to stderr.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub log_format: Format,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// How much is logged: what [`EnvFilter`] understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An empty RUST_LOG is as good as none.
        let text = if text.trim().is_empty() { "info" } else { text.trim() };
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(e) => Err(format!("{text:?}: {e}")),
        }
    }
}

impl Level {
    /// The filter, without what libraries say that the daemons say themselves, unless it is asked for.
    fn filter(&self) -> EnvFilter {
        let Self(text) = self;
        // The watches report their failures themselves, each once.
        let text =
            if text.contains("kube_client") { text.clone() } else { format!("{text},kube_client=off") };
        EnvFilter::new(text)
    }
}

/// Logs as the options say from now on. Called once, before anything is logged.
pub fn start(options: &Options) {
    let colours = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(options.log_level.filter()).with_writer(io::stderr);
    match options.log_format {
        Format::Text => lines.with_ansi(colours).finish().init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).finish().init(),
    }
}

/// Logs for a command that ends soon: what `RUST_LOG` asks for, or else that level, as text.
pub fn start_for_command(level: &str) {
    let asked = std::env::var("RUST_LOG").ok().and_then(|text| text.parse().ok());
    let log_level = asked.unwrap_or_else(|| Level(level.to_owned()));
    start(&Options { log_level, log_format: Format::Text });
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Daemon {
        #[command(flatten)]
        log: Options,
    }

    #[test]
    fn a_level_may_differ_for_parts_and_nonsense_is_refused() {
        let parsed = Daemon::try_parse_from(["daemon", "--log-level", "info,fairlead_proxy::watch=debug"]);
        assert_eq!(parsed.expect("parsed").log.log_level, Level("info,fairlead_proxy::watch=debug".into()));
        for wrong in ["loud=very", "fairlead_proxy=loud"] {
            assert!(Daemon::try_parse_from(["daemon", "--log-level", wrong]).is_err(), "{wrong}");
        }
        assert_eq!("".parse::<Level>(), Ok(Level("info".into())));
    }

    #[test]
    fn the_clients_own_complaints_are_off_unless_they_are_asked_for() {
        let filter = |text: &str| text.parse::<Level>().expect("a level").filter().to_string();
        assert!(filter("debug").contains("kube_client=off"));
        assert!(!filter("info,kube_client=debug").contains("off"));
    }
}
