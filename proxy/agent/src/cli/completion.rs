//! `fairlead-proxy completion`: scripts for shells, made from the command line's own description.

use std::io::Write as _;

use anyhow::Result;
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::{Shell, generate};

use super::{Cli, text};

/// Options of `completion`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Completion {
    /// For which shell: source <(fairlead-proxy completion bash).
    #[arg(value_enum)]
    pub shell: Kind,
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// bash, with bash-completion.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

impl Completion {
    pub(super) fn perform(self) -> Result<()> {
        let shell = match self.shell {
            Kind::Bash => Shell::Bash,
            Kind::Zsh => Shell::Zsh,
            Kind::Fish => Shell::Fish,
        };
        let mut script = Vec::new();
        generate(shell, &mut Cli::command(), "fairlead-proxy", &mut script);
        text::done(std::io::stdout().lock().write_all(&script))
    }
}
