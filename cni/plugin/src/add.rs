//! ADD: a transaction of five steps, each undone when a later one fails: reserve addresses, wire the veth pair with the
//! host's end down, tell the agent, set the host's end up, commit the addresses. So no packet gets into the pod or out
//! of it before the agent has said which may.
//!
//! What a killed ADD leaves behind (a reservation that was never committed, and perhaps the pair) is taken over by the
//! next ADD of the same attachment, or removed by its DEL, by GC, or by the node daemon.

use fairlead_net::capabilities::Capabilities;
use fairlead_net::config::{NetConf, NodeFile};
use fairlead_net::exec;
use fairlead_net::plan::{Order, Plan};
use fairlead_net::result::PrevResult;
use fairlead_net::store::Store;
use serde_json::Value;

use crate::environment::Environment;
use crate::failure::{Code, Failure};
use crate::register::{Registered, registration};
use crate::success::Attached;

pub(crate) fn add(environment: &Environment, conf: &NetConf) -> Result<Value, Failure> {
    let attachment = environment.attachment()?;
    let pod = environment.pod()?;
    let asked = asked(environment, conf)?;
    let previous = PrevResult::parse(conf)?.unwrap_or_default();
    let netns = environment.netns()?;
    let node = NodeFile::read(&conf.node_file)?;

    // Each undoes itself when dropped, the last first: an open pair goes before the agent forgets the pod.
    let store = Store::open(&conf.data_dir, &conf.name)?;
    let mut reserved = store.reserve(&attachment, &node.pod_cidrs, &asked.addresses)?;
    if reserved.resumed() {
        exec::unwire(&attachment.host_ifname())?;
    }
    let addresses = reserved.addresses().to_vec();
    let order = Order {
        network: &conf.name,
        attachment: &attachment,
        addresses: &addresses,
        mtu: conf.mtu.or(node.mtu),
        mac: asked.mac,
        bandwidth: asked.bandwidth,
    };
    let plan = Plan::new(&order);
    let wiring = exec::wire(&plan, &netns)?;
    let registered = match &conf.agent_socket {
        Some(socket) => {
            let told = registration(
                &order,
                &plan,
                pod,
                wiring.netns_cookie(),
                wiring.host_ifindex(),
                asked.port_mappings,
            );
            Some(Registered::new(socket, &attachment, told)?)
        }
        None => None,
    };
    let wiring = wiring.open(&plan)?;

    reserved.commit()?;
    wiring.keep();
    if let Some(registered) = registered {
        registered.keep();
    }
    let attached = Attached { plan: &plan, addresses: &addresses, sandbox: environment.netns_path()? };
    Ok(previous.with(attached.to_json(conf.version), conf.version))
}

/// What the runtime asks for, in the configuration or else in CNI_ARGS.
pub(crate) fn asked(environment: &Environment, conf: &NetConf) -> Result<Capabilities, Failure> {
    let mut asked = Capabilities::parse(conf)?;
    if conf.agent_socket.is_none() && !asked.port_mappings.is_empty() {
        let message = "runtimeConfig.portMappings: only the agent maps ports, and agentSocket is empty: \
                       chain the plugin portmap, and let its entry declare the capability";
        return Err(Failure::new(Code::Config, message));
    }
    if asked.addresses.is_empty() {
        asked.addresses = environment.addresses()?;
    }
    if asked.mac.is_none() {
        asked.mac = environment.mac()?;
    }
    Ok(asked)
}
