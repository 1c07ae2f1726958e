//! Takes over from another generation, so that no packet meets a moment in which nobody knows its flow.
//!
//! ```text
//!   uplink, pods    ours' variant ─▶ theirs ─▶ stack        the variant leaves to theirs what it can't know about
//!                   ours' variant ─▶ ours   ─▶ stack        their links have been given our programs
//!                                    ours   ─▶ stack
//! ```
//!
//! 1. Everything is carried over into maps that are new.
//! 2. The variant is attached before their programs, and does nothing yet.
//! 3. Flows are carried over again, and from the next packet on what begins a connection begins it in our table.
//! 4. The same twice more, for datagrams that begin a flow of a Service, and for all others: after each
//!    step their programs begin fewer flows, and all that they have begun are carried over before the next.
//! 5. Socket hooks: ours that name peers are attached beside theirs; ours that choose backends take the place of theirs;
//!    sockets are carried over; ours that name peers take the place of theirs.
//! 6. Their links are given our programs, one by one, and become ours.
//! 7. What is left is carried over, the variant is detached, and their maps are removed.
//!
//! Two generations of the usual programs never stand at one hook: each would take what the other has sent on for new. By
//! clsact, without an order of programs, a hook's program is replaced in place when everything has been carried over, and
//! what their programs have begun since is carried over afterwards.
//!
//! Whatever is found half done is done again: every step may be repeated.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData};
use aya_obj::generated::bpf_attach_type;
use fairlead_abi::describe::Kind;
use fairlead_abi::{Config, config_flags, maps, programs};

use super::carry::{Carried, Carry, Flows};
use super::description::Description;
use super::{Generation, Others, listed, look, plan};
use crate::dataplane::haste::Haste;
use crate::dataplane::links::{
    Attachment, Direction, Links, Place, SOCKET_HOOKS, failed, parse, remove, replaced, socket_pin_name,
};
use crate::dataplane::load::{self, Offers, Programs};
use crate::dataplane::raw::RawMap;
use crate::dataplane::sizes::MapSize;
use crate::dataplane::sys::{self, LinkTarget};
use crate::dataplane::{DataplaneError, Pins};
use crate::errors::chain;
use crate::node::PortRange;

/// How long a program may still be running that has read how far the handover was before.
const UNDER_WAY: Duration = Duration::from_millis(5);

/// The socket hooks that name peers, and only read.
const NAME_PEERS: [&str; 4] =
    [programs::RECVMSG4, programs::RECVMSG6, programs::GETPEERNAME4, programs::GETPEERNAME6];

/// What a handover is made with.
pub struct Means<'a> {
    /// The object that the programs are in.
    pub object: &'a [u8],
    /// The own pins.
    pub pins: &'a Pins,
    /// The sizes of the own maps.
    pub sizes: &'a [MapSize],
    /// The own programs, and how they are attached.
    pub links: &'a Links,
    /// The cgroup whose sockets are translated; none if none are.
    pub cgroup: Option<&'a Path>,
    /// The ports that masqueraded flows leave with.
    pub ports: PortRange,
    /// What the kernel offers.
    pub offers: Offers,
}

/// A handover under way: the own programs are at every hook, and what others have is about to be removed.
#[derive(Default)]
pub struct Handover {
    others: Others,
    carries: Vec<Carry>,
    begun: Option<Instant>,
    attached: Option<Instant>,
    carried: Carried,
    is_in_place: bool,
}

impl Handover {
    /// Takes over from the others, if there are any; [`finish`](Self::finish) ends it.
    ///
    /// # Errors
    /// When the variant can't be loaded: then nothing has changed, and new maps are removed. When a map or link can't be
    /// read or written: then the programs of both work side by side until the next start.
    pub fn begin(others: Others, means: &Means<'_>) -> Result<Self, DataplaneError> {
        if others.in_charge.is_empty() {
            return Ok(Self { others, ..Self::default() });
        }
        let begun = Instant::now();
        // First of all, since it may be refused.
        let variant =
            load::load_handover(means.object, means.pins, means.sizes, means.offers).inspect_err(|_| {
                if others.is_new
                    && let Err(e) = look(means.pins.clone()).and_then(|own| own.remove())
                {
                    tracing::warn!("{}", chain(&e));
                }
            })?;
        let mut config = config_of(means.pins)?;
        let is_in_place = means.links.attachment() == Attachment::Clsact;
        let mut handover = Self { others, begun: Some(begun), is_in_place, ..Self::default() };
        let Self { others, carries, carried, attached, .. } = &mut handover;
        for other in &others.in_charge {
            carries.extend(prepare(other, means.pins)?);
        }
        if let Some(first) = carries.first().filter(|_| others.is_new) {
            first.state()?;
            first.places()?;
            carried.flows += first.flows_at_first()?;
        }
        let _haste = Haste::begin();
        let fronts = Fronts { directory: means.pins.fronts(), variant: &variant };
        fronts.create()?;
        *attached = Some(Instant::now());
        if !is_in_place {
            let is_under_way = step_of(&config)? != 0;
            if is_under_way {
                // Our variant's notes of what it left are gone with the agent that was killed.
                set_step(&mut config, config_flags::HANDOVER_CONNECTIONS)?;
            }
            // Of one that does not say what its maps hold nothing is known: our programs take its place at once.
            for other in others.in_charge.iter().filter(|other| other.description.is_ok()) {
                other.links.iter().chain(&other.fronts).try_for_each(|link| fronts.attach(link))?;
            }
            part_ports(&others.in_charge, means.ports, &mut config)?;
            carry(carries, Flows::Open, carried)?;
            for step in [
                config_flags::HANDOVER_CONNECTIONS,
                config_flags::HANDOVER_SERVICES,
                config_flags::HANDOVER_ALL,
            ] {
                set_step(&mut config, step)?;
                thread::sleep(UNDER_WAY);
                carry(carries, Flows::All, carried)?;
            }
        } else {
            carry(carries, Flows::All, carried)?;
        }
        sockets(&others.in_charge, carries, &fronts, means)?;
        for other in &others.in_charge {
            for link in &other.links {
                let Some((place, direction, _)) = name_of(link).and_then(parse) else { continue };
                succeed(link, means.links.programs().fd(place.program(direction))?, means.pins)?;
            }
            other.fronts.iter().try_for_each(|link| detach(link))?;
        }
        Ok(handover)
    }

    /// Whether programs at interfaces are yet to be replaced in place, by whoever attaches them.
    pub fn is_in_place(&self) -> bool {
        self.is_in_place
    }

    /// Ends it: what others' programs have done up to now is carried over, and everything of theirs is removed.
    ///
    /// # Errors
    /// When a map or link can't be read, written or removed.
    pub fn finish(self, pins: &Pins, ports: PortRange) -> Result<(), DataplaneError> {
        let Self { others, carries, begun, attached, mut carried, .. } = self;
        carry(&carries, Flows::All, &mut carried)?;
        let _haste = Haste::begin();
        for front in listed(&pins.fronts()).unwrap_or_default() {
            detach(&front)?;
        }
        let _ = fs::remove_dir(pins.fronts());
        let mut config = config_of(pins)?;
        if step_of(&config)? != 0 {
            set_ports(&mut config, ports.first(), ports.count())?;
            set_step(&mut config, 0)?;
        }
        drop(carries);
        for other in &others.in_charge {
            other.remove()?;
            let Carried { flows, others } = carried;
            let since = |moment: Option<Instant>| moment.map_or(0, |moment| moment.elapsed().as_millis());
            tracing::info!(
                from = other.name(),
                flows,
                others,
                milliseconds = since(begun),
                side_by_side = since(attached),
                "took over from another layout's maps: entries of flows and of other tables carried over"
            );
        }
        others.clear();
        Ok(())
    }
}

/// What is carried over from that generation, and says what is not; nothing if it does not say what its maps look like.
fn prepare(other: &Generation, own: &Pins) -> Result<Option<Carry>, DataplaneError> {
    let description = match &other.description {
        Ok(description) => description,
        Err(why) => {
            tracing::warn!("nothing is carried over from {}: {why}", other.name());
            return Ok(None);
        }
    };
    let plan = plan::plan(description, &Description::own());
    for (map, why) in &plan.left {
        tracing::warn!(map, "is not carried over from {}: {why}", other.name());
    }
    Carry::new(other, own, &plan).map(Some)
}

fn carry(carries: &[Carry], which: Flows, total: &mut Carried) -> Result<(), DataplaneError> {
    for carry in carries {
        let Carried { flows, others } = carry.tables(which)?;
        total.flows += flows;
        total.others += others;
    }
    Ok(())
}

/// Has flows that are masqueraded from now on leave with ports of one half of the range where the others' programs begin
/// them, and of the other half where ours do: neither table knows the other's in the moment in which a port is drawn.
fn part_ports(
    others: &[Generation],
    ports: PortRange,
    config: &mut Array<MapData, Config>,
) -> Result<(), DataplaneError> {
    let half = ports.count() / 2;
    if half == 0 {
        return Ok(());
    }
    for other in others {
        let Some(of_config) = other.description.as_ref().ok().and_then(|of| of.maps.get(maps::CONFIG)) else {
            continue;
        };
        let map = RawMap::open(&other.pins.map(maps::CONFIG), Kind::Array)?;
        let key = 0_u32.to_ne_bytes();
        let Some(mut value) = map.get(&key)? else { continue };
        for (name, number) in [("snat_first", ports.first()), ("snat_count", half)] {
            let field = of_config.value.fields.iter().find(|(field, _, size)| field == name && *size == 2);
            if let Some(bytes) = field.and_then(|(_, offset, size)| value.get_mut(*offset..offset + size)) {
                bytes.copy_from_slice(&number.to_ne_bytes());
            }
        }
        map.set(&key, &value)?;
    }
    set_ports(config, ports.first() + half, half)
}

fn set_ports(config: &mut Array<MapData, Config>, first: u16, count: u16) -> Result<(), DataplaneError> {
    let failed = |step, e| DataplaneError::new(step, "the node's configuration", e);
    let now = config.get(&0, 0).map_err(|e| failed("read", e))?;
    let changed = Config { snat_first: first, snat_count: count, ..now };
    config.set(0, changed, 0).map_err(|e| failed("write", e))
}

fn config_of(pins: &Pins) -> Result<Array<MapData, Config>, DataplaneError> {
    let path = pins.map(maps::CONFIG);
    let map = MapData::from_pin(&path).and_then(|data| Array::try_from(Map::Array(data)));
    map.map_err(|e| DataplaneError::new("open map", path.display().to_string(), e))
}

fn step_of(config: &Array<MapData, Config>) -> Result<u32, DataplaneError> {
    let config = config.get(&0, 0).map_err(|e| DataplaneError::new("read", "the node's configuration", e))?;
    Ok(config.flags & config_flags::HANDOVER)
}

fn set_step(config: &mut Array<MapData, Config>, step: u32) -> Result<(), DataplaneError> {
    let failed = |step, e| DataplaneError::new(step, "the node's configuration", e);
    let now = config.get(&0, 0).map_err(|e| failed("read", e))?;
    let flags = now.flags & !config_flags::HANDOVER | step;
    config.set(0, Config { flags, ..now }, 0).map_err(|e| failed("write", e))
}

/// The variant, and where its links are pinned.
struct Fronts<'a> {
    directory: PathBuf,
    variant: &'a Programs,
}

impl Fronts<'_> {
    fn create(&self) -> Result<(), DataplaneError> {
        fs::create_dir_all(&self.directory).map_err(|e| failed("create directory", &self.directory, e))
    }

    /// Attaches the variant before all that is where this link of another generation is, if it is at an interface.
    fn attach(&self, theirs: &Path) -> Result<(), DataplaneError> {
        let Some(name) = name_of(theirs) else { return Ok(()) };
        let Some((place, direction, ifindex)) = parse(name) else { return Ok(()) };
        let program = self.variant.fd(place.program(direction))?;
        let path = self.directory.join(name);
        if replaced(&path, program, LinkTarget::Interface(ifindex), detach)? {
            return Ok(());
        }
        match sys::link_interface_first(program, ifindex, direction.tcx()) {
            Ok(link) => sys::pin(link.as_fd(), &path).map_err(|e| failed("pin link", &path, e)),
            // The interface is gone.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(e) => Err(attach_failed(place, direction, ifindex, e)),
        }
    }

    /// Attaches the variant's socket hook beside those that are there.
    fn attach_socket(
        &self,
        name: &str,
        attach_type: bpf_attach_type,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), DataplaneError> {
        let path = self.directory.join(socket_pin_name(name));
        detach(&path)?;
        let link = sys::link_cgroup(self.variant.fd(name)?, cgroup, attach_type)
            .map_err(|e| DataplaneError::new("attach", name, e))?;
        sys::pin(link.as_fd(), &path).map_err(|e| failed("pin link", &path, e))
    }
}

fn attach_failed(place: Place, direction: Direction, ifindex: u32, error: io::Error) -> DataplaneError {
    let what = format!("{} before another's at interface {ifindex}", place.program(direction));
    DataplaneError::new("attach", what, error)
}

/// Takes over the socket hooks.
fn sockets(
    others: &[Generation],
    carries: &[Carry],
    fronts: &Fronts<'_>,
    means: &Means<'_>,
) -> Result<(), DataplaneError> {
    // Where no sockets are translated any more, theirs are removed with what else is theirs.
    let Some(cgroup) = means.cgroup else { return Ok(()) };
    let directory = File::open(cgroup).map_err(|e| failed("open cgroup", cgroup, e))?;
    let names_peers = |name: &str| NAME_PEERS.contains(&name);
    for (name, attach_type) in SOCKET_HOOKS.into_iter().filter(|(name, _)| names_peers(name)) {
        fronts.attach_socket(name, attach_type, directory.as_fd())?;
    }
    let swap = |of: &dyn Fn(&str) -> bool| -> Result<(), DataplaneError> {
        for (name, _) in SOCKET_HOOKS.into_iter().filter(|(name, _)| of(name)) {
            let pin = socket_pin_name(name);
            for link in others.iter().flat_map(|other| &other.links).filter(|link| link.ends_with(&pin)) {
                succeed(link, means.links.programs().fd(name)?, means.pins)?;
            }
        }
        Ok(())
    };
    carries.iter().try_for_each(|carry| carry.sockets().map(drop))?;
    swap(&|name| !names_peers(name))?;
    thread::sleep(UNDER_WAY);
    carries.iter().try_for_each(|carry| carry.sockets().map(drop))?;
    swap(&names_peers)?;
    for name in NAME_PEERS {
        detach(&fronts.directory.join(socket_pin_name(name)))?;
        for other in others {
            detach(&other.pins.fronts().join(socket_pin_name(name)))?;
        }
    }
    Ok(())
}

/// Has a link of another generation run the own program from now on, and makes it an own link; where there is one already,
/// the other's is removed.
fn succeed(theirs: &Path, program: BorrowedFd<'_>, own: &Pins) -> Result<(), DataplaneError> {
    let Some(name) = theirs.file_name() else { return Ok(()) };
    let path = own.links().join(name);
    let link = match sys::open_pin(theirs) {
        Ok(link) => link,
        // The agent that was killed had come that far.
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("open link", theirs, e)),
    };
    let is_gone =
        sys::link_target(link.as_fd()).map_err(|e| failed("examine link", theirs, e))? == LinkTarget::Gone;
    if is_gone || path.exists() {
        return detach(theirs);
    }
    match sys::update_link(link.as_fd(), program) {
        Ok(()) => fs::rename(theirs, &path).map_err(|e| failed("rename link", theirs, e)),
        // Its interface went away in this moment.
        Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => detach(theirs),
        Err(e) => Err(failed("update link", theirs, e)),
    }
}

/// Detaches the link that is pinned there, and removes the pin; no error if there is none.
fn detach(path: &Path) -> Result<(), DataplaneError> {
    match sys::open_pin(path) {
        // One that can't be detached is when its pin is gone.
        Ok(link) => drop(sys::detach_link(link.as_fd())),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => tracing::warn!("{}", chain(&failed("open link", path, e))),
    }
    remove(path)
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}
