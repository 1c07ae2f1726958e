//! The system calls that aya has no safe form of: map batches, links of every kind by one route, the
//! programs' clock, and what the process asks of its allocator and scheduler. Every function takes and returns owned or borrowed descriptors.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use aya_obj::generated::{
    BPF_F_BEFORE, bpf_attach_type, bpf_cmd, bpf_link_info, bpf_link_type, bpf_map_type, bpf_prog_info,
    bpf_prog_type,
};

use super::trial::Instruction;

/// The front part of `union bpf_attr` for a batch command.
#[repr(C)]
#[derive(Default)]
pub(super) struct Batch {
    pub(super) in_batch: u64,
    pub(super) out_batch: u64,
    pub(super) keys: u64,
    pub(super) values: u64,
    pub(super) count: u32,
    pub(super) map_fd: u32,
    pub(super) elem_flags: u64,
    pub(super) flags: u64,
}

/// The same for pinning an object and opening a pin.
#[repr(C)]
#[derive(Default)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The same for creating a link; the rest of the union, options of each kind, is zero.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    options: [u64; 6],
}

/// The same for changing a link's program.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// The same for reading what the kernel knows about an object.
#[repr(C)]
#[derive(Default)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// The same for loading a program, without a log.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    device: u32,
    attach_type: u32,
}

/// The same for walking through a map's keys.
#[repr(C)]
struct NextKey {
    map: u32,
    reserved: u32,
    key: u64,
    next: u64,
}

/// The same for making a map.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
    flags: u32,
    inner: u32,
    node: u32,
    name: [u8; 16],
}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// A network interface, by index.
    Interface(u32),
    /// A cgroup, by id.
    Cgroup(u64),
    /// Nothing any more: the interface or cgroup is gone.
    Gone,
}

/// Runs a bpf(2) command.
///
/// # Safety
/// `attr` must be the layout that `command` expects, and every address in it valid for the access that the
/// command makes.
pub(super) unsafe fn bpf<T>(command: bpf_cmd, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is a live object of the size given; what it points to is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

/// Takes ownership of a descriptor that bpf(2) returned.
pub(super) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: called only with the descriptor that a successful command has just returned.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Writes all `values` at their `keys` in one call. Kernel 5.6.
pub(crate) fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len(), "a value for each key");
    let mut attr = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    // SAFETY: the kernel reads `count` keys and values, which the two slices hold.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop)
}

/// Reads a whole hash or array map. Kernel 5.6.
pub(crate) fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut entries = Vec::new();
    read_chunks(map, 4096, |keys: &[K], values: &[V]| {
        entries.extend(keys.iter().copied().zip(values.iter().copied()));
    })?;
    Ok(entries)
}

/// Reads a whole hash or array map, about `chunk` entries at a time. Kernel 5.6.
pub(crate) fn read_chunks<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    mut chunk: usize,
    mut take: impl FnMut(&[K], &[V]),
) -> io::Result<()> {
    let mut cursor: Option<u32> = None;
    // SAFETY: all zero is a value of any `Pod`.
    let (mut keys, mut values): (Vec<K>, Vec<V>) = unsafe { (vec![zeroed(); chunk], vec![zeroed(); chunk]) };
    loop {
        let mut next = 0_u32;
        let mut attr = Batch {
            in_batch: cursor.as_ref().map_or(0, |cursor| cursor as *const u32 as u64),
            out_batch: &mut next as *mut u32 as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: map.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values, for which the vectors have room, and
        // a cursor of four bytes: a hash's bucket number, an array's index.
        let last = match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => false,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 20 => {
                // A bucket of the hash holds more than fits.
                chunk *= 2;
                // SAFETY: as above.
                (keys, values) = unsafe { (vec![zeroed(); chunk], vec![zeroed(); chunk]) };
                continue;
            }
            Err(e) => return Err(e),
        };
        let count = attr.count as usize;
        take(&keys[..count], &values[..count]);
        if last {
            return Ok(());
        }
        cursor = Some(next);
    }
}

/// Reads `len` consecutive values of an array map of numbers. Kernel 5.6.
pub(crate) fn read_run(map: BorrowedFd<'_>, base: u32, len: u32) -> io::Result<Vec<u32>> {
    let before = base.checked_sub(1);
    let mut next = 0_u32;
    let mut keys = vec![0_u32; len as usize];
    let mut values = vec![0_u32; len as usize];
    let mut attr = Batch {
        in_batch: before.as_ref().map_or(0, |before| before as *const u32 as u64),
        out_batch: &mut next as *mut u32 as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: len,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::default()
    };
    // SAFETY: the kernel writes at most `count` keys and values of four bytes each, for which the vectors
    // have room, and a cursor, which for an array is the last index read.
    match unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e),
        _ => values.truncate(attr.count as usize),
    }
    Ok(values)
}

/// Attaches `program` to the interface by a tcx link. Kernel 6.6.
pub(crate) fn link_interface(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    create_link(program, ifindex, attach_type, 0)
}

/// The same, before all that is attached there.
pub(super) fn link_interface_first(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    create_link(program, ifindex, attach_type, BPF_F_BEFORE)
}

/// Attaches `program` to the cgroup by a link.
pub(crate) fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: bpf_attach_type,
) -> io::Result<OwnedFd> {
    create_link(program, cgroup.as_raw_fd() as u32, attach_type, 0)
}

fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: bpf_attach_type,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        target,
        attach_type: attach_type as u32,
        flags,
        ..LinkCreate::default()
    };
    // SAFETY: the command follows no address in its attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr) }.map(owned)
}

/// Makes `link` run `program` from its next packet on; none passes in between.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    // SAFETY: the command follows no address in its attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches `link` from what it is attached to, at once. To remove its pin would do so some time later. Kernel 5.9.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate { link: link.as_raw_fd() as u32, ..LinkUpdate::default() };
    // SAFETY: the command follows no address in its attribute.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr) }.map(drop)
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<bpf_link_info> {
    // SAFETY: all zero is a value of this structure of integers.
    let mut info: bpf_link_info = unsafe { zeroed() };
    let mut attr = Info {
        fd: link.as_raw_fd() as u32,
        len: size_of::<bpf_link_info>() as u32,
        info: &mut info as *mut bpf_link_info as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes at `info`.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// What `link` is attached to.
pub(crate) fn link_target(link: BorrowedFd<'_>) -> io::Result<LinkTarget> {
    let info = link_info(link)?;
    if info.type_ == bpf_link_type::BPF_LINK_TYPE_CGROUP as u32 {
        // SAFETY: the link's type says that this member of the union was written.
        let id = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
        return Ok(if id == 0 { LinkTarget::Gone } else { LinkTarget::Cgroup(id) });
    }
    // SAFETY: as above; this module makes no third kind of link.
    let ifindex = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(if ifindex == 0 { LinkTarget::Gone } else { LinkTarget::Interface(ifindex) })
}

/// How often `program` has run, and for how many nanoseconds in all, as far as the kernel has counted
/// (`sysctl kernel.bpf_stats_enabled`; kernel 5.1).
pub(super) fn program_runs(program: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    program_info(program).map(|info| (info.run_cnt, info.run_time_ns))
}

fn program_info(program: BorrowedFd<'_>) -> io::Result<bpf_prog_info> {
    // SAFETY: all zero is a value of this structure of integers.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    let mut attr = Info {
        fd: program.as_raw_fd() as u32,
        len: size_of::<bpf_prog_info>() as u32,
        info: &mut info as *mut bpf_prog_info as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes at `info`, and follows no address in it, since all are zero.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Has the kernel verify a program of nobody's, to be attached there. Kernel 4.17.
pub(crate) fn load_program(
    kind: bpf_prog_type,
    attach_type: bpf_attach_type,
    instructions: &[Instruction],
    licence: &CStr,
) -> io::Result<OwnedFd> {
    let mut attr = Load {
        kind: kind as u32,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        licence: licence.as_ptr() as u64,
        attach_type: attach_type as u32,
        ..Load::default()
    };
    // SAFETY: the kernel reads as many instructions as it is told of, which the slice holds, and a terminated string.
    unsafe { bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) }.map(owned)
}

/// Asks for a link of `program` to a cgroup that can't be.
pub(crate) fn link_nowhere(program: BorrowedFd<'_>, attach_type: bpf_attach_type) -> io::Result<()> {
    create_link(program, u32::MAX, attach_type, 0).map(drop)
}

/// Makes a map of keys and values of these sizes, which is nobody's until it is pinned; the name may be empty.
pub(crate) fn create_map(
    kind: bpf_map_type,
    key_size: u32,
    value_size: u32,
    entries: u32,
    name: &str,
) -> io::Result<OwnedFd> {
    let mut attr = Create { kind: kind as u32, key_size, value_size, entries, ..Create::default() };
    // The kernel keeps 15 characters.
    for (to, from) in attr.name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    // SAFETY: the command follows no address in its attribute.
    unsafe { bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr) }.map(owned)
}

/// How many instructions the kernel has verified of `program`; 0 where it does not say. Kernel 5.16.
pub(crate) fn verified_instructions(program: BorrowedFd<'_>) -> io::Result<u32> {
    program_info(program).map(|info| info.verified_insns)
}

/// The number of the program that `link` runs.
pub(crate) fn link_program(link: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(link).map(|info| info.prog_id)
}

/// How many keys a map has, whose keys have that many bytes. It may change meanwhile.
pub(crate) fn count_keys(map: BorrowedFd<'_>, key_size: usize) -> io::Result<u64> {
    let (mut key, mut next) = (vec![0_u8; key_size], vec![0_u8; key_size]);
    let mut count = 0;
    loop {
        let mut attr = NextKey {
            map: map.as_raw_fd() as u32,
            reserved: 0,
            key: if count == 0 { 0 } else { key.as_ptr() as u64 },
            next: next.as_mut_ptr() as u64,
        };
        // SAFETY: the kernel reads one key and writes one, for which both vectors have room.
        match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(_) => count += 1,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(count),
            Err(e) => return Err(e),
        }
        std::mem::swap(&mut key, &mut next);
    }
}

/// Pins an object at `path`, which must be on a bpf filesystem.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Pin { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    // SAFETY: `path` is a terminated string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens the object pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Pin { path: path.as_ptr() as u64, ..Pin::default() };
    // SAFETY: `path` is a terminated string that outlives the call.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET, &mut attr) }.map(owned)
}

/// The value that these bytes are, if they are as many as it has.
pub(crate) fn value_of<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: the bytes are there, and any bit pattern is a value of a `Pod`; the read needs no alignment.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes of a value.
pub(super) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: a `Pod` has no padding, so that all its bytes are initialised; they live as long as the value.
    unsafe { std::slice::from_raw_parts((value as *const T).cast(), size_of::<T>()) }
}

/// Nanoseconds of the clock that the programs read: monotonic, to the last tick.
pub(crate) fn coarse_clock() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Has the calling thread give way to others.
pub(crate) fn lower_priority() {
    // SAFETY: takes numbers; 0 is the calling thread, on Linux. Refused, it changes nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Gives memory that was freed back to the system.
pub(crate) fn trim_memory() {
    // SAFETY: takes a number, and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
