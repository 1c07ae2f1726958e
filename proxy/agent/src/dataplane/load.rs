//! From the embedded object to maps and programs in the kernel.
//!
//! Every program passes the verifier before anything that is attached is touched, and a load that fails
//! takes the pins that it made away again, with the directories: what ran before goes on as it was. Where another layout's
//! flows are to be taken over, the variant of the programs that does so is loaded as well.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo, RingBuf};
use aya::programs::{Program, ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use aya_obj::Object;
use aya_obj::maps::PinningType;
use fairlead_abi::{Address, Config, Endpoint, globals, maps, programs};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::clients::Clients;
use super::counters::Counters;
use super::egress::EgressMap;
use super::flows::FlowTable;
use super::policies::{DropCounts, KernelPolicyMaps, PolicyCapacity};
use super::program_log::{self, ProgramLog};
use super::services::{Batched, CapacityOf, KernelMaps};
use super::sizes::{MapSize, Sizes};
use super::{DataplaneError, Pins, sys};
use crate::errors::chain;

/// How many of the verifier's lines an error shows.
const VERIFIER_LINES: usize = 4;
/// How lines of the verifier begin that only count.
const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed "];

/// The maps that the agent reads or writes.
pub struct Maps {
    /// [`maps::CONFIG`].
    pub config: Array<MapData, Config>,
    /// [`maps::FRONTENDS`], [`maps::SLOTS`], [`maps::BACKENDS`], [`maps::SOURCE_RANGES`] and [`maps::SERVICE_CIDRS`].
    pub services: KernelMaps,
    /// [`maps::ENDPOINTS`].
    pub endpoints: HashMap<MapData, Address, Endpoint>,
    /// [`maps::MARKS`].
    pub marks: Array<MapData, u32>,
    /// [`maps::COUNTERS`] and [`maps::DROPS`].
    pub counters: Counters,
    /// [`maps::CLIENTS`].
    pub clients: Clients,
    /// [`maps::FLOWS`].
    pub flows: FlowTable,
    /// The maps of policies.
    pub policies: KernelPolicyMaps,
    /// How many packets each policy dropped.
    pub drop_counts: DropCounts,
    /// [`maps::EGRESS`].
    pub egress: EgressMap,
    /// [`maps::EVENTS`].
    pub events: RingBuf<MapData>,
}

/// The programs, accepted by the verifier and attached nowhere yet.
pub struct Programs {
    pub(super) ebpf: Ebpf,
}

impl Programs {
    /// The descriptor of the program of that name.
    pub(super) fn fd(&self, name: &str) -> Result<BorrowedFd<'_>, DataplaneError> {
        let program = self.ebpf.program(name).ok_or_else(|| absent("find program", name))?;
        let fd = program.fd().map_err(|e| DataplaneError::new("use program", name, e))?;
        Ok(fd.as_fd())
    }

    /// The tc program of that name.
    pub(crate) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, DataplaneError> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| absent("find program", name))?;
        program.try_into().map_err(|e| DataplaneError::new("use program", name, e))
    }

    /// What the kernel says of each program that is loaded, in order of name.
    pub fn facts(&self) -> BTreeMap<String, ProgramFacts> {
        let facts = |(name, program): (&str, &Program)| {
            let fd = program.fd().ok()?;
            let verified = program.info().ok().and_then(|info| info.verified_instruction_count());
            let (runs, nanoseconds) = sys::program_runs(fd.as_fd()).unwrap_or_default();
            Some((name.to_owned(), ProgramFacts { verified, runs, nanoseconds }))
        };
        self.ebpf.programs().filter_map(facts).collect()
    }
}

/// What the kernel says of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramFacts {
    /// How many instructions the verifier walked, where the kernel says (5.16).
    pub verified: Option<u32>,
    /// How often it ran while the kernel counted (`sysctl kernel.bpf_stats_enabled`).
    pub runs: u64,
    /// For how long in all, in nanoseconds.
    pub nanoseconds: u64,
}

/// What the kernel offers beyond what is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offers {
    /// Links at interfaces.
    pub tcx: bool,
    /// All that the hooks of sockets need: without it their programs are not loaded.
    pub sockets: bool,
    /// That hooks of sockets say why they refuse.
    pub errors: bool,
    /// That maps take keys and values from any memory.
    pub any_memory: bool,
}

impl Offers {
    /// Everything.
    pub const ALL: Self = Self { tcx: true, sockets: true, errors: true, any_memory: true };

    /// Has the programs make do without what the kernel lacks.
    fn tell(self, loader: &mut EbpfLoader<'_>) {
        if !self.errors {
            loader.override_global(globals::SAYS_WHY, &0_u8, true);
        }
        if !self.any_memory {
            loader.override_global(globals::ANY_MEMORY, &0_u8, true);
        }
    }
}

/// What [`load`] put into the kernel, or found there.
pub struct Loaded {
    /// The maps.
    pub maps: Maps,
    /// The programs.
    pub programs: Programs,
    /// The maps' sizes.
    pub sizes: Vec<MapSize>,
    /// What the programs say, where the log is to have it.
    pub log: Option<ProgramLog>,
}

impl Loaded {
    /// How many entries the map of that name has room for.
    pub fn capacity(&self, name: &str) -> u32 {
        capacity(&self.sizes, name)
    }
}

/// Makes sure that `bpffs` is a directory on a bpf filesystem, mounting one there if it is not.
///
/// # Errors
/// When the directory can't be made or the filesystem can't be mounted.
pub fn mount_bpffs(bpffs: &Path) -> Result<(), DataplaneError> {
    let object = || bpffs.display().to_string();
    fs::create_dir_all(bpffs).map_err(|e| DataplaneError::new("create directory", object(), e))?;
    if is_bpffs(bpffs).map_err(|e| DataplaneError::new("examine", object(), e))? {
        return Ok(());
    }
    mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|e| DataplaneError::new("mount a bpf filesystem at", object(), e))
}

/// Whether `path` is on a bpf filesystem.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Loads `object`: maps are created and pinned, or adopted where a pin is; every program passes the verifier. Maps that are
/// created get the sizes that were `inherited`, by name, or else those that are wanted. What the kernel does not offer the
/// programs do without.
///
/// # Errors
/// When the object is empty (built without the eBPF toolchain), a pinned map has another layout, or the
/// kernel refuses a map or program, with the end of what the verifier says. Nothing has changed then.
pub fn load(
    object: &[u8],
    pins: &Pins,
    sizes: &Sizes,
    inherited: &BTreeMap<String, u32>,
    offers: Offers,
) -> Result<Loaded, DataplaneError> {
    if object.is_empty() {
        let why = "this binary was built without eBPF programs: run make setup and build again";
        return Err(DataplaneError::new("load", "programs", why));
    }
    let links = pins.links();
    fs::create_dir_all(&links)
        .map_err(|e| DataplaneError::new("create directory", links.display().to_string(), e))?;
    let before = pinned_maps(pins)?;
    load_at(object, pins, sizes, inherited, offers).inspect_err(|_| {
        for made in pinned_maps(pins).unwrap_or_default() {
            if !before.contains(&made) {
                fs::remove_file(&made).unwrap_or_else(|e| tracing::warn!("remove {}: {e}", made.display()));
            }
        }
        // Not empty, they were there before.
        let _ = fs::remove_dir(&links);
        let _ = fs::remove_dir(pins.maps());
    })
}

/// Loads the variant of the tc programs, and of the socket programs that name peers, which stands before another
/// layout's, over the maps that are pinned.
///
/// # Errors
/// When the kernel refuses a program.
pub(super) fn load_handover(
    object: &[u8],
    pins: &Pins,
    sizes: &[MapSize],
    offers: Offers,
) -> Result<Programs, DataplaneError> {
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins.maps()).override_global(globals::HANDOVER, &1_u8, true);
    offers.tell(&mut loader);
    program_log::set(&mut loader, false);
    for size in sizes {
        loader.map_max_entries(&size.name, size.capacity);
    }
    let mut ebpf = loader.load(object).map_err(|e| DataplaneError::new("load", "maps", e))?;
    let names_peers =
        [programs::RECVMSG4, programs::RECVMSG6, programs::GETPEERNAME4, programs::GETPEERNAME6];
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(program) if offers.sockets && names_peers.contains(&name) => {
                program.load()
            }
            _ => Ok(()),
        };
        loaded.map_err(|e| refused(name, e))?;
    }
    Ok(Programs { ebpf })
}

/// Why a program was not loaded: of what the verifier says, the end.
fn refused(name: &str, error: ProgramError) -> DataplaneError {
    let why = match &error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let is_word = |line: &&str| !line.is_empty() && !STATISTICS.iter().any(|of| line.starts_with(of));
            let lines: Vec<&str> = log.lines().map(str::trim).filter(is_word).collect();
            let last = lines[lines.len().saturating_sub(VERIFIER_LINES)..].join(" | ");
            format!("the kernel refuses it ({io_error}); the verifier's last words: {last}")
        }
        other => chain(other),
    };
    DataplaneError::new("load program", name, why)
}

/// The pins of maps that there are.
fn pinned_maps(pins: &Pins) -> Result<Vec<PathBuf>, DataplaneError> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for entry in fs::read_dir(pins.maps())? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                paths.push(entry.path());
            }
        }
        Ok(paths)
    };
    list().map_err(|e| DataplaneError::new("list pins in", pins.maps().display().to_string(), e))
}

fn load_at(
    object: &[u8],
    pins: &Pins,
    sizes: &Sizes,
    inherited: &BTreeMap<String, u32>,
    offers: Offers,
) -> Result<Loaded, DataplaneError> {
    let parsed = Object::parse(object).map_err(|e| DataplaneError::new("parse", "object", e))?;
    let wanted = BTreeMap::from(sizes.wanted());
    let mut reported = Vec::new();
    // The others are the programs' own, and gone with them.
    for (name, map) in parsed.maps.iter().filter(|(_, map)| map.pinning() == PinningType::ByName) {
        let wanted = wanted.get(name.as_str()).copied().unwrap_or(map.max_entries());
        let capacity = match MapInfo::from_pin(pins.map(name)) {
            Ok(pinned) => {
                check_layout(name, map, &pinned)?;
                pinned.max_entries()
            }
            Err(_) => inherited.get(name).copied().unwrap_or(wanted),
        };
        reported.push(MapSize { name: name.clone(), capacity, wanted });
    }
    reported.sort_by(|a, b| a.name.cmp(&b.name));
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(pins.maps());
    for size in &reported {
        // aya takes a size on trust, and checks array indices against it: a map that is there keeps its own.
        loader.map_max_entries(&size.name, size.capacity);
    }
    // Only the other variant of the programs uses it.
    loader.map_max_entries(maps::LEFT, 1);
    offers.tell(&mut loader);
    let is_log_wanted = program_log::is_wanted();
    program_log::set(&mut loader, is_log_wanted);
    let mut ebpf = loader.load(object).map_err(|e| DataplaneError::new("load", "maps", e))?;
    for (name, program) in ebpf.programs_mut() {
        let loaded = match program {
            Program::SchedClassifier(program) => program.load(),
            Program::CgroupSockAddr(_) | Program::CgroupSock(_) if !offers.sockets => continue,
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(|e| refused(name, e))?;
    }
    let log = is_log_wanted.then(|| ProgramLog::of(&mut ebpf)).transpose()?;
    let services = KernelMaps {
        frontends: Batched { fd: descriptor(&ebpf, maps::FRONTENDS)?, map: map(&mut ebpf, maps::FRONTENDS)? },
        slots: descriptor(&ebpf, maps::SLOTS)?,
        backends: Batched { fd: descriptor(&ebpf, maps::BACKENDS)?, map: map(&mut ebpf, maps::BACKENDS)? },
        source_ranges: map(&mut ebpf, maps::SOURCE_RANGES)?,
        service_cidrs: map(&mut ebpf, maps::SERVICE_CIDRS)?,
        capacity: CapacityOf {
            frontends: capacity(&reported, maps::FRONTENDS),
            source_ranges: capacity(&reported, maps::SOURCE_RANGES),
            service_cidrs: capacity(&reported, maps::SERVICE_CIDRS),
        },
    };
    let flows = Batched { fd: descriptor(&ebpf, maps::FLOWS)?, map: map(&mut ebpf, maps::FLOWS)? };
    let maps = Maps {
        config: map(&mut ebpf, maps::CONFIG)?,
        services,
        endpoints: map(&mut ebpf, maps::ENDPOINTS)?,
        marks: map(&mut ebpf, maps::MARKS)?,
        counters: Counters::new(map(&mut ebpf, maps::COUNTERS)?, map(&mut ebpf, maps::DROPS)?),
        clients: Clients::new(map(&mut ebpf, maps::CLIENTS)?),
        flows: FlowTable::new(flows, capacity(&reported, maps::PLACES)),
        policies: policy_maps(&mut ebpf, &reported)?,
        drop_counts: DropCounts(map(&mut ebpf, maps::POLICY_DROPS)?),
        egress: EgressMap(map(&mut ebpf, maps::EGRESS)?),
        events: map(&mut ebpf, maps::EVENTS)?,
    };
    Ok(Loaded { maps, programs: Programs { ebpf }, sizes: reported, log })
}

fn policy_maps(ebpf: &mut Ebpf, sizes: &[MapSize]) -> Result<KernelPolicyMaps, DataplaneError> {
    Ok(KernelPolicyMaps {
        isolation: map(ebpf, maps::ISOLATION)?,
        isolated: map(ebpf, maps::ISOLATED)?,
        policies: map(ebpf, maps::POLICIES)?,
        peers: map(ebpf, maps::PEERS)?,
        cells: Batched { fd: descriptor(ebpf, maps::CELLS)?, map: map(ebpf, maps::CELLS)? },
        rows: map(ebpf, maps::ROWS)?,
        state: map(ebpf, maps::POLICY_STATE)?,
        capacity: PolicyCapacity {
            policies: capacity(sizes, maps::POLICIES),
            cells: capacity(sizes, maps::CELLS),
            rows: capacity(sizes, maps::ROWS),
            peers: capacity(sizes, maps::PEERS),
        },
    })
}

/// Refuses a pinned map that the programs could not use.
fn check_layout(name: &str, wanted: &aya_obj::Map, pinned: &MapInfo) -> Result<(), DataplaneError> {
    let kind = pinned.map_type().map_err(|e| DataplaneError::new("examine map", name, e))? as u32;
    let found = (kind, pinned.key_size(), pinned.value_size());
    let wanted = (wanted.map_type(), wanted.key_size(), wanted.value_size());
    if found == wanted {
        return Ok(());
    }
    let why = format!(
        "the pinned map's type, key and value size are {found:?}, not {wanted:?}: \
         another build made it; stop this agent and run fairlead-proxy cleanup"
    );
    Err(DataplaneError::new("adopt map", name, why))
}

/// Takes the map of that name as the type that its values have.
fn map<T>(ebpf: &mut Ebpf, name: &str) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or_else(|| absent("find map", name))?;
    map.try_into().map_err(|e| DataplaneError::new("use map", name, e))
}

/// A descriptor of the map of that name, of its own.
fn descriptor(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, DataplaneError> {
    let (Map::HashMap(map) | Map::LruHashMap(map) | Map::Array(map)) =
        ebpf.map(name).ok_or_else(|| absent("find map", name))?
    else {
        return Err(DataplaneError::new("use map", name, "it is neither a hash nor an array"));
    };
    let fd = map.fd().as_fd().try_clone_to_owned();
    fd.map_err(|e| DataplaneError::new("use map", name, e))
}

/// How many entries the map of that name has room for.
fn capacity(sizes: &[MapSize], name: &str) -> u32 {
    sizes.iter().find(|size| size.name == name).map_or(0, |size| size.capacity)
}

fn absent(step: &'static str, name: &str) -> DataplaneError {
    DataplaneError::new(step, name, "the object does not hold it")
}
