//! Carrying out a plan: one veth pair made across two namespaces, by rtnetlink, undone unless kept.
//!
//! Everything a plan makes hangs on the pair: addresses, routes, neighbours and settings go with the
//! interface, and the pod's end goes with the host's. So undoing is removing one link.
//!
//! It is made in two stages. [`wire`] makes the pair and all of the pod's side, with the host's end down: the pod's end
//! has no carrier, and nothing passes. [`Wiring::open`] sets the host's end up.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, State};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth};

use crate::netlink::Kernel;
use crate::netns::{self, Netns, NetnsError};
use crate::plan::{Plan, Step};
use crate::routes::route_message;
use crate::shaping::{self, Limit};

/// What went wrong while wiring a pod.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The pod's namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// An interface of that name is there already.
    #[error("interface {ifname} exists already {place}")]
    Exists {
        /// The interface.
        ifname: String,
        /// "in the pod" or "on the host".
        place: &'static str,
    },
    /// The kernel refused a step.
    #[error("{step}: {source}")]
    Step {
        /// The step and its object.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl WireError {
    /// For `.map_err(WireError::step("set up eth0"))`.
    pub(crate) fn step<E: Into<io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Self::Step { step, source: source.into() }
    }
}

/// How long the pod's end may take to notice its carrier. It takes milliseconds; what the pod sends before is lost.
const CARRIER_PATIENCE: Duration = Duration::from_secs(1);

/// A pod's veth pair. Dropping it removes the pair, unless it is kept.
#[must_use]
pub struct Wiring {
    host: Guard,
    /// The pod's: a conversation stays with the namespace that it was opened in.
    pod: Kernel,
    pod_ifindex: u32,
    netns_cookie: Option<u64>,
}

/// The host's end, which takes the pod's with it.
struct Guard {
    kernel: Kernel,
    ifname: String,
    index: u32,
    kept: bool,
}

impl Wiring {
    /// The interface index of the host side.
    #[must_use]
    pub fn host_ifindex(&self) -> u32 {
        self.host.index
    }

    /// The cookie of the pod's namespace ([`netns::current_cookie`]); none on a kernel that has none.
    #[must_use]
    pub fn netns_cookie(&self) -> Option<u64> {
        self.netns_cookie
    }

    /// Carries out the opening of `plan`, the one that the pair was made by, and waits for the carrier at the pod's end.
    ///
    /// # Errors
    /// When the kernel refuses a step; the pair is removed then.
    pub fn open(self, plan: &Plan) -> Result<Self, WireError> {
        apply(&self.host.kernel, &plan.host.ifname, &plan.opening, self.host.index)?;
        await_carrier(&self.pod, &plan.pod.ifname, self.pod_ifindex)?;
        Ok(self)
    }

    /// Leaves the pair in place.
    pub fn keep(mut self) {
        self.host.kept = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = delete(&self.kernel, self.index)
        {
            tracing::warn!(%error, ifname = self.ifname, "a pod's interface is left behind");
        }
    }
}

/// Carries out `plan` between the calling thread's namespace and `pod`, but for its opening.
///
/// # Errors
/// When either interface exists already, the pod can't be entered, or the kernel refuses a step; nothing
/// of the plan is left then.
pub fn wire(plan: &Plan, pod: &Netns) -> Result<Wiring, WireError> {
    let kernel = Kernel::open().map_err(WireError::step("open rtnetlink"))?;
    create(&kernel, plan, pod)?;
    let index = index_of(&plan.host.ifname)?;
    // Whatever fails from here on, dropping the guard removes the pair.
    let host = Guard { kernel, ifname: plan.host.ifname.clone(), index, kept: false };
    let (pod, pod_ifindex, netns_cookie) = pod.run(|| -> Result<_, WireError> {
        let kernel = Kernel::open().map_err(WireError::step("open rtnetlink in the pod"))?;
        let index = index_of(&plan.pod.ifname)?;
        apply(&kernel, &plan.pod.ifname, &plan.pod.steps, index)?;
        Ok((kernel, index, netns::current_cookie().ok()))
    })??;
    apply(&host.kernel, &plan.host.ifname, &plan.host.steps, index)?;
    Ok(Wiring { host, pod, pod_ifindex, netns_cookie })
}

/// Removes the interface `host_ifname` from the calling thread's namespace, and with it the pod's end. False
/// if there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn unwire(host_ifname: &str) -> Result<bool, WireError> {
    let Ok(index) = if_nametoindex(host_ifname) else {
        return Ok(false);
    };
    remove(index, host_ifname)
}

/// As [`unwire`], for the very interface with this index, which is called `ifname`.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(index: u32, ifname: &str) -> Result<bool, WireError> {
    let kernel = Kernel::open().map_err(WireError::step("open rtnetlink"))?;
    delete(&kernel, index).map_err(WireError::step(format!("remove {ifname}")))
}

/// Both ends in one request: the pod's is born in its namespace, and never seen on the host.
fn create(kernel: &Kernel, plan: &Plan, pod: &Netns) -> Result<(), WireError> {
    let sized = |message: LinkMessageBuilder<LinkUnspec>| match plan.mtu {
        Some(mtu) => message.mtu(mtu),
        None => message,
    };
    let inside = sized(LinkUnspec::new_with_name(&plan.pod.ifname))
        .address(plan.pod.mac.0.to_vec())
        .setns_by_fd(pod.as_fd().as_raw_fd())
        .build();
    let mut outside = LinkMessageBuilder::<LinkVeth>::new(&plan.host.ifname, "")
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inside)))
        .address(plan.host.mac.0.to_vec());
    if let Some(mtu) = plan.mtu {
        outside = outside.mtu(mtu);
    }
    let message: LinkMessage = outside.build();
    match kernel.ask(async |handle| handle.link().add(message).execute().await) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(which_exists(plan)),
        outcome => outcome.map_err(WireError::step(format!(
            "create the veth pair {} and {}",
            plan.host.ifname, plan.pod.ifname
        ))),
    }
}

fn which_exists(plan: &Plan) -> WireError {
    if if_nametoindex(plan.host.ifname.as_str()).is_ok() {
        WireError::Exists { ifname: plan.host.ifname.clone(), place: "on the host" }
    } else {
        WireError::Exists { ifname: plan.pod.ifname.clone(), place: "in the pod" }
    }
}

fn index_of(ifname: &str) -> Result<u32, WireError> {
    if_nametoindex(ifname).map_err(WireError::step(format!("find {ifname}")))
}

fn delete(kernel: &Kernel, index: u32) -> io::Result<bool> {
    match kernel.ask(async |handle| handle.link().del(index).execute().await) {
        Ok(()) => Ok(true),
        // Gone meanwhile: with the pod's namespace.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(e) => Err(e),
    }
}

fn apply(kernel: &Kernel, ifname: &str, steps: &[Step], index: u32) -> Result<(), WireError> {
    for step in steps {
        take(kernel, ifname, index, step).map_err(WireError::step(format!("{ifname}: {step}")))?;
    }
    Ok(())
}

/// The kernel tells an interface of its carrier in its own time, and drops what it is to send until then.
fn await_carrier(kernel: &Kernel, ifname: &str, index: u32) -> Result<(), WireError> {
    let failed = || WireError::step(format!("{ifname}: wait for its carrier"));
    let deadline = Instant::now() + CARRIER_PATIENCE;
    while !is_operational(kernel, index).map_err(failed())? {
        if Instant::now() > deadline {
            tracing::warn!(ifname, "no carrier yet");
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether the interface sends what it is given (RFC 2863, ifOperStatus).
fn is_operational(kernel: &Kernel, index: u32) -> io::Result<bool> {
    let link = kernel.ask(async |handle| {
        let mut links = handle.link().get().match_index(index).execute();
        links.try_next().await
    })?;
    let up = LinkAttribute::OperState(State::Up);
    Ok(link.is_some_and(|link| link.attributes.contains(&up)))
}

fn take(kernel: &Kernel, ifname: &str, index: u32, step: &Step) -> io::Result<()> {
    match step {
        Step::Sysctl { family, key, value } => {
            let file = format!("/proc/sys/net/{family}/conf/{ifname}/{key}");
            // Most are so by the namespace's defaults, and to write one may take the lock of all interfaces.
            if fs::read_to_string(&file)?.trim_end() == *value { Ok(()) } else { fs::write(file, value) }
        }
        Step::Alias(alias) => kernel.ask(async |handle| {
            let message = LinkUnspec::new_with_index(index).alias(alias.as_str()).build();
            handle.link().change(message).execute().await
        }),
        Step::Limit(limit) => kernel.ask(async |handle| limit_queue(handle, index, *limit).await),
        Step::Up => kernel.ask(async |handle| {
            handle.link().change(LinkUnspec::new_with_index(index).up().build()).execute().await
        }),
        Step::Address(address) => kernel.ask(async |handle| {
            let prefix = if address.is_ipv4() { 32 } else { 128 };
            let mut request = handle.address().add(index, *address, prefix);
            if address.is_ipv6() {
                let message = request.message_mut();
                message.header.flags = AddressHeaderFlags::Nodad;
                message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            request.execute().await
        }),
        Step::Neighbour { address, mac } => kernel.ask(async |handle| {
            handle.neighbours().add(index, *address).link_layer_address(&mac.0).execute().await
        }),
        Step::Route(route) => {
            kernel.ask(async |handle| handle.route().add(route_message(route, Some(index))).execute().await)
        }
    }
}

/// Written out because rtnetlink's own request for a queue takes no options.
async fn limit_queue(handle: &Handle, index: u32, limit: Limit) -> Result<(), rtnetlink::Error> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(shaping::message(index, limit));
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
    let mut handle = handle.clone();
    let mut answers = handle.request(request)?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && error.code.is_some()
        {
            return Err(rtnetlink::Error::NetlinkError(error));
        }
    }
    Ok(())
}
