//! The loaded programs, their maps, and a way to hand them a packet.

use std::env;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuValues};
use aya::programs::{CgroupSock, CgroupSockAddr, ProgramError, SchedClassifier};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader, TestRun as _, TestRunOptions};
use fairlead_abi::{
    Address, Backend, Config, Counter, Endpoint, Flow, FlowKey, FragmentKey, Frontend, FrontendKey, Port,
    Reason, Region, endpoint_flags, globals, maps, marks, programs,
};
use fairlead_net::netns::Netns;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::net::if_::if_nametoindex;
use tempfile::TempDir;

use crate::packet::Packet;
use crate::place::{self, FAMILIES, Family, GATEWAY_MAC, Pod, UPLINK_MAC};

/// First port of the range that a new [`Node`] masquerades with.
pub const SNAT_FIRST: u16 = 50_000;

/// The tc programs.
const CLASSIFIERS: [&str; 5] =
    [programs::FROM_POD, programs::TO_POD, programs::FROM_WIRE, programs::TO_WIRE, programs::FROM_PODS];
/// The socket programs.
const SOCKETS: [&str; 8] = [
    programs::CONNECT4,
    programs::CONNECT6,
    programs::SENDMSG4,
    programs::SENDMSG6,
    programs::RECVMSG4,
    programs::RECVMSG6,
    programs::GETPEERNAME4,
    programs::GETPEERNAME6,
];
/// Maps are smaller than on a node: they are made and cleared for every test.
pub(crate) const CAPACITY: u32 = 2048;
/// How many connections there may be.
pub const PLACES: u32 = 512;

/// [`Endpoint::netns`] of the namespace that the programs run in: one more than `BPF_F_CURRENT_NETNS`, any number that
/// is negative.
const OWN_NAMESPACE: u32 = i32::MIN.cast_unsigned() + 1;
/// The index of an interface that is none of the pods' or uplinks.
const LOOPBACK: u32 = 1;

/// Where a packet meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// The pod sends it.
    FromPod(Pod),
    /// The node's stack sends it to the pod.
    ToPod(Pod),
    /// The node's stack, to which another interface has brought it, forwards it to the pod.
    Through(Pod),
    /// It arrives at the uplink.
    FromWire,
    /// The node's stack sends it out of the uplink.
    ToWire,
    /// It arrives at the uplink, were this the interface behind which another CNI has its pods.
    FromPods,
}

impl Hook {
    fn program(self) -> &'static str {
        match self {
            Self::FromPod(_) => programs::FROM_POD,
            Self::ToPod(_) | Self::Through(_) => programs::TO_POD,
            Self::FromWire => programs::FROM_WIRE,
            Self::ToWire => programs::TO_WIRE,
            Self::FromPods => programs::FROM_PODS,
        }
    }

    fn interface(self) -> &'static str {
        match self {
            Self::FromPod(pod) | Self::ToPod(pod) | Self::Through(pod) => pod.interface(),
            Self::FromWire | Self::ToWire | Self::FromPods => "uplink",
        }
    }

    /// The interface that has brought the packet, if this is the one where it is met; 0: the node made it.
    fn arrival(self, interface: u32) -> u32 {
        match self {
            Self::ToPod(_) | Self::ToWire => 0,
            Self::FromPod(_) | Self::FromWire | Self::FromPods => interface,
            Self::Through(_) => LOOPBACK,
        }
    }

    /// The packet in the frame that it arrives in here.
    #[must_use]
    pub fn frame(self, packet: Packet) -> Packet {
        match self {
            Self::FromPod(pod) => packet.frame(pod.pod_mac(), pod.host_mac()),
            Self::ToPod(pod) | Self::Through(pod) => packet.frame(pod.host_mac(), pod.pod_mac()),
            Self::FromWire | Self::FromPods => packet.frame(GATEWAY_MAC, UPLINK_MAC),
            Self::ToWire => packet.frame(UPLINK_MAC, GATEWAY_MAC),
        }
    }
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's return code.
    pub code: i32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Whether it bears a mark: at an interface's egress there is nothing left to do.
    pub is_marked: bool,
}

/// A node with two pods: programs, maps and surroundings.
///
/// There is one in a test process, since the verifier takes half a second for the programs; tests have it in
/// turn. It is held by file descriptors alone, so that nothing of it outlives the process.
pub struct Node {
    /// The loaded object.
    pub ebpf: Ebpf,
    netns: Netns,
    pub(crate) next_slot: u32,
}

/// A bpffs mounted on a temporary directory.
struct Mounted(TempDir);

impl Mounted {
    fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("fairlead-prog-").context("create a directory for bpffs")?;
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount bpffs (root is needed)")?;
        Ok(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path().display());
        }
    }
}

/// Asks for the programs that copy keys before they look them up.
const COPIED_KEYS: &str = "FAIRLEAD_COPIED_KEYS";

fn load(handover: u8, any_memory: bool) -> Result<Ebpf> {
    // The maps' pins are of no use here; they go, and the maps stay as long as the object.
    let pins = Mounted::new()?;
    let mut loader = EbpfLoader::new();
    let any_memory = u8::from(any_memory);
    loader.override_global(globals::ANY_MEMORY, &any_memory, true);
    loader.override_global(globals::HANDOVER, &handover, true);
    // As in an agent whose log is not at debug.
    loader.override_global("AYA_LOG_LEVEL", &0_u8, true).map_max_entries("AYA_LOGS", 4096);
    for map in [
        maps::FRONTENDS,
        maps::SLOTS,
        maps::BACKENDS,
        maps::FRAGMENTS,
        maps::SOCKETS,
        maps::AFFINITY,
        maps::SOURCE_RANGES,
        maps::SERVICE_CIDRS,
        maps::EGRESS,
        maps::PEERS,
        maps::CELLS,
        maps::ROWS,
    ] {
        loader.map_max_entries(map, CAPACITY);
    }
    loader.map_max_entries(maps::PLACES, PLACES);
    loader.map_max_entries(maps::FLOWS, 2 * PLACES);
    let mut ebpf = loader
        .default_map_pin_directory(pins.path())
        .load(fairlead_object::OBJECT)
        .context("load the object (built without eBPF programs? make setup)")?;
    for name in CLASSIFIERS {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
        program.load().with_context(|| format!("load {name}"))?;
    }
    Ok(ebpf)
}

impl Node {
    /// The node as a new one: its own addresses, its two pods, one port to masquerade with, so that tests know
    /// which; no Services, no flows, nothing counted.
    ///
    /// # Panics
    /// Without root or the object, or when the kernel refuses a program: then with the verifier's log.
    pub fn start() -> MutexGuard<'static, Self> {
        static NODE: OnceLock<Mutex<Node>> = OnceLock::new();
        Self::ready(&NODE, 0)
    }

    /// The same with the variant of the programs that stands before another generation's, and leaves it everything until
    /// [`Self::set_step`] says otherwise.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_handover() -> MutexGuard<'static, Self> {
        static NODE: OnceLock<Mutex<Node>> = OnceLock::new();
        Self::ready(&NODE, 1)
    }

    fn ready(cell: &'static OnceLock<Mutex<Self>>, handover: u8) -> MutexGuard<'static, Self> {
        let load = || Self::load(handover).unwrap_or_else(|error| panic!("{error:?}"));
        let node = cell.get_or_init(|| Mutex::new(load()));
        // A test that failed leaves nothing that `reset` does not clear.
        let mut node = node.lock().unwrap_or_else(PoisonError::into_inner);
        node.reset();
        node
    }

    /// As the kernel takes them, or as one does that wants keys copied (before 6.2), which can also be asked for.
    fn load(handover: u8) -> Result<Self> {
        let netns = place::build()?;
        let as_it_is = match env::var_os(COPIED_KEYS) {
            None => load(handover, true),
            Some(_) => load(handover, false),
        };
        let ebpf = as_it_is.or_else(|error| load(handover, false).map_err(|_| error))?;
        Ok(Self { ebpf, netns, next_slot: 0 })
    }

    /// Makes the node a new one again.
    ///
    /// # Panics
    /// When a map refuses.
    pub fn reset(&mut self) {
        self.forget();
        self.clear_tables();
        self.set_snat_ports(SNAT_FIRST, 1);
        for id in 0..CAPACITY {
            array(&mut self.ebpf, maps::BACKENDS).set(id, Backend::default(), 0).expect("vacate a backend");
        }
        clear::<Address, Endpoint>(&mut self.ebpf, maps::ENDPOINTS);
        for pod in Pod::ALL {
            for family in FAMILIES {
                self.put_endpoint(pod, pod.ip(family), 0);
            }
        }
        for (map, count) in [(maps::COUNTERS, Counter::COUNT), (maps::DROPS, Reason::COUNT)] {
            let map = self.ebpf.map_mut(map).expect("the map");
            let mut map: PerCpuArray<_, u64> = map.try_into().expect("an array");
            for index in 0..count {
                let zeroes = PerCpuValues::try_from(vec![0; nr_cpus().expect("count CPUs")]);
                map.set(index, zeroes.expect("one for each CPU"), 0).expect("clear a counter");
            }
        }
    }

    /// Gives the pod one more address, whose sockets are looked for in the node's own namespace.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn add_endpoint(&mut self, pod: Pod, address: IpAddr) {
        self.put_endpoint(pod, address, OWN_NAMESPACE);
    }

    /// Has the queue of the pod's interface limit what it is sent.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn shape(&mut self, pod: Pod) {
        for family in FAMILIES {
            let address = Address::from(pod.ip(family));
            let mut table = hash::<Address, Endpoint>(&mut self.ebpf, maps::ENDPOINTS);
            let endpoint = table.get(&address, 0).expect("the pod's endpoint");
            let shaped = Endpoint { flags: endpoint_flags::SHAPED, ..endpoint };
            table.insert(address, shaped, 0).expect("replace an endpoint");
        }
    }

    fn put_endpoint(&mut self, pod: Pod, address: IpAddr, netns: u32) {
        let endpoint = Endpoint {
            ifindex: index_of(&self.netns, pod.interface()),
            index: pod as u32,
            pod_mac: pod.pod_mac(),
            host_mac: pod.host_mac(),
            netns,
            flags: 0,
        };
        hash(&mut self.ebpf, maps::ENDPOINTS)
            .insert(Address::from(address), endpoint, 0)
            .expect("insert an endpoint");
    }

    /// Loads the socket programs too.
    ///
    /// # Errors
    /// When the kernel refuses one: then with the verifier's log.
    pub fn load_socket_programs(&mut self) -> Result<()> {
        for name in SOCKETS {
            let program: &mut CgroupSockAddr = self.ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        for name in [programs::BIND4, programs::BIND6] {
            let program: &mut CgroupSock = self.ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(())
    }

    /// Hands `packet` to the program at `hook`.
    ///
    /// # Panics
    /// When the kernel does not run the program.
    pub fn send(&self, hook: Hook, packet: &[u8]) -> Outcome {
        self.netns.run(|| self.send_inside(hook, packet)).expect("enter the namespace")
    }

    /// The index of the interface where a packet meets the program.
    ///
    /// # Panics
    /// When the namespace can't be entered.
    #[must_use]
    pub fn interface(&self, hook: Hook) -> u32 {
        index_of(&self.netns, hook.interface())
    }

    /// Runs `work` in the node's namespace, where [`Self::send_inside`] is at home.
    ///
    /// # Panics
    /// When the namespace can't be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns.run(work).expect("enter the namespace")
    }

    /// As [`Self::send`], from a thread that is in the node's namespace already: see [`Self::inside`].
    ///
    /// # Panics
    /// When the kernel does not run the program.
    pub fn send_inside(&self, hook: Hook, packet: &[u8]) -> Outcome {
        self.try_send_inside(hook, packet).unwrap_or_else(|| panic!("{hook:?}: no packet for the kernel"))
    }

    /// As [`Self::send_inside`]; `None` if the kernel's test run does not take the bytes for a packet: newer
    /// kernels refuse an IP packet without a whole header, which a network interface may bring nevertheless.
    ///
    /// # Panics
    /// When the kernel does not run the program for another reason.
    pub fn try_send_inside(&self, hook: Hook, packet: &[u8]) -> Option<Outcome> {
        self.run(hook, packet, 0)
    }

    /// As [`Self::send`], for a packet that the kernel is still to cut into segments of this size, if it is not 0.
    ///
    /// # Panics
    /// When the kernel does not run the program.
    pub fn send_segmented(&self, hook: Hook, packet: &[u8], segment: u32) -> Outcome {
        let outcome = self.inside(|| self.run(hook, packet, segment));
        outcome.unwrap_or_else(|| panic!("{hook:?}: no packet for the kernel"))
    }

    fn run(&self, hook: Hook, packet: &[u8], segment: u32) -> Option<Outcome> {
        let program = self.ebpf.program(hook.program()).expect("the object has the program");
        let program: &SchedClassifier = program.try_into().expect("it is for tc");
        let interface = if_nametoindex(hook.interface()).expect("the namespace has the interface");
        let context = context(hook.arrival(interface), interface, segment);
        let mut out = vec![0; packet.len() + 256];
        let mut context_out = [0; 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ctx_out: Some(&mut context_out),
            ..TestRunOptions::new()
        };
        let result = match program.test_run(options) {
            Ok(result) => result,
            Err(ProgramError::SyscallError(error)) if error.io_error.kind() == ErrorKind::InvalidInput => {
                return None;
            }
            Err(error) => panic!("{hook:?}: {error:?}"),
        };
        out.truncate(result.data_size_out as usize);
        let is_marked = context_out[8..12] != [0; 4];
        Some(Outcome { code: result.return_value.cast_signed(), packet: out, is_marked })
    }

    /// Rewrites the node's configuration.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_snat_ports(&mut self, first: u16, count: u16) {
        self.set_config(Config { snat_first: first, snat_count: count, ..Self::config() });
    }

    /// Says how far a handover has come: one of the steps of [`fairlead_abi::config_flags`], or 0.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_step(&mut self, step: u32) {
        self.set_config(Config { flags: step, ..Self::config() });
    }

    /// The configuration of a new node.
    #[must_use]
    pub fn config() -> Config {
        Config {
            node_v4: Family::V4.node().into(),
            node_v6: Family::V6.node().into(),
            snat_first: SNAT_FIRST,
            snat_count: 1,
            places: PLACES,
            ..Config::default()
        }
    }

    /// Rewrites the node's configuration.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_config(&mut self, config: Config) {
        array(&mut self.ebpf, maps::CONFIG).set(0, config, 0).expect("write the configuration");
    }

    /// Gives the id to a backend of this address and generation; generation 0 vacates it.
    ///
    /// # Panics
    /// When the map refuses it.
    pub fn set_backend(&mut self, id: u32, address: SocketAddr, generation: u32) {
        let (address, port) = split(address);
        let backend = Backend { address, port, generation, ..Backend::default() };
        array(&mut self.ebpf, maps::BACKENDS).set(id, backend, 0).expect("write a backend");
    }

    /// Makes `address` a frontend of these backends for clients inside and outside of the cluster.
    ///
    /// # Panics
    /// When a map refuses it.
    pub fn set_frontend(&mut self, protocol: u8, address: SocketAddr, backends: [&[u32]; 2], flags: u32) {
        let [internal, external] = backends.map(|ids| self.add_region(ids));
        self.put_frontend(
            protocol,
            address,
            Frontend { service: 1, flags, internal, external, ..Frontend::default() },
        );
    }

    /// Writes these ids into slots of their own.
    ///
    /// # Panics
    /// When the map refuses one.
    pub fn add_region(&mut self, ids: &[u32]) -> Region {
        let mut slots = array::<u32>(&mut self.ebpf, maps::SLOTS);
        for (slot, id) in (self.next_slot..).zip(ids) {
            slots.set(slot, *id, 0).expect("write a slot");
        }
        let region = Region { base: self.next_slot, len: ids.len() as u32 };
        self.next_slot += region.len;
        region
    }

    /// Forgets every frontend, flow, fragment and mark.
    ///
    /// # Panics
    /// When a map refuses.
    pub fn forget(&mut self) {
        clear::<FrontendKey, Frontend>(&mut self.ebpf, maps::FRONTENDS);
        clear::<FlowKey, Flow>(&mut self.ebpf, maps::FLOWS);
        clear::<FragmentKey, Flow>(&mut self.ebpf, maps::FRAGMENTS);
        let mut marks = array::<u32>(&mut self.ebpf, maps::MARKS);
        for pod in Pod::ALL {
            marks.set(pod as u32, 0, 0).expect("clear a mark");
        }
        self.next_slot = 0;
    }

    /// Whether the pod is marked as part of a translated flow.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn is_marked(&self, pod: Pod) -> bool {
        let map = self.ebpf.map(maps::MARKS).expect("the map");
        let map: Array<_, u32> = map.try_into().expect("an array");
        map.get(&(pod as u32), 0).expect("read a mark") & marks::TRANSLATED != 0
    }

    /// Marks the pod as part of a translated flow, as the agent does for one that it enters.
    ///
    /// # Panics
    /// When the map refuses.
    pub fn mark(&mut self, pod: Pod) {
        let mark = marks::TRANSLATED;
        array(&mut self.ebpf, maps::MARKS).set(pod as u32, mark, 0).expect("write a mark");
    }

    /// Every flow entry.
    ///
    /// # Panics
    /// When the map can't be read.
    #[must_use]
    pub fn flows(&self) -> Vec<(FlowKey, Flow)> {
        let map: HashMap<_, FlowKey, Flow> =
            self.ebpf.map(maps::FLOWS).expect("the map").try_into().expect("a hash");
        map.iter().map(|entry| entry.expect("read a flow")).collect()
    }

    /// The flow entry that matches this packet as it arrives.
    #[must_use]
    pub fn flow(&self, packet: &Packet) -> Option<Flow> {
        let (source, source_port) = split(packet.source);
        let (destination, destination_port) = split(packet.destination);
        let matches = |key: &FlowKey| {
            (key.source, key.source_port, key.destination, key.destination_port)
                == (source, source_port, destination, destination_port)
        };
        self.flows().into_iter().find(|(key, _)| matches(key)).map(|(_, flow)| flow)
    }

    /// Changes every flow entry, as time or a full table would.
    ///
    /// # Panics
    /// When the map refuses.
    pub fn edit_flows(&mut self, edit: impl Fn(&mut Flow)) {
        for (key, mut flow) in self.flows() {
            edit(&mut flow);
            hash(&mut self.ebpf, maps::FLOWS).insert(key, flow, 0).expect("write a flow");
        }
    }

    /// Removes flow entries, as an agent that is killed while it removes more.
    ///
    /// # Panics
    /// When the map refuses.
    pub fn remove_flows(&mut self, which: impl Fn(&Flow) -> bool) {
        for (key, _) in self.flows().into_iter().filter(|(_, flow)| which(flow)) {
            hash::<FlowKey, Flow>(&mut self.ebpf, maps::FLOWS).remove(&key).expect("remove a flow");
        }
    }

    /// How often each counter has counted, in order of number.
    #[must_use]
    pub fn counters(&self) -> Vec<u64> {
        self.sums(maps::COUNTERS, Counter::COUNT)
    }

    /// How often each reason has dropped, in order of number.
    #[must_use]
    pub fn drops(&self) -> Vec<u64> {
        self.sums(maps::DROPS, Reason::COUNT)
    }

    fn sums(&self, name: &str, count: u32) -> Vec<u64> {
        let map: PerCpuArray<_, u64> = self.ebpf.map(name).expect("the map").try_into().expect("an array");
        (0..count).map(|index| map.get(&index, 0).expect("read a counter").iter().sum()).collect()
    }
}

/// An address and port as the maps hold them.
pub(crate) fn split(address: SocketAddr) -> (Address, Port) {
    (address.ip().into(), Port::new(address.port()))
}

fn index_of(netns: &Netns, interface: &str) -> u32 {
    netns.run(|| if_nametoindex(interface)).expect("enter the namespace").expect("the interface")
}

/// `struct __sk_buff` up to and with `gso_size`. Three members are set: `ingress_ifindex`, `ifindex`, `gso_size`.
fn context(arrival: u32, interface: u32, segment: u32) -> [u8; 180] {
    let mut context = [0; 180];
    context[36..40].copy_from_slice(&arrival.to_ne_bytes());
    context[40..44].copy_from_slice(&interface.to_ne_bytes());
    context[176..180].copy_from_slice(&segment.to_ne_bytes());
    context
}

pub(crate) fn hash<'a, K: aya::Pod, V: aya::Pod>(
    ebpf: &'a mut Ebpf,
    name: &str,
) -> HashMap<&'a mut MapData, K, V> {
    ebpf.map_mut(name).expect("the map").try_into().expect("a hash of these types")
}

pub(crate) fn array<'a, V: aya::Pod>(ebpf: &'a mut Ebpf, name: &str) -> Array<&'a mut MapData, V> {
    ebpf.map_mut(name).expect("the map").try_into().expect("an array of this type")
}

pub(crate) fn clear<K: aya::Pod, V: aya::Pod>(ebpf: &mut Ebpf, name: &str) {
    let mut map = hash::<K, V>(ebpf, name);
    let keys: Vec<K> = map.keys().map(|key| key.expect("read a key")).collect();
    for key in keys {
        map.remove(&key).expect("remove a key");
    }
}
