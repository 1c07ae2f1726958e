//! Asking the running agent, and printing what it answers: for people, or for programs as it comes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, ValueEnum};
use fairlead_net::agent::{AgentError, Request, ask};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::text;

/// How long the running agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The exit code when no agent answers.
pub const NO_AGENT: u8 = 2;

/// Options of the commands that ask the running agent.
#[derive(Clone, Debug, Args)]
pub struct Ask {
    /// Where the agent listens.
    #[arg(long, value_name = "PATH", default_value = fairlead_net::agent::DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

impl Ask {
    /// The agent's answer.
    ///
    /// # Errors
    /// When nobody listens, or the agent refuses.
    pub fn ask(&self, request: &Request) -> Result<Value, AgentError> {
        ask(&self.socket, request, PATIENCE)
    }

    /// The agent's answer as what it is.
    ///
    /// # Errors
    /// As [`Self::ask`], and when an agent of another version answers otherwise.
    pub fn learn<T: DeserializeOwned>(&self, request: &Request) -> Result<T, AgentError> {
        Ok(serde_json::from_value(self.ask(request)?)?)
    }

    /// Asks, and prints the answer: as it came, or as `show` makes text of it.
    ///
    /// # Errors
    /// As [`Self::learn`].
    pub fn print<T: DeserializeOwned>(
        &self,
        request: &Request,
        show: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        let answer = self.ask(request)?;
        match self.output {
            Output::Json => print_json(&answer),
            Output::Text => text::print(&show(&serde_json::from_value(answer)?)),
        }
    }

    /// Prints what is known here already.
    ///
    /// # Errors
    /// When it can't be printed.
    pub fn show<T: Serialize>(&self, value: &T, show: impl FnOnce(&T) -> String) -> Result<()> {
        match self.output {
            Output::Json => print_json(value),
            Output::Text => text::print(&show(value)),
        }
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    text::print(&(serde_json::to_string_pretty(value)? + "\n"))
}
