//! STATUS: whether an ADD would work, as far as can be seen without one.
//!
//! - 50, no new pods: the node has no podCIDRs yet, the ledger can't be written, or the agent does not answer.
//!   Pods that are there go on: programs and maps stay when the agent goes.
//! - 51, and pods that are there may not reach everything: the kernel does not forward, so what is not delivered
//!   from pod to pod of the node is dropped.
//!
//! That every address is in use is no such state: the node works, and will have addresses again.

use std::fmt::Display;
use std::fs;
use std::time::Duration;

use fairlead_net::agent::{Request, ask};
use fairlead_net::config::{NetConf, NodeFile};
use fairlead_net::store::Store;

use crate::failure::{Code, Failure};

/// How long the agent may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn status(conf: &NetConf) -> Result<(), Failure> {
    let node = NodeFile::read(&conf.node_file).map_err(unavailable("the node has no addresses for pods"))?;
    Store::open(&conf.data_dir, &conf.name)
        .and_then(|store| store.prepare())
        .map_err(unavailable("addresses can't be recorded in dataDir"))?;
    if let Some(socket) = &conf.agent_socket {
        ask(socket, &Request::Status, TIMEOUT)
            .map_err(unavailable("the agent at agentSocket does not answer: is fairlead-proxy running?"))?;
    }
    let v4 = ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward");
    let v6 = ("net.ipv6.conf.all.forwarding", "/proc/sys/net/ipv6/conf/all/forwarding");
    for (cidr, (name, path)) in node.pod_cidrs.iter().map(|c| (c, if c.addr().is_ipv4() { v4 } else { v6 })) {
        let value =
            fs::read_to_string(path).map_err(unavailable("the kernel does not say if it forwards"))?;
        if value.trim() != "1" {
            let message = "the kernel does not forward: is `fairlead-cni node` running?";
            let details = format!("{name} is {}, and pods have addresses of {cidr}", value.trim());
            return Err(Failure::new(Code::Limited, message).with_details(details));
        }
    }
    Ok(())
}

fn unavailable<E: Display>(message: &'static str) -> impl FnOnce(E) -> Failure {
    move |cause| Failure::new(Code::Unavailable, message).with_details(cause.to_string())
}
