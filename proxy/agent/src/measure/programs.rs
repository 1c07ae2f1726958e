//! Packets through programs that are loaded for this alone: BPF_PROG_TEST_RUN, kernel 5.8.
//!
//! ```text
//!   client 10.244.0.2 ─┐                      ┌─ Service 10.96.0.10:80 ──► server 10.244.0.3:8080
//!   server 10.244.0.3 ─┴─ (both at loopback) ─┼─ NodePort 192.0.2.1:30080 ──► the same
//!   outside 198.51.100.7, by the uplink       └─ Service 10.96.0.11:80, without endpoints
//! ```
//!
//! The maps are small, made anew, and pinned for as long as loading takes in a directory of their own; no program is
//! attached, and what a program decides is not carried out.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aya::{TestRun as _, TestRunOptions};
use fairlead_abi::{
    Address, Backend, Config, Endpoint, Frontend, Isolation, Port, Region, frontend_flags, policies, programs,
};
use fairlead_core::dataplane::{PolicyMaps as _, ServiceMaps as _};
use fairlead_core::model::{Protocol, frontend_key};

use super::Cost;
use crate::dataplane::load::{self, Loaded, Offers};
use crate::dataplane::sizes::Sizes;
use crate::dataplane::{DataplaneError, Pins};

/// The interface that test runs take packets to come from: loopback.
const LOOPBACK: u32 = 1;
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 3);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const EMPTY: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_080;
const SERVER_PORT: u16 = 8080;
/// Room for the connections of all rounds.
const PLACES: u32 = 1 << 15;
/// The most rounds: each begins two connections.
pub const MOST_ROUNDS: usize = 10_000;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const SYN_ACK: u8 = 0x12;

/// Removes the pins again, whatever happens.
struct Private(PathBuf);

impl Drop for Private {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.0) {
            tracing::warn!("remove {}: {e}", self.0.display());
        }
    }
}

/// Loads the programs and hands packets of each kind to them, so many of each. The first cost is that of a frame that no
/// program looks into: the measurement's own.
///
/// # Errors
/// When there is no bpf filesystem, or the kernel refuses a map, a program or a run.
pub fn measure(bpffs: &Path, rounds: usize, offers: Offers) -> Result<Vec<Cost>, DataplaneError> {
    let object = bpffs.display().to_string();
    if !load::is_bpffs(bpffs).map_err(|e| DataplaneError::new("examine", object.clone(), e))? {
        return Err(DataplaneError::new("use", object, "it is on no bpf filesystem: see --bpffs"));
    }
    let private = Private(bpffs.join(format!("bench-self-{}", std::process::id())));
    let mut loaded =
        load::load(fairlead_object::OBJECT, &Pins::new(&private.0), &small(), &BTreeMap::new(), offers)?;
    // From here on the maps live by their descriptors alone.
    drop(private);
    furnish(&mut loaded)?;
    run(&mut loaded, rounds)
}

fn small() -> Sizes {
    Sizes {
        frontends: 16,
        slots: 16,
        backends: 16,
        endpoints: 16,
        places: PLACES,
        affinities: 16,
        source_ranges: 16,
        policies: 16,
        cells: 16,
        rows: 16,
        peers: 16,
    }
}

/// Two pods under no policy, and Services as the picture has them.
fn furnish(loaded: &mut Loaded) -> Result<(), DataplaneError> {
    let maps = &mut loaded.maps;
    let failed = |what: &'static str| move |e| DataplaneError::new("write", what, Box::new(e) as Box<_>);
    let config = Config {
        node_v4: IpAddr::from(NODE).into(),
        snat_first: 49_152,
        snat_count: 16_384,
        places: PLACES,
        ..Config::default()
    };
    maps.config.set(0, config, 0).map_err(failed("the configuration"))?;
    for (index, pod) in [(0, CLIENT), (1, SERVER)] {
        let endpoint = Endpoint { ifindex: LOOPBACK, index, ..Endpoint::default() };
        maps.endpoints
            .insert(Address::from(IpAddr::from(pod)), endpoint, 0)
            .map_err(failed("an endpoint"))?;
        let open = Isolation { ingress: policies::OPEN, egress: policies::OPEN };
        let isolated = maps.policies.write_isolation(index, open);
        isolated.map_err(|e| DataplaneError::new("write", "a pod's isolation", e))?;
    }
    let address = IpAddr::from(SERVER).into();
    let backend = Backend { address, port: Port::new(SERVER_PORT), reserved: 0, generation: 1 };
    let mut write = || {
        maps.services.write_backend(1, &backend)?;
        maps.services.write_slots(0, &[1])?;
        let serving = Region { base: 0, len: 1 };
        for (address, port, region) in
            [(SERVICE, PORT, serving), (NODE, NODE_PORT, serving), (EMPTY, PORT, Region::default())]
        {
            let key = frontend_key(address.into(), port, Protocol::Tcp);
            let frontend = Frontend {
                service: u32::from(port),
                flags: if region.len > 0 { frontend_flags::HAS_ENDPOINTS } else { 0 },
                internal: region,
                external: region,
                check: key.check(),
                ..Frontend::default()
            };
            maps.services.write_frontend(&key, &frontend)?;
        }
        Ok(())
    };
    write().map_err(|e: fairlead_core::dataplane::MapError| DataplaneError::new("write", "a Service", e))
}

/// A kind of packet: what it is called, the program that sees it, and the packet of a round.
type Kind = (&'static str, &'static str, fn(u16) -> Vec<u8>);

/// In this order: what comes first leaves the pods out of the flow table.
const KINDS: [Kind; 8] = [
    ("a frame that is no IP: the measurement itself", programs::FROM_POD, |_| frame_of_nothing()),
    ("pod → pod, of no Service", programs::FROM_POD, |_| tcp(ACK, (CLIENT, 40_000), (SERVER, SERVER_PORT))),
    ("pod → ClusterIP, first packet", programs::FROM_POD, |round| {
        tcp(SYN, (CLIENT, round), (SERVICE, PORT))
    }),
    ("pod → ClusterIP, later packet", programs::FROM_POD, |round| {
        tcp(ACK, (CLIENT, round), (SERVICE, PORT))
    }),
    ("its answer", programs::FROM_POD, |round| tcp(SYN_ACK, (SERVER, SERVER_PORT), (CLIENT, round))),
    ("outside → NodePort, first packet", programs::FROM_WIRE, |round| {
        tcp(SYN, (OUTSIDE, round), (NODE, NODE_PORT))
    }),
    ("outside → NodePort, later packet", programs::FROM_WIRE, |round| {
        tcp(ACK, (OUTSIDE, round), (NODE, NODE_PORT))
    }),
    ("pod → Service without endpoint, refused", programs::FROM_POD, |round| {
        tcp(SYN, (CLIENT, round), (EMPTY, PORT))
    }),
];

fn run(loaded: &mut Loaded, rounds: usize) -> Result<Vec<Cost>, DataplaneError> {
    let rounds = rounds.clamp(1, MOST_ROUNDS);
    let mut costs = Vec::new();
    for (what, program, packet) in KINDS {
        let classifier = loaded.programs.classifier(program)?;
        let mut took = Vec::with_capacity(rounds);
        for round in 0..rounds {
            // Ports of their own, so that each first packet begins a connection.
            let packet = packet(20_000 + round as u16);
            let mut out = vec![0; packet.len() + 256];
            let options =
                TestRunOptions { data_in: Some(&packet), data_out: Some(&mut out), ..TestRunOptions::new() };
            let run =
                classifier.test_run(options).map_err(|e| DataplaneError::new("run program", program, e))?;
            took.push(run.duration);
        }
        costs.push(Cost::of(what, took));
    }
    costs.push(look_ups(loaded, rounds)?);
    Ok(costs)
}

/// What the agent pays to look into a map; a program that looks up the same pays no system call.
fn look_ups(loaded: &Loaded, rounds: usize) -> Result<Cost, DataplaneError> {
    let key = frontend_key(SERVICE.into(), PORT, Protocol::Tcp);
    let frontends = &loaded.maps.services.frontends.map;
    let mut took = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let started = Instant::now();
        let found = frontends.get(&key, 0);
        took.push(started.elapsed());
        found.map_err(|e| DataplaneError::new("read map", "FRONTENDS", e))?;
    }
    Ok(Cost::of("a look-up by the agent, a system call", took))
}

/// An Ethernet frame of a kind for local experiments (IEEE 802, 88b5).
fn frame_of_nothing() -> Vec<u8> {
    let mut frame = vec![0; 64];
    frame[12..14].copy_from_slice(&0x88b5_u16.to_be_bytes());
    frame
}

/// A TCP segment without data in a frame; its checksums are not what they should be, and nobody looks.
fn tcp(
    flags: u8,
    (source, source_port): (Ipv4Addr, u16),
    (destination, destination_port): (Ipv4Addr, u16),
) -> Vec<u8> {
    let mut frame = vec![0; 14];
    frame[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    frame.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(source_port.to_be_bytes());
    frame.extend(destination_port.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}
