//! Where the programs are attached: by tcx links (or, before kernel 6.6, clsact filters) at pods' veths and
//! at uplinks, and by cgroup links at the host's sockets.
//!
//! A link is pinned under a name that says what it is for, `pod-<ifindex>-ingress` for one; a restarted agent
//! opens it there and has it run the new program from the next packet on. The kernel detaches a link whose
//! interface goes away, and leaves the pin behind: [`Links::collect`] removes it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::TcAttachType;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya_obj::generated::bpf_attach_type;
use clap::ValueEnum;
use fairlead_abi::programs;
use nix::net::if_::if_indextoname;

use super::haste::Haste;
use super::load::Programs;
use super::sys::{self, LinkTarget};
use super::{DataplaneError, Pins};

/// How tc programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// By tcx links, from kernel 6.6 on.
    Tcx,
    /// By filters of a clsact qdisc: no pins, replaced in place by priority and handle.
    Clsact,
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// Which [`Attachment`] is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Datapath {
    /// tcx; an error where the kernel has none.
    Tcx,
    /// clsact.
    Clsact,
    /// tcx, or clsact where the kernel refuses it.
    Auto,
}

/// A kind of interface that programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The host side of a pod's veth.
    Pod,
    /// An interface that leads to other nodes and outside.
    Uplink,
    /// An interface behind which are pods that another CNI has wired.
    Pods,
}

impl Place {
    const ALL: [Self; 3] = [Self::Pod, Self::Uplink, Self::Pods];

    fn label(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
            Self::Pods => "pods",
        }
    }

    pub(super) fn program(self, direction: Direction) -> &'static str {
        match (self, direction) {
            (Self::Pod, Direction::Ingress) => programs::FROM_POD,
            (Self::Pod, Direction::Egress) => programs::TO_POD,
            (Self::Uplink, Direction::Ingress) => programs::FROM_WIRE,
            (Self::Pods, Direction::Ingress) => programs::FROM_PODS,
            // What the node's own stack sends is looked at alike.
            (Self::Uplink | Self::Pods, Direction::Egress) => programs::TO_WIRE,
        }
    }
}

/// Which of an interface's packets a program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    fn label(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    pub(super) fn tcx(self) -> bpf_attach_type {
        match self {
            Self::Ingress => bpf_attach_type::BPF_TCX_INGRESS,
            Self::Egress => bpf_attach_type::BPF_TCX_EGRESS,
        }
    }

    fn clsact(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }
}

/// The socket hooks: program, and where it is attached.
pub(super) const SOCKET_HOOKS: [(&str, bpf_attach_type); 10] = [
    (programs::CONNECT4, bpf_attach_type::BPF_CGROUP_INET4_CONNECT),
    (programs::CONNECT6, bpf_attach_type::BPF_CGROUP_INET6_CONNECT),
    (programs::SENDMSG4, bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG),
    (programs::SENDMSG6, bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG),
    (programs::RECVMSG4, bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG),
    (programs::RECVMSG6, bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG),
    (programs::GETPEERNAME4, bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME),
    (programs::GETPEERNAME6, bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME),
    (programs::BIND4, bpf_attach_type::BPF_CGROUP_INET4_POST_BIND),
    (programs::BIND6, bpf_attach_type::BPF_CGROUP_INET6_POST_BIND),
];

/// Priority of the clsact filters, which with the handle names them for replacement.
const CLSACT_PRIORITY: u16 = 1;
/// Handle of the clsact filters.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0xfa1);

/// The programs and their links.
pub struct Links {
    programs: Programs,
    directory: PathBuf,
    attachment: Attachment,
}

impl Links {
    /// Links of these programs, attached as `datapath` asks.
    ///
    /// # Errors
    /// When tcx is asked for and the kernel has none.
    pub fn new(programs: Programs, pins: &Pins, datapath: Datapath) -> Result<Self, DataplaneError> {
        let attachment = match datapath {
            Datapath::Clsact => Attachment::Clsact,
            Datapath::Tcx | Datapath::Auto => {
                if has_tcx(programs.fd(programs::FROM_POD)?) {
                    Attachment::Tcx
                } else if datapath == Datapath::Auto {
                    Attachment::Clsact
                } else {
                    let why = "this kernel has no tcx (it came with 6.6): use --datapath clsact";
                    return Err(DataplaneError::new("attach by", "tcx", why));
                }
            }
        };
        Ok(Self { programs, directory: pins.links(), attachment })
    }

    /// How tc programs are attached.
    pub fn attachment(&self) -> Attachment {
        self.attachment
    }

    /// The programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Has every pinned link of an interface run this agent's program, and removes pins of interfaces that
    /// are gone. Returns how many links were adopted.
    ///
    /// # Errors
    /// When a link can't be changed.
    pub fn adopt(&self) -> Result<usize, DataplaneError> {
        let mut adopted = 0;
        for (path, place, direction, _) in self.pinned()? {
            let link = sys::open_pin(&path).map_err(|e| failed("open link", &path, e))?;
            match sys::link_target(link.as_fd()).map_err(|e| failed("examine link", &path, e))? {
                LinkTarget::Gone => remove(&path)?,
                _ => {
                    let program = self.programs.fd(place.program(direction))?;
                    sys::update_link(link.as_fd(), program).map_err(|e| failed("update link", &path, e))?;
                    adopted += 1;
                }
            }
        }
        Ok(adopted)
    }

    /// Attaches both programs of `place` to the interface, or has them replaced if they are there.
    ///
    /// # Errors
    /// When the interface is not there, or the kernel refuses.
    pub fn attach(&mut self, place: Place, ifindex: u32) -> Result<(), DataplaneError> {
        let _haste = Haste::begin();
        for direction in Direction::BOTH {
            match self.attachment {
                Attachment::Tcx => self.attach_tcx(place, direction, ifindex)?,
                Attachment::Clsact => self.attach_clsact(place, direction, ifindex)?,
            }
        }
        Ok(())
    }

    /// Detaches what [`Links::attach`] attached; no error if nothing is.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn detach(&mut self, place: Place, ifindex: u32) -> Result<(), DataplaneError> {
        let _haste = Haste::begin();
        for direction in Direction::BOTH {
            match self.attachment {
                Attachment::Tcx => remove(&self.path(place, direction, ifindex))?,
                Attachment::Clsact => detach_clsact(ifindex, direction, place.program(direction)),
            }
        }
        Ok(())
    }

    /// Whether both programs of `place` are attached to the interface.
    ///
    /// # Errors
    /// When they are not, naming the one that is missing.
    pub fn check(&mut self, place: Place, ifindex: u32) -> Result<(), DataplaneError> {
        for direction in Direction::BOTH {
            match self.attachment {
                Attachment::Tcx => {
                    let path = self.path(place, direction, ifindex);
                    let link = sys::open_pin(&path).map_err(|e| failed("open link", &path, e))?;
                    let target = sys::link_target(link.as_fd());
                    if target.map_err(|e| failed("examine link", &path, e))? != LinkTarget::Interface(ifindex)
                    {
                        let why = "it is not attached to its interface";
                        return Err(DataplaneError::new("check link", path.display().to_string(), why));
                    }
                }
                Attachment::Clsact => self.replace_clsact(place, direction, &name_of(ifindex)?)?,
            }
        }
        Ok(())
    }

    /// The interfaces that have pinned links of `place`, each once, in order of index.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub fn attached(&self, place: Place) -> Result<Vec<u32>, DataplaneError> {
        let pinned = self.pinned()?.into_iter();
        let mut found: Vec<u32> =
            pinned.filter(|(_, of, _, _)| *of == place).map(|(_, _, _, ifindex)| ifindex).collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Each program of interfaces and sockets, with where it is attached, in words: names of interfaces, or the cgroup's
    /// path. By clsact there are no pins that tell: then the places are those that `known` names.
    ///
    /// # Errors
    /// When the directory of links can't be read.
    pub fn places(
        &self,
        cgroup: &str,
        known: impl Fn(Place) -> Vec<String>,
    ) -> Result<BTreeMap<String, Vec<String>>, DataplaneError> {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for place in Place::ALL {
            let interfaces = match self.attachment {
                Attachment::Tcx => {
                    let attached = self.attached(place)?.into_iter();
                    attached
                        .map(|index| name_of(index).unwrap_or_else(|_| format!("interface {index}")))
                        .collect()
                }
                Attachment::Clsact => known(place),
            };
            for direction in Direction::BOTH {
                places.entry(place.program(direction).to_owned()).or_default().extend(interfaces.clone());
            }
        }
        for (name, _) in SOCKET_HOOKS {
            if self.directory.join(format!("cgroup-{name}")).exists() {
                places.entry(name.to_owned()).or_default().push(cgroup.to_owned());
            }
        }
        Ok(places)
    }

    /// Attaches the socket hooks to the cgroup, or has them replaced if they are there. Links to another
    /// cgroup, left by an agent that was started with another one, are removed.
    ///
    /// # Errors
    /// When the cgroup is not one, or the kernel refuses.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), DataplaneError> {
        let directory = File::open(cgroup).map_err(|e| failed("open cgroup", cgroup, e))?;
        let id = directory.metadata().map_err(|e| failed("examine cgroup", cgroup, e))?.ino();
        for (name, attach_type) in SOCKET_HOOKS {
            let path = self.directory.join(socket_pin_name(name));
            let program = self.programs.fd(name)?;
            if replaced(&path, program, LinkTarget::Cgroup(id), remove)? {
                continue;
            }
            let link = sys::link_cgroup(program, directory.as_fd(), attach_type)
                .map_err(|e| DataplaneError::new("attach", format!("{name} to {}", cgroup.display()), e))?;
            sys::pin(link.as_fd(), &path).map_err(|e| failed("pin link", &path, e))?;
        }
        Ok(())
    }

    /// Detaches the socket hooks of an earlier agent: their program would go on with what nobody keeps any more.
    ///
    /// # Errors
    /// When a pin can't be removed.
    pub fn detach_sockets(&self) -> Result<(), DataplaneError> {
        SOCKET_HOOKS.iter().try_for_each(|(name, _)| remove(&self.directory.join(format!("cgroup-{name}"))))
    }

    /// Removes pins of links whose interface is gone, and returns how many.
    ///
    /// # Errors
    /// When the directory can't be read or a pin can't be removed.
    pub fn collect(&self) -> Result<usize, DataplaneError> {
        let mut collected = 0;
        for (path, _, _, _) in self.pinned()? {
            let link = sys::open_pin(&path).map_err(|e| failed("open link", &path, e))?;
            if sys::link_target(link.as_fd()).map_err(|e| failed("examine link", &path, e))?
                == LinkTarget::Gone
            {
                remove(&path)?;
                collected += 1;
            }
        }
        Ok(collected)
    }

    /// The pinned links of interfaces.
    fn pinned(&self) -> Result<Vec<(PathBuf, Place, Direction, u32)>, DataplaneError> {
        let entries = fs::read_dir(&self.directory).map_err(|e| failed("list", &self.directory, e))?;
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(|e| failed("list", &self.directory, e))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some((place, direction, ifindex)) = parse(name) {
                found.push((path, place, direction, ifindex));
            }
        }
        Ok(found)
    }

    fn path(&self, place: Place, direction: Direction, ifindex: u32) -> PathBuf {
        self.directory.join(pin_name(place, direction, ifindex))
    }

    fn attach_tcx(&self, place: Place, direction: Direction, ifindex: u32) -> Result<(), DataplaneError> {
        let path = self.path(place, direction, ifindex);
        let program = self.programs.fd(place.program(direction))?;
        if replaced(&path, program, LinkTarget::Interface(ifindex), remove)? {
            return Ok(());
        }
        let link = sys::link_interface(program, ifindex, direction.tcx()).map_err(|e| {
            let what = format!("{} to interface {ifindex}, {}", place.program(direction), direction.label());
            DataplaneError::new("attach", what, e)
        })?;
        sys::pin(link.as_fd(), &path).map_err(|e| failed("pin link", &path, e))
    }

    fn attach_clsact(
        &mut self,
        place: Place,
        direction: Direction,
        ifindex: u32,
    ) -> Result<(), DataplaneError> {
        let interface = name_of(ifindex)?;
        if self.replace_clsact(place, direction, &interface).is_ok() {
            return Ok(());
        }
        let name = place.program(direction);
        // An error here is that there is a clsact qdisc already; any other shows in the attach.
        let _ = qdisc_add_clsact(&interface);
        let program = self.programs.classifier(name)?;
        let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
        let link = program
            .attach_with_options(&interface, direction.clsact(), TcAttachOptions::Netlink(options))
            .and_then(|id| program.take_link(id))
            .map_err(|e| DataplaneError::new("attach", format!("{name} to {interface}"), e))?;
        // To drop it would detach it.
        std::mem::forget(link);
        Ok(())
    }

    /// Has the filter at the interface run this agent's program; an error if there is none.
    fn replace_clsact(
        &mut self,
        place: Place,
        direction: Direction,
        interface: &str,
    ) -> Result<(), DataplaneError> {
        let name = place.program(direction);
        let program = self.programs.classifier(name)?;
        let error = |e| DataplaneError::new("replace filter", format!("{name} at {interface}"), e);
        let filter = SchedClassifierLink::attached(
            interface,
            direction.clsact(),
            CLSACT_PRIORITY,
            CLSACT_HANDLE,
            None,
        )
        .map_err(|e| error(Box::<dyn std::error::Error + Send + Sync>::from(e)))?;
        let link = program
            .attach_to_link(filter)
            .and_then(|id| program.take_link(id))
            .map_err(|e| error(e.into()))?;
        std::mem::forget(link);
        Ok(())
    }
}

/// Removes the filter of that name from the interface, if both are there.
fn detach_clsact(ifindex: u32, direction: Direction, program: &str) {
    if let Ok(interface) = name_of(ifindex)
        && let Err(e) = aya::programs::tc::qdisc_detach_program(&interface, direction.clsact(), program)
    {
        tracing::debug!("detach {program} from {interface}: {e}");
    }
}

/// Whether the kernel knows tcx: asked for a link to an interface that can't be, it then misses the
/// interface, while an older one does not know what is asked.
pub(super) fn has_tcx(program: BorrowedFd<'_>) -> bool {
    let refused = sys::link_interface(program, i32::MAX as u32, bpf_attach_type::BPF_TCX_INGRESS);
    refused.is_err_and(|e| e.raw_os_error() == Some(libc::ENODEV))
}

/// Has the link pinned at `path` run `program`, if there is one and it is attached to `target`. A link to something else
/// is discarded.
pub(super) fn replaced(
    path: &Path,
    program: BorrowedFd<'_>,
    target: LinkTarget,
    discard: fn(&Path) -> Result<(), DataplaneError>,
) -> Result<bool, DataplaneError> {
    let link = match sys::open_pin(path) {
        Ok(link) => link,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(failed("open link", path, e)),
    };
    if sys::link_target(link.as_fd()).map_err(|e| failed("examine link", path, e))? != target {
        discard(path)?;
        return Ok(false);
    }
    sys::update_link(link.as_fd(), program).map_err(|e| failed("update link", path, e))?;
    Ok(true)
}

pub(super) fn remove(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed("remove", path, e)),
        _ => Ok(()),
    }
}

pub(super) fn failed(step: &'static str, path: &Path, error: std::io::Error) -> DataplaneError {
    DataplaneError::new(step, path.display().to_string(), error)
}

/// The interface's name.
fn name_of(ifindex: u32) -> Result<String, DataplaneError> {
    let name = if_indextoname(ifindex);
    let name = name.map_err(|e| DataplaneError::new("find interface", ifindex.to_string(), e))?;
    Ok(name.to_string_lossy().into_owned())
}

/// The name of the pin of a socket hook's link.
pub(super) fn socket_pin_name(program: &str) -> String {
    format!("cgroup-{program}")
}

fn pin_name(place: Place, direction: Direction, ifindex: u32) -> String {
    format!("{}-{ifindex}-{}", place.label(), direction.label())
}

pub(super) fn parse(name: &str) -> Option<(Place, Direction, u32)> {
    let (place, rest) = name.split_once('-')?;
    let (ifindex, direction) = rest.split_once('-')?;
    let place = Place::ALL.into_iter().find(|known| known.label() == place)?;
    let direction = Direction::BOTH.into_iter().find(|known| known.label() == direction)?;
    Some((place, direction, ifindex.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pins_name_says_what_its_link_is_for() {
        for place in Place::ALL {
            for direction in Direction::BOTH {
                let name = pin_name(place, direction, 42);
                assert_eq!(parse(&name), Some((place, direction, 42)), "{name}");
            }
        }
        assert_eq!(parse("cgroup-fairlead_conn4"), None);
        assert_eq!(parse("pod-x-ingress"), None);
        assert_eq!(parse("pod-7"), None);
    }
}
