//! CHECK: whether an attachment still is what ADD made. The plan is made again, from the record and the
//! configuration, and compared with the previous result, with both ends of the pair, and, by the agent, with the
//! programs and maps.
//!
//! All differences are told, not just the first.

use fairlead_net::agent::{AgentError, Request, ask};
use fairlead_net::check::check as differences;
use fairlead_net::config::{ConfigError, NetConf, NodeFile};
use fairlead_net::plan::{Order, Plan};
use fairlead_net::result::PrevResult;
use fairlead_net::store::Store;

use crate::add::asked;
use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::register::{TIMEOUT, registration};

pub(crate) fn check(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let attachment = environment.attachment()?;
    let pod = environment.pod()?;
    let asked = asked(environment, conf)?;
    let previous = PrevResult::parse(conf)?;
    let previous = previous.ok_or_else(|| ConfigError::field("prevResult", "is missing: CHECK needs it"))?;
    let netns = environment.netns()?;

    let addresses = Store::open(&conf.data_dir, &conf.name)?.addresses(&attachment)?;
    if addresses.is_empty() {
        return Err(Failure::new(Code::Differs, format!("{attachment} has no addresses on record")));
    }
    // A node that is not ready has no say in what the MTU should be.
    let node = NodeFile::read(&conf.node_file).inspect_err(|error| tracing::warn!(%error)).ok();
    let order = Order {
        network: &conf.name,
        attachment: &attachment,
        addresses: &addresses,
        mtu: conf.mtu.or(node.and_then(|node| node.mtu)),
        mac: asked.mac,
        bandwidth: asked.bandwidth,
    };
    let plan = Plan::new(&order);
    let mut found = previous.differences(&plan, &addresses, environment.netns_path()?);
    let (in_kernel, host_ifindex) = differences(&plan, &netns)?;
    found.extend(in_kernel);
    if let (Some(socket), Some(host_ifindex)) = (&conf.agent_socket, host_ifindex) {
        let told = registration(&order, &plan, pod, netns.cookie().ok(), host_ifindex, asked.port_mappings);
        match ask(socket, &Request::CheckEndpoint(told), TIMEOUT) {
            Err(AgentError::Refused(problem)) => found.push(format!("the agent: {problem}")),
            outcome => drop(outcome?),
        }
    }
    match found.as_slice() {
        [] => Ok(()),
        [only] => Err(Failure::new(Code::Differs, only)),
        [first, others @ ..] => {
            let message = format!("{first}, and {} more differences", others.len());
            Err(Failure::new(Code::Differs, message).with_details(found.join("\n")))
        }
    }
}
