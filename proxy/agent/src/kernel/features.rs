//! What Fairlead asks of a kernel, one line each: since when there is such a thing, and what goes without it.
//!
//! The releases are those in which a feature came; they are for people to read. Whether a kernel has it is found out by
//! asking, since distributions carry features back, and leave others out.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya_obj::generated::bpf_attach_type;

use super::probe::{self, Found, Site};
use crate::dataplane::trial::Trial;

/// What a feature is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything: without it the agent does not run.
    Core,
    /// Attaching to interfaces by links.
    Tcx,
    /// Attaching to interfaces where there is no tcx.
    Clsact,
    /// Translating sockets.
    Sockets,
    /// Saying why a socket's call failed.
    Errors,
    /// Handing maps what lies in any memory.
    Memory,
    /// Something that is slower, coarser or unseen without it.
    Extra,
}

/// A feature of the kernel.
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) part: Part,
    /// The release that brought it.
    pub(super) since: &'static str,
    /// What is lost without it.
    pub(super) without: &'static str,
    pub(super) probe: fn(&Site<'_>) -> Found,
}

const fn feature(
    name: &'static str,
    part: Part,
    since: &'static str,
    without: &'static str,
    probe: fn(&Site<'_>) -> Found,
) -> Feature {
    Feature { name, part, since, without, probe }
}

/// What is lost without any of the hooks of sockets.
pub(super) const NO_SOCKETS: &str = "sockets are not translated, only packets";
/// What that means, at more length.
pub(super) const ONLY_PACKETS: &str = "the host's own connections to Services are translated on their way out of an uplink: that needs a route to the \
     address, and reaches neither a backend that is the node itself nor a NodePort of the own node; what is refused is \
     refused by a packet; NodePorts can be bound by the host's processes; --socket-lb=all has no effect";
/// What is lost without something that the programs can't do without.
pub(super) const NOTHING_WORKS: &str = "the programs can't be loaded";

/// Every feature but the helpers that programs call, in the order in which they are told.
pub(super) const FEATURES: &[Feature] = &[
    feature("capability-bpf", Part::Core, "5.8", "nothing can be loaded", |_| probe::capability(probe::BPF)),
    feature("capability-net-admin", Part::Core, "2.2", "nothing can be attached", |_| {
        probe::capability(probe::NET_ADMIN)
    }),
    feature("capability-perfmon", Part::Core, "5.8", "the verifier forbids arithmetic with pointers", |_| {
        probe::capability(probe::PERFMON)
    }),
    feature("tc-programs", Part::Core, "4.1", NOTHING_WORKS, |_| {
        probe::program(ProgramType::SchedClassifier)
    }),
    feature("program-btf", Part::Core, "5.6", "the verifier can't take functions one by one", |_| {
        probe::program_btf()
    }),
    feature("long-programs", Part::Core, "5.2", NOTHING_WORKS, |_| probe::trial(Trial::Long)),
    feature("half-registers", Part::Core, "5.1", NOTHING_WORKS, |_| probe::trial(Trial::HalfRegister)),
    feature("loops", Part::Core, "5.3", NOTHING_WORKS, |_| probe::trial(Trial::Loop)),
    feature("fetching-atomics", Part::Core, "5.12", NOTHING_WORKS, |_| probe::trial(Trial::FetchingAdd)),
    feature("hash-maps", Part::Core, "3.19", NOTHING_WORKS, |_| probe::map(MapType::Hash)),
    feature("array-maps", Part::Core, "3.19", NOTHING_WORKS, |_| probe::map(MapType::Array)),
    feature("per-cpu-maps", Part::Core, "4.6", NOTHING_WORKS, |_| probe::map(MapType::PerCpuArray)),
    feature("lru-maps", Part::Core, "4.10", NOTHING_WORKS, |_| probe::map(MapType::LruHash)),
    feature("prefix-maps", Part::Core, "4.11", NOTHING_WORKS, |_| probe::map(MapType::LpmTrie)),
    feature("ring-buffer", Part::Core, "5.8", NOTHING_WORKS, |_| probe::map(MapType::RingBuf)),
    feature("batches", Part::Core, "5.6", "maps can't be read back after a restart", |_| probe::batches()),
    feature("bpf-filesystem", Part::Core, "4.4", "nothing outlives the agent", probe::bpf_filesystem),
    feature("netns-cookie", Part::Core, "5.14", "the node's own sockets can't be told from pods'", |_| {
        probe::netns_cookie()
    }),
    feature(
        "settings",
        Part::Core,
        "2.6",
        "forwarding can't be switched on, nor ports reserved",
        probe::settings,
    ),
    feature(
        "tcx",
        Part::Tcx,
        "6.6",
        "programs are attached by clsact: no link says whose they are, and anybody with tc can take them away",
        |_| probe::tcx(),
    ),
    feature("clsact", Part::Clsact, "4.5", "programs can't be attached to interfaces", |_| probe::clsact()),
    feature("cgroup2", Part::Sockets, "4.5", NO_SOCKETS, probe::cgroup),
    feature("connect4", Part::Sockets, "4.17", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET4_CONNECT)
    }),
    feature("connect6", Part::Sockets, "4.17", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET6_CONNECT)
    }),
    feature("sendmsg4", Part::Sockets, "4.18", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG)
    }),
    feature("sendmsg6", Part::Sockets, "4.18", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG)
    }),
    feature("recvmsg4", Part::Sockets, "5.2", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG)
    }),
    feature("recvmsg6", Part::Sockets, "5.2", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG)
    }),
    feature("getpeername4", Part::Sockets, "5.8", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME)
    }),
    feature("getpeername6", Part::Sockets, "5.8", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME)
    }),
    feature("post-bind4", Part::Sockets, "4.17", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET4_POST_BIND)
    }),
    feature("post-bind6", Part::Sockets, "4.17", NO_SOCKETS, |_| {
        probe::hook(bpf_attach_type::BPF_CGROUP_INET6_POST_BIND)
    }),
    feature("keys-in-memory", Part::Memory, "6.2", "the programs copy keys before they look them up", |_| {
        probe::keys_in_memory()
    }),
    feature("route-mtu", Part::Extra, "5.12", "what is told of a route's MTU is wrong", |_| {
        probe::told_by_btf("mtu_result")
    }),
    feature(
        "ipv6-checksums",
        Part::Extra,
        "6.16",
        "IPv6 packets that a device has summed up whole are summed up once more, or counted as damaged, once translated",
        |_| probe::told_by_btf("BPF_F_IPV6"),
    ),
    feature("ipv6", Part::Extra, "2.2", "no IPv6", |_| probe::file("/proc/sys/net/ipv6/conf/all/forwarding")),
    feature("compiler", Part::Extra, "3.18", "programs are interpreted, several times slower", |_| {
        probe::compiler()
    }),
    feature(
        "expedited-grace-periods",
        Part::Extra,
        "4.14",
        "where programs are attached by tcx, a pod's start takes some 25 ms more",
        |_| probe::writable("/sys/kernel/rcu_expedited"),
    ),
    feature("kernel-btf", Part::Extra, "5.4", "some features here can't be found out", |_| {
        probe::file(probe::KERNEL_BTF)
    }),
    feature(
        "verified-instructions",
        Part::Extra,
        "5.16",
        "status does not tell how much was verified",
        |_| probe::verified_instructions(),
    ),
];
