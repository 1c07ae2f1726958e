//! The questions to the kernel, each with its answer. Nothing of them stays.

use std::fs;
use std::io;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};
use aya_obj::generated::bpf_attach_type;
use fairlead_net::netns;
use memchr::memmem;
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{AccessFlags, access};

use crate::dataplane::load;
use crate::dataplane::trial::{self, Trial};
use crate::node::{self, PortRange};

/// Number of CAP_NET_ADMIN (linux/capability.h), like those below.
pub(super) const NET_ADMIN: u32 = 12;
/// Number of CAP_SYS_ADMIN, which holds the next two.
const SYS_ADMIN: u32 = 21;
/// Number of CAP_PERFMON.
pub(super) const PERFMON: u32 = 38;
/// Number of CAP_BPF.
pub(super) const BPF: u32 = 39;

/// Where the kernel describes its own types.
pub(super) const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// Where the agent is to work.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// Where maps and links are pinned.
    pub bpffs: &'a Path,
    /// Where the kernel's settings are.
    pub proc_sys: &'a Path,
    /// The cgroup whose sockets are to be translated, if there is one.
    pub cgroup: Option<&'a Path>,
    /// The ports to be reserved.
    pub ports: PortRange,
    /// Features that are taken for missing, whatever the kernel says.
    pub without: &'a [String],
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The kernel has it.
    Yes,
    /// It has not, and said this.
    No(String),
    /// It can't be asked here, because of this.
    Unknown(String),
}

impl Found {
    fn by(has: bool, otherwise: &str) -> Self {
        if has { Self::Yes } else { Self::No(otherwise.to_owned()) }
    }
}

/// That it may not be asked says nothing about what there is.
fn answer(result: io::Result<()>) -> Found {
    match result {
        Ok(()) => Found::Yes,
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Found::Unknown(e.to_string()),
        Err(e) => Found::No(e.to_string()),
    }
}

fn answered(result: Result<bool, ProgramError>) -> Found {
    match result {
        Ok(has) => Found::by(has, "unknown to the kernel"),
        Err(ProgramError::SyscallError(e)) => match answer(Err(e.io_error)) {
            Found::No(why) => Found::Unknown(why),
            other => other,
        },
        Err(e) => Found::Unknown(e.to_string()),
    }
}

/// Whether this process has the capability, or the one that held it before it was a capability of its own.
pub(super) fn capability(number: u32) -> Found {
    let wanted = if number == NET_ADMIN { vec![number] } else { vec![number, SYS_ADMIN] };
    match wanted.into_iter().map(has_capability).collect::<io::Result<Vec<_>>>() {
        Ok(has) => Found::by(has.contains(&true), "this process has not got it"),
        Err(e) => Found::Unknown(format!("read /proc/self/status: {e}")),
    }
}

fn has_capability(number: u32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = effective(&status).ok_or_else(|| io::Error::other("it has no CapEff"))?;
    Ok(effective >> number & 1 == 1)
}

/// The effective capabilities in the text of a status file (proc_pid_status(5)).
fn effective(status: &str) -> Option<u64> {
    let text = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(text.trim(), 16).ok()
}

/// Whether programs of that type can be loaded.
pub(super) fn program(kind: ProgramType) -> Found {
    answered(is_program_supported(kind))
}

/// Whether programs of that type may call the helper.
pub(super) fn helper(kind: ProgramType, helper: BpfHelper) -> Found {
    answered(is_helper_supported(kind, helper))
}

/// Whether there are maps of that type.
pub(super) fn map(kind: MapType) -> Found {
    answered(is_map_supported(kind).map_err(ProgramError::from))
}

/// Whether the kernel takes types along with programs.
pub(super) fn program_btf() -> Found {
    Found::by(aya::features().btf().is_some(), "the kernel takes none")
}

/// Whether the verifier takes a tc program that does this.
pub(super) fn trial(trial: Trial) -> Found {
    answer(trial::classifier(trial).map(drop))
}

/// Whether many entries of a map can be written and read in one call.
pub(super) fn batches() -> Found {
    answer(trial::batches())
}

/// Whether maps take keys from any memory.
pub(super) fn keys_in_memory() -> Found {
    answer(trial::keys_in_memory())
}

/// Whether there is, or can be, a bpf filesystem where maps are to be pinned.
pub(super) fn bpf_filesystem(site: &Site<'_>) -> Found {
    let there = existing(site.bpffs);
    match load::is_bpffs(there) {
        Ok(true) => match access(there, AccessFlags::W_OK) {
            Ok(()) => Found::Yes,
            Err(e) => Found::No(format!("{} can't be written: {e}", there.display())),
        },
        Ok(false) if has_capability(SYS_ADMIN).unwrap_or(false) => Found::Yes,
        Ok(false) => Found::No(format!(
            "{} is on none, and this process may not mount one: mount -t bpf bpf /sys/fs/bpf",
            there.display()
        )),
        Err(e) => Found::No(format!("{}: {e}", there.display())),
    }
}

/// The part of the path that there is.
pub(super) fn existing(path: &Path) -> &Path {
    path.ancestors().find(|part| part.exists()).unwrap_or(path)
}

/// Whether network namespaces can be told apart.
pub(super) fn netns_cookie() -> Found {
    answer(netns::current_cookie().map(drop))
}

/// Whether the settings that packets need are as they have to be, or can be made so.
pub(super) fn settings(site: &Site<'_>) -> Found {
    let mut wrong = Vec::new();
    for (name, is_right) in [
        ("net/ipv4/ip_forward", is_on as fn(&str, PortRange) -> bool),
        ("net/ipv6/conf/all/forwarding", is_on),
        (node::RESERVED_PORTS, |text, ports| node::with_range(text, ports).is_none()),
    ] {
        let path = site.proc_sys.join(name);
        // A family that the kernel does not have has no settings.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if !is_right(text.trim(), site.ports)
            && let Err(e) = access(&path, AccessFlags::W_OK)
        {
            wrong.push(format!("{} is {:?} and can't be written: {e}", path.display(), text.trim()));
        }
    }
    if wrong.is_empty() { Found::Yes } else { Found::No(format!("{}; see --proc-sys", wrong.join(", "))) }
}

fn is_on(text: &str, _: PortRange) -> bool {
    text != "0"
}

/// Whether programs can be attached by tcx.
pub(super) fn tcx() -> Found {
    match trial::tcx() {
        Ok(has) => Found::by(has, "unknown to the kernel"),
        Err(e) => answer(Err(e)),
    }
}

/// Whether there is a clsact queue: tried at the loopback interface of a network namespace that goes with its thread.
pub(super) fn clsact() -> Found {
    let tried = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Err(e) => Found::Unknown(format!("make a network namespace to try it in: {e}")),
        Ok(()) => match qdisc_add_clsact("lo") {
            Ok(()) => Found::Yes,
            Err(e) => Found::No(format!("{e}: is there a module sch_ingress?")),
        },
    });
    tried.join().unwrap_or_else(|_| Found::Unknown("the trial ended by a panic".to_owned()))
}

/// Whether there is a control group to attach to.
pub(super) fn cgroup(site: &Site<'_>) -> Found {
    let Some(path) = site.cgroup else {
        return Found::No("no cgroup2 hierarchy is mounted; see --cgroup".to_owned());
    };
    match statfs(path) {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => Found::Yes,
        Ok(_) => Found::No(format!("{} is on no cgroup2 hierarchy", path.display())),
        Err(e) => Found::No(format!("{}: {e}", path.display())),
    }
}

/// Whether there is that hook of sockets.
pub(super) fn hook(attach: bpf_attach_type) -> Found {
    answer(trial::cgroup_hook(attach))
}

/// Whether the kernel's own types have something of that name: for what shows in no error.
pub(super) fn told_by_btf(name: &str) -> Found {
    let types = match fs::read(KERNEL_BTF) {
        Ok(types) => types,
        Err(e) => return Found::Unknown(format!("read {KERNEL_BTF}: {e}")),
    };
    Found::by(has_name(&types, name), "the kernel's types have no such name")
}

/// Whether a section of names, each closed by a zero, holds this one (Documentation/bpf/btf.rst).
fn has_name(types: &[u8], name: &str) -> bool {
    let wanted = [&[0], name.as_bytes(), &[0]].concat();
    memmem::find(types, &wanted).is_some()
}

/// Whether there is such a file.
pub(super) fn file(path: &str) -> Found {
    Found::by(Path::new(path).exists(), "there is no such file")
}

/// Whether the file may be written.
pub(super) fn writable(path: &str) -> Found {
    match access(path, AccessFlags::W_OK) {
        Ok(()) => Found::Yes,
        Err(e) => Found::No(format!("{path}: {e}")),
    }
}

/// Whether programs are compiled for the machine.
pub(super) fn compiler() -> Found {
    let path = "/proc/sys/net/core/bpf_jit_enable";
    match fs::read_to_string(path) {
        Ok(text) => Found::by(text.trim() != "0", "net.core.bpf_jit_enable is 0"),
        // It stands for the first network namespace alone.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            Found::Unknown("only the machine's first network namespace tells".to_owned())
        }
        Err(e) => Found::Unknown(format!("{path}: {e}")),
    }
}

/// Whether the kernel counts what it has verified.
pub(super) fn verified_instructions() -> Found {
    match trial::verified_instructions() {
        Ok(tells) => Found::by(tells, "it does not say"),
        Err(e) => answer(Err(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_of_a_process() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some((1 << 41) - 1));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn a_name_is_found_only_whole() {
        let names = b"\0int\0mtu_result\0";
        assert!(has_name(names, "mtu_result") && has_name(names, "int"));
        assert!(!has_name(names, "mtu") && !has_name(names, "result"));
    }

    #[test]
    fn what_may_not_be_asked_is_not_called_missing() {
        assert!(matches!(answer(Err(io::Error::from_raw_os_error(libc::EPERM))), Found::Unknown(_)));
        assert!(matches!(answer(Err(io::Error::from_raw_os_error(libc::EINVAL))), Found::No(_)));
    }

    #[test]
    fn a_path_that_is_not_there_yet_is_judged_by_what_is() {
        assert_eq!(existing(Path::new("/proc/no/such/path")), Path::new("/proc"));
    }
}
