//! What the agent is told of a pod.

use std::path::Path;
use std::time::Duration;

use fairlead_net::agent::{AgentError, PodRef, PortMapping, Registration, Request, ask};
use fairlead_net::attachment::Attachment;
use fairlead_net::gc::forget;
use fairlead_net::plan::{Order, Plan};

/// How long the agent may take to program a pod, or to compare it.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

/// The registration of `pod`, whose pair is made by `plan` for `order`. Without its namespace's cookie the pod's packets
/// are translated, and its sockets are not.
pub(crate) fn registration(
    order: &Order<'_>,
    plan: &Plan,
    pod: PodRef,
    netns_cookie: Option<u64>,
    host_ifindex: u32,
    port_mappings: Vec<PortMapping>,
) -> Registration {
    Registration {
        container_id: order.attachment.container_id().into(),
        ifname: order.attachment.ifname().into(),
        pod,
        host_ifname: plan.host.ifname.clone(),
        host_ifindex,
        pod_mac: plan.pod.mac.0,
        host_mac: plan.host.mac.0,
        addresses: order.addresses.to_vec(),
        netns_cookie,
        port_mappings,
        is_shaped: order.bandwidth.ingress.is_some(),
    }
}

/// An endpoint that the agent has programmed, or may have; dropping it takes it back.
pub(crate) struct Registered<'a> {
    socket: &'a Path,
    attachment: &'a Attachment,
    kept: bool,
}

impl<'a> Registered<'a> {
    pub(crate) fn new(
        socket: &'a Path,
        attachment: &'a Attachment,
        registration: Registration,
    ) -> Result<Self, AgentError> {
        // Before the answer: an agent that broke off may have programmed the endpoint all the same.
        let registered = Self { socket, attachment, kept: false };
        match ask(socket, &Request::AddEndpoint(registration), TIMEOUT) {
            Ok(_) => Ok(registered),
            Err(error @ AgentError::Connect { .. }) => {
                registered.keep();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn keep(mut self) {
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
