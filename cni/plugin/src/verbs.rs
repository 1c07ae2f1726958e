//! The CNI verbs: which there are, in which version of the specification, and how they answer.
//!
//! | verb | since | module |
//! |---|---|---|
//! | ADD, DEL | 0.4.0 | [`crate::add`], [`crate::delete`] |
//! | CHECK | 0.4.0 | [`crate::check`] |
//! | GC, STATUS | 1.1.0 | [`crate::gc`], [`crate::status`] |
//! | VERSION | | here |

use std::io::{self, Read, Write};
use std::process::ExitCode;

use fairlead_net::config::{NetConf, Version, requested_version};
use serde_json::{Value, json};

use crate::add::add;
use crate::check::check;
use crate::delete::delete;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::gc::gc;
use crate::status::status;

/// Carries out the verb in CNI_COMMAND and prints the answer on stdout.
pub(crate) fn run() -> ExitCode {
    let mut input = Vec::new();
    let outcome = io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| Failure::new(Code::Io, format!("read stdin: {error}")))
        .and_then(|_| dispatch(&Environment::read(), &input));
    let (answer, code) = match outcome {
        Ok(answer) => (answer, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.to_json(answer_version(&input))), ExitCode::FAILURE),
    };
    let printed = answer.map_or(Ok(()), |answer| writeln!(io::stdout(), "{answer}"));
    if let Err(error) = printed {
        tracing::error!(%error, "print the answer");
        return ExitCode::FAILURE;
    }
    code
}

fn dispatch(environment: &Environment, input: &[u8]) -> Result<Option<Value>, Failure> {
    match environment.command.as_deref() {
        Some("ADD") => add(environment, &NetConf::parse(input)?).map(Some),
        Some("DEL") => delete(environment, &NetConf::parse(input)?).map(|()| None),
        Some("VERSION") => version(input).map(Some),
        Some("CHECK") => check(environment, &NetConf::parse(input)?).map(|()| None),
        Some("GC") => gc(&since_1_1_0("GC", input)?).map(|()| None),
        Some("STATUS") => status(&since_1_1_0("STATUS", input)?).map(|()| None),
        Some(verb) => {
            let message = format!("CNI_COMMAND: {verb:?} is none of ADD, DEL, CHECK, GC, STATUS and VERSION");
            Err(Failure::new(Code::Environment, message))
        }
        None => Err(Failure::new(Code::Environment, "CNI_COMMAND is not set")),
    }
}

/// The configuration for a verb that older versions of the specification do not have.
fn since_1_1_0(verb: &str, input: &[u8]) -> Result<NetConf, Failure> {
    let conf = NetConf::parse(input)?;
    if conf.version < Version::V1_1_0 {
        let message = format!("cniVersion {:?} has no {verb}: it came with 1.1.0", conf.version.as_str());
        return Err(Failure::new(Code::IncompatibleVersion, message));
    }
    Ok(conf)
}

/// An error speaks the runtime's version where that is known.
fn answer_version(input: &[u8]) -> Version {
    let requested = requested_version(input).ok().flatten();
    let known = |version: &Version| requested.as_deref() == Some(version.as_str());
    Version::ALL.into_iter().find(known).unwrap_or(Version::LATEST)
}

fn version(input: &[u8]) -> Result<Value, Failure> {
    let requested = if input.is_empty() { None } else { requested_version(input)? };
    Ok(json!({
        "cniVersion": requested.unwrap_or_else(|| Version::LATEST.as_str().into()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    }))
}
