//! The CNI verbs: ADD, DEL and VERSION.
//!
//! ADD takes five steps, each undone when a later one fails: reserve addresses, wire the veth pair with the host's end
//! down, tell the agent, set the host's end up, commit the addresses. So no packet gets into the pod or out of it before
//! the agent has said which may. What a killed ADD leaves behind (a reservation that was never committed, and perhaps
//! the pair) is taken over by the next ADD of the same attachment, or removed by its DEL.
//!
//! DEL removes whatever it finds, from a record or without one; it needs neither the pod's namespace, nor
//! the agent, nor the node file. The pair goes before the agent forgets the pod, so that the pod's rules hold to the end.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fairlead_net::agent::{AgentError, Registration, Request, ask};
use fairlead_net::attachment::Attachment;
use fairlead_net::config::{NetConf, NodeFile, Version, requested_version};
use fairlead_net::exec;
use fairlead_net::plan::Plan;
use fairlead_net::store::Store;
use serde_json::{Value, json};

use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::success::Attached;

/// How long the agent may take to program a pod.
const ADD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the agent may take to forget a pod: DEL goes on without it.
const DEL_TIMEOUT: Duration = Duration::from_secs(2);

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
        Some(verb) => {
            let message = format!("CNI_COMMAND: {verb:?} is not supported: use ADD, DEL or VERSION");
            Err(Failure::new(Code::Environment, message))
        }
        None => Err(Failure::new(Code::Environment, "CNI_COMMAND is not set")),
    }
}

/// An error speaks the runtime's version where that is known.
fn answer_version(input: &[u8]) -> Version {
    let requested = requested_version(input).ok().flatten();
    let known = |version: &Version| requested.as_deref() == Some(version.as_str());
    Version::ALL.into_iter().find(known).unwrap_or(Version::LATEST)
}

fn add(environment: &Environment, conf: &NetConf) -> Result<Value, Failure> {
    let attachment = environment.attachment()?;
    let pod = environment.pod()?;
    let netns = environment.netns()?;
    let node = NodeFile::read(&conf.node_file)?;

    // Each undoes itself when dropped, the last first: an open pair goes before the agent forgets the pod.
    let store = Store::open(&conf.data_dir, &conf.name)?;
    let mut reserved = store.reserve(&attachment, &node.pod_cidrs)?;
    if reserved.resumed() {
        exec::unwire(&attachment.host_ifname())?;
    }
    let addresses = reserved.addresses().to_vec();
    let plan = Plan::new(&attachment, &addresses, conf.mtu.or(node.mtu));
    let wiring = exec::wire(&plan, &netns)?;
    let registered = match &conf.agent_socket {
        Some(socket) => {
            let registration = Registration {
                container_id: attachment.container_id().into(),
                ifname: attachment.ifname().into(),
                pod,
                host_ifname: plan.host.ifname.clone(),
                host_ifindex: wiring.host_ifindex(),
                pod_mac: plan.pod.mac.0,
                host_mac: plan.host.mac.0,
                addresses: addresses.clone(),
                // Without it the pod's packets are translated, and its sockets are not.
                netns_cookie: netns.cookie().inspect_err(|error| tracing::debug!(%error, "no cookie")).ok(),
                port_mappings: Vec::new(),
                is_shaped: false,
            };
            Some(Registered::new(socket, &attachment, registration)?)
        }
        None => None,
    };
    let wiring = wiring.open(&plan, &netns)?;

    reserved.commit()?;
    wiring.keep();
    if let Some(registered) = registered {
        registered.keep();
    }
    let attached = Attached { plan: &plan, addresses: &addresses, sandbox: environment.netns_path()? };
    Ok(attached.to_json(conf.version))
}

fn delete(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let attachment = environment.attachment()?;
    exec::unwire(&attachment.host_ifname())?;
    if let Some(socket) = &conf.agent_socket
        && let Err(error) = forget(socket, &attachment)
    {
        // An agent that starts later finds the interface gone, and forgets the endpoint by itself.
        tracing::warn!(%error, %attachment, "the agent was not told");
    }
    // Last, so that no other pod gets an address while something of this one still answers to it.
    Store::open(&conf.data_dir, &conf.name)?.release(&attachment)?;
    Ok(())
}

fn version(input: &[u8]) -> Result<Value, Failure> {
    let requested = if input.is_empty() { None } else { requested_version(input)? };
    Ok(json!({
        "cniVersion": requested.unwrap_or_else(|| Version::LATEST.as_str().into()),
        "supportedVersions": Version::ALL.map(Version::as_str),
    }))
}

fn forget(socket: &Path, attachment: &Attachment) -> Result<(), AgentError> {
    let request = Request::DeleteEndpoint {
        container_id: attachment.container_id().into(),
        ifname: attachment.ifname().into(),
    };
    ask(socket, &request, DEL_TIMEOUT).map(drop)
}

/// An endpoint that the agent has programmed, or may have; dropping it takes it back.
struct Registered<'a> {
    socket: &'a Path,
    attachment: &'a Attachment,
    kept: bool,
}

impl<'a> Registered<'a> {
    fn new(
        socket: &'a Path,
        attachment: &'a Attachment,
        registration: Registration,
    ) -> Result<Self, AgentError> {
        // Before the answer: an agent that broke off may have programmed the endpoint all the same.
        let registered = Self { socket, attachment, kept: false };
        match ask(socket, &Request::AddEndpoint(registration), ADD_TIMEOUT) {
            Ok(_) => Ok(registered),
            Err(error @ AgentError::Connect { .. }) => {
                registered.keep();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = forget(self.socket, self.attachment)
        {
            tracing::warn!(%error, attachment = %self.attachment, "the agent was not told to forget");
        }
    }
}
