//! What a node's kernel maps hold, read by itself and not as the agent tells: all that decides about packets, with
//! backends in the place of ids and regions, so that two dumps are equal when packets fare alike.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::loaded_programs;
use fairlead_abi::{
    Address, Backend, Frontend, FrontendKey, LAYOUT_VERSION, Region, SourceRange, frontend_flags, maps,
};
use fairlead_harness::{Cluster, Node, binary, output};
use nix::sys::signal::Signal;

/// One line per frontend and range, as people would write it; equal lines, equal fate.
pub type Dump = BTreeMap<String, String>;

/// The maps of Services on that node.
///
/// # Errors
/// When they can't be read.
pub fn dump(node: &Node) -> Result<Dump> {
    let maps = ServiceMaps::open(node)?;
    let mut dump = Dump::new();
    // Ids differ from agent to agent: a Service port goes by its first frontend.
    let mut names = BTreeMap::<u32, String>::new();
    for entry in maps.frontends.iter() {
        let (key, frontend) = entry.context("read a frontend")?;
        let name = format!("{}/{}", socket(key.address, key.port.number()), key.protocol);
        if frontend.flags & frontend_flags::WHOLE == 0 {
            let first = names.entry(frontend.service).or_insert_with(|| name.clone());
            *first = first.clone().min(name.clone());
        }
        dump.insert(name, maps.describe(&key, &frontend)?);
    }
    for entry in maps.source_ranges.iter() {
        let (key, _) = entry.context("read a source range")?;
        let range = key.data();
        let service = names.get(&{ range.service }).cloned().unwrap_or_else(|| "nobody".to_owned());
        let bits = key.prefix_len() - u32::BITS;
        dump.insert(format!("{service} from {}/{bits}", IpAddr::from(range.address)), String::new());
    }
    for entry in maps.service_cidrs.iter() {
        let (key, flags) = entry.context("read a range of ClusterIPs")?;
        dump.insert(
            format!("range {}/{}", IpAddr::from(key.data()), key.prefix_len()),
            format!("flags {flags}"),
        );
    }
    Ok(dump)
}

/// The maps after the node's agent has been replaced by one that finds none. Whatever goes through the node's
/// Services is interrupted.
///
/// # Errors
/// When the agent does not stop or start.
pub fn dump_of_fresh_agent(cluster: &mut Cluster, node: &str) -> Result<Dump> {
    let node = cluster.node_mut(node)?;
    node.stop_proxy(Signal::SIGTERM)?;
    let mut cleanup = node.place().command(binary("fairlead-proxy")?)?;
    output(cleanup.arg("cleanup").arg("--bpffs").arg(node.layout().bpffs()))?;
    node.start_proxy()?;
    node.wait_for_proxy()?;
    dump(node)
}

/// Checks that two dumps are equal.
///
/// # Errors
/// When they are not; with the lines in which they differ.
pub fn same(what: &str, actual: &Dump, wanted: &Dump) -> Result<()> {
    let keys = actual.keys().chain(wanted.keys().filter(|key| !actual.contains_key(*key)));
    let differences: Vec<String> = keys
        .filter(|key| actual.get(*key) != wanted.get(*key))
        .map(|key| format!("{key}: {:?}, not {:?}", actual.get(key), wanted.get(key)))
        .collect();
    let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    ensure!(differences.is_empty(), "{what}: {} entries differ:\n{shown}", differences.len());
    Ok(())
}

/// The program that a link leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its own.
    pub id: u32,
    /// The same for all programs of the same instructions.
    pub tag: u64,
}

/// The program behind each pinned link of a node.
///
/// # Errors
/// When they can't be read.
pub fn attached_programs(node: &Node) -> Result<BTreeMap<String, Program>> {
    // Others' programs may come and go meanwhile.
    let tags: BTreeMap<u32, u64> = loaded_programs().flatten().map(|info| (info.id(), info.tag())).collect();
    let mut programs = BTreeMap::new();
    for pin in fs::read_dir(pins(node).join("links"))?.flatten() {
        let link = FdLink::from(PinnedLink::from_pin(pin.path())?);
        let id = link.info()?.program_id();
        let tag = *tags.get(&id).with_context(|| format!("no program {id}"))?;
        programs.insert(pin.file_name().to_string_lossy().into_owned(), Program { id, tag });
    }
    Ok(programs)
}

struct ServiceMaps {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
    source_ranges: LpmTrie<MapData, SourceRange, u32>,
    service_cidrs: LpmTrie<MapData, Address, u32>,
}

impl ServiceMaps {
    fn open(node: &Node) -> Result<Self> {
        let open =
            |name: &str| MapData::from_pin(pins(node).join(name)).with_context(|| format!("open {name}"));
        Ok(Self {
            frontends: Map::HashMap(open(maps::FRONTENDS)?).try_into()?,
            slots: Map::Array(open(maps::SLOTS)?).try_into()?,
            backends: Map::Array(open(maps::BACKENDS)?).try_into()?,
            source_ranges: Map::LpmTrie(open(maps::SOURCE_RANGES)?).try_into()?,
            service_cidrs: Map::LpmTrie(open(maps::SERVICE_CIDRS)?).try_into()?,
        })
    }

    fn describe(&self, key: &FrontendKey, frontend: &Frontend) -> Result<String> {
        ensure!(frontend.check == key.check(), "{key:?} has another key's check");
        let [mut internal, mut external] =
            [self.backends(frontend.internal)?, self.backends(frontend.external)?];
        // Ids ascend in these, and ids differ from agent to agent; the order in a Maglev table says something.
        internal.sort_unstable();
        external.sort_unstable();
        let maglev = self.backends(frontend.maglev)?;
        let mut table = DefaultHasher::new();
        maglev.hash(&mut table);
        let table = if maglev.is_empty() { 0 } else { table.finish() };
        let Frontend { flags, affinity, .. } = frontend;
        Ok(format!(
            "flags {flags} affinity {affinity} inside {internal:?} outside {external:?} maglev {table:x}"
        ))
    }

    fn backends(&self, region: Region) -> Result<Vec<SocketAddr>> {
        let backend = |slot| {
            let id = self.slots.get(&slot, 0).with_context(|| format!("read slot {slot}"))?;
            let backend = self.backends.get(&id, 0).with_context(|| format!("read backend {id}"))?;
            ensure!(backend.has_tenant(), "slot {slot} leads to backend {id}, which is nobody");
            Ok(SocketAddr::new(backend.address.into(), backend.port.number()))
        };
        (region.base..region.base + region.len).map(backend).collect()
    }
}

fn pins(node: &Node) -> PathBuf {
    node.layout().bpffs().join(format!("v{LAYOUT_VERSION}"))
}

fn socket(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}
