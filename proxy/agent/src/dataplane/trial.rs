//! Small loads that ask the kernel what it can do. Nothing of them stays: a program or map is gone with its descriptor.
//!
//! [`crate::kernel`] puts the questions. They are here because bpf(2) takes addresses.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_map_type, bpf_prog_type};

use super::{links, sys};

/// An instruction as the kernel has it (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// `r0 = 1`, which every program type may return.
const ONE: Instruction = instruction(0xb7, 0, 0, 1);
/// `exit`.
const EXIT: Instruction = instruction(0x95, 0, 0, 0);
/// `r1 = 1`.
const COUNT: Instruction = instruction(0xb7, 1, 0, 1);

/// The size of a ring buffer: a page of any machine, or a few.
const RING: u32 = 1 << 16;
/// More instructions than a kernel before 5.2 takes.
const MANY: usize = 5000;
const LICENCE: &CStr = c"Dual MIT/GPL";

/// What a trial program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trial {
    /// Nothing.
    Nothing,
    /// Compares the lower half of a register.
    HalfRegister,
    /// Adds to memory, and takes what was there.
    FetchingAdd,
    /// Jumps back.
    Loop,
    /// Is long.
    Long,
}

impl Trial {
    fn instructions(self) -> Vec<Instruction> {
        match self {
            Self::Nothing => vec![ONE, EXIT],
            // if w1 == 0 goto +0
            Self::HalfRegister => vec![COUNT, instruction(0x16, 1, 0, 0), ONE, EXIT],
            // *(u64 *)(r10 - 8) = r1; r1 = atomic_fetch_add((u64 *)(r10 - 8), r1)
            Self::FetchingAdd => {
                vec![COUNT, instruction(0x7b, 0x1a, -8, 0), instruction(0xdb, 0x1a, -8, 1), ONE, EXIT]
            }
            // r1 += 1; if r1 < 8 goto -2
            Self::Loop => {
                vec![COUNT, instruction(0x07, 1, 0, 1), instruction(0xa5, 1, -2, 8), ONE, EXIT]
            }
            Self::Long => {
                let mut program = vec![ONE; MANY];
                program.push(EXIT);
                program
            }
        }
    }
}

/// Has the kernel verify a tc program.
pub(crate) fn classifier(trial: Trial) -> io::Result<OwnedFd> {
    let anywhere = bpf_attach_type::BPF_CGROUP_INET_INGRESS;
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, anywhere, &trial.instructions(), LICENCE)
}

/// Whether programs can be attached by tcx.
pub(crate) fn tcx() -> io::Result<bool> {
    let program = classifier(Trial::Nothing)?;
    Ok(links::has_tcx(program.as_fd()))
}

/// Whether a program can be loaded for this hook of a cgroup, and attached there by a link: asked for a cgroup that can't
/// be, a kernel that knows the hook misses the cgroup.
///
/// # Errors
/// When the kernel takes no program for it.
pub(crate) fn cgroup_hook(attach: bpf_attach_type) -> io::Result<()> {
    let kind = match attach {
        bpf_attach_type::BPF_CGROUP_INET4_POST_BIND | bpf_attach_type::BPF_CGROUP_INET6_POST_BIND => {
            bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK
        }
        _ => bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
    };
    let program = sys::load_program(kind, attach, &Trial::Nothing.instructions(), LICENCE)?;
    match sys::link_nowhere(program.as_fd(), attach) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => Ok(()),
        Err(e) => Err(e),
        Ok(()) => Err(io::Error::other("it attached the program to no cgroup at all")),
    }
}

/// Writes and reads a hash and an array of a few entries, all in one call each.
pub(crate) fn batches() -> io::Result<()> {
    for kind in [bpf_map_type::BPF_MAP_TYPE_HASH, bpf_map_type::BPF_MAP_TYPE_ARRAY] {
        let map = sys::create_map(kind, size_of::<u32>() as u32, size_of::<u32>() as u32, 4, "")?;
        sys::update_batch(map.as_fd(), &[0_u32, 1], &[2_u32, 3])?;
        let entries = sys::read_all::<u32, u32>(map.as_fd())?;
        if !entries.contains(&(1, 3)) {
            return Err(io::Error::other("what was written in one call is not read back"));
        }
    }
    Ok(())
}

/// Has the kernel verify a program that looks up a key in a ring buffer's memory, which is treated like that of arguments.
pub(crate) fn keys_in_memory() -> io::Result<()> {
    let ring = sys::create_map(bpf_map_type::BPF_MAP_TYPE_RINGBUF, 0, 0, RING, "")?;
    let map = sys::create_map(bpf_map_type::BPF_MAP_TYPE_HASH, 8, 8, 1, "")?;
    // r1 = map
    let point_to = |map: &OwnedFd| [instruction(0x18, 0x11, 0, map.as_raw_fd()), instruction(0, 0, 0, 0)];
    let set = |register: u8, value: i32| instruction(0xb7, register, 0, value);
    let call = |helper: bpf_func_id| instruction(0x85, 0, 0, helper as i32);
    let mut program = Vec::new();
    program.extend(point_to(&ring));
    program.extend([set(2, 8), set(3, 0), call(bpf_func_id::BPF_FUNC_ringbuf_reserve)]);
    // if r0 == 0 goto +9; r6 = r0; *(u64 *)(r6 + 0) = 0
    program.extend([instruction(0x15, 0, 9, 0), instruction(0xbf, 0x06, 0, 0), instruction(0x7a, 6, 0, 0)]);
    program.extend(point_to(&map));
    // r2 = r6
    program.extend([instruction(0xbf, 0x62, 0, 0), call(bpf_func_id::BPF_FUNC_map_lookup_elem)]);
    // r1 = r6
    program.extend([instruction(0xbf, 0x61, 0, 0), set(2, 0), call(bpf_func_id::BPF_FUNC_ringbuf_discard)]);
    program.extend([ONE, EXIT]);
    let anywhere = bpf_attach_type::BPF_CGROUP_INET_INGRESS;
    sys::load_program(bpf_prog_type::BPF_PROG_TYPE_SCHED_CLS, anywhere, &program, LICENCE).map(drop)
}

/// Whether the kernel tells how many instructions it has verified of a program.
pub(crate) fn verified_instructions() -> io::Result<bool> {
    let program = classifier(Trial::Nothing)?;
    Ok(sys::verified_instructions(program.as_fd())? > 0)
}
