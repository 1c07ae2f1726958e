//! The dataplane against the real kernel: maps, links and endpoints, each test in a network namespace and on
//! a bpf filesystem of its own.

mod endpoints;
mod node;
mod policies;
mod services;
mod sockets;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use fairlead_abi::{
    Address, Backend, Config, Flow, FlowKey, Frontend, FrontendKey, Port, Region, SocketClient,
    endpoint_flags, flow_flags, frontend_flags, maps, marks, protocol,
};
use fairlead_core::dataplane::{RangeKey, ServiceMaps, SourceRangeKey};
use fairlead_net::agent::{PodRef, PortMapping, Registration};
use fairlead_net::netns::{NamedNetns, current_cookie};
use fairlead_proxy::cleanup;
use fairlead_proxy::cli::ask::Output;
use fairlead_proxy::cli::cleanup::Cleanup;
use fairlead_proxy::cli::takeover::HandOver;
use fairlead_proxy::dataplane::Pins;
use fairlead_proxy::dataplane::clients::Clients;
use fairlead_proxy::dataplane::endpoints::{Endpoints, Guard};
use fairlead_proxy::dataplane::links::{Attachment, Datapath, Links, Place};
use fairlead_proxy::dataplane::load::{Loaded, Offers, load, mount_bpffs};
use fairlead_proxy::dataplane::services::KernelMaps;
use fairlead_proxy::dataplane::sizes::Sizes;
use fairlead_proxy::interfaces;
use fairlead_proxy::uplinks::{Fixed, Uplinks};
use nix::mount::{MntFlags, umount2};
use nix::net::if_::if_nametoindex;

const SIZES: Sizes = Sizes {
    frontends: 4,
    slots: 64,
    backends: 64,
    endpoints: 8,
    places: 512,
    affinities: 64,
    source_ranges: 4,
    policies: 8,
    cells: 64,
    rows: 64,
    peers: 64,
};

/// Takes away all that there is on that bpf filesystem, and in the caller's network namespace.
fn cleanup(bpffs: &Path) -> anyhow::Result<cleanup::Report> {
    let nowhere = bpffs.with_file_name("nowhere");
    cleanup::cleanup(&Cleanup {
        bpffs: bpffs.to_owned(),
        state_dir: nowhere.clone(),
        socket: nowhere.join("agent.sock"),
        api_servers_file: nowhere.join("api-servers.json"),
        proc_sys: nowhere,
        dry_run: false,
        force: false,
        hand_over: HandOver::default(),
        output: Output::Text,
    })
}

/// A bpf filesystem that goes with the test.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { directory: tempfile::tempdir().expect("a directory") };
        mount_bpffs(&room.bpffs()).expect("a bpf filesystem");
        room
    }

    fn bpffs(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.bpffs())
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("endpoints")
    }

    fn load(&self) -> Loaded {
        load(fairlead_object::OBJECT, &self.pins(), &SIZES, &BTreeMap::new(), Offers::ALL).expect("loaded")
    }

    /// Links and endpoints of an agent that has just started.
    fn start(&self, datapath: Datapath) -> (Arc<Mutex<Links>>, Endpoints) {
        let Loaded { maps, programs, .. } = self.load();
        let links = Arc::new(Mutex::new(Links::new(programs, &self.pins(), datapath).expect("links")));
        links.lock().expect("not poisoned").adopt().expect("adopted");
        let clients = Arc::new(Mutex::new(maps.clients));
        let endpoints = Endpoints::restore(
            maps.endpoints,
            maps.marks,
            clients,
            Arc::clone(&links),
            Box::new(Open),
            self.files(),
        )
        .expect("restored");
        (links, endpoints)
    }

    /// A map as the next agent, or anybody else, finds it.
    fn map<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        let data = MapData::from_pin(self.pins().map(name)).expect("a pin");
        Map::HashMap(data).try_into().expect("a hash")
    }

    fn client(&self, cookie: u64) -> Option<SocketClient> {
        self.map(maps::CLIENTS).get(&cookie, 0).ok()
    }

    /// The socket hooks at work on sockets of this process, where these are in the namespace of the caller.
    fn hook(&self) -> (KernelMaps, Clients) {
        let Loaded { mut maps, programs, .. } = self.load();
        let host_netns = current_cookie().expect("a cookie");
        let node_v4 = Address::from(address("127.0.0.1"));
        maps.config.set(0, Config { node_v4, host_netns, ..Config::default() }, 0).expect("configured");
        let mut links = Links::new(programs, &self.pins(), Datapath::Auto).expect("links");
        links.attach_sockets(&own_cgroup()).expect("attached");
        (maps.services, maps.clients)
    }

    fn link_pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pins().links()).expect("listed");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}

/// No policies: every pod is admitted.
struct Open;

impl Guard for Open {
    fn restore(&mut self, _index: u32, _is_own: bool, _pod: &PodRef, _addresses: &[IpAddr]) {}

    fn admit(&mut self, _index: u32, _pod: &PodRef, _addresses: &[IpAddr]) -> Result<(), String> {
        Ok(())
    }

    fn release(&mut self, _index: u32) {}
}

/// Runs a test in a network namespace of its own, which goes with it.
fn in_netns(test: impl FnOnce() + Send) {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let namespace =
        NamedNetns::create(&format!("flagent-{}-{serial}", std::process::id())).expect("a namespace");
    namespace.netns().run(test).expect("entered");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// A veth pair, of which the one end would be moved into a pod.
fn pod(name: &str, address: &str) -> Registration {
    ip(&format!("link add {name} type veth peer name p{name}"));
    Registration {
        container_id: format!("container-{name}"),
        ifname: "eth0".into(),
        pod: PodRef { namespace: "default".into(), name: name.into(), uid: name.into() },
        host_ifname: name.into(),
        host_ifindex: if_nametoindex(name).expect("an interface"),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        addresses: vec![self::address(address)],
        netns_cookie: Some(u64::MAX - u64::from(if_nametoindex(name).expect("an interface"))),
        port_mappings: Vec::new(),
        is_shaped: false,
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn key(port: u16) -> FrontendKey {
    key_at("10.96.0.1", port)
}

fn key_at(text: &str, port: u16) -> FrontendKey {
    FrontendKey { address: address(text).into(), port: Port::new(port), protocol: protocol::TCP, reserved: 0 }
}

/// The cgroup that this process is in. The hooks let sockets of other namespaces pass.
fn own_cgroup() -> PathBuf {
    let of_process = fs::read_to_string("/proc/self/cgroup").expect("cgroups");
    let path = of_process.lines().find_map(|line| line.strip_prefix("0::/")).expect("a cgroup");
    cgroup_root().join(path)
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let root = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 hierarchy");
    PathBuf::from(root.split(' ').nth(4).expect("a mount point"))
}
