//! Other builds of the agent, for tests of upgrades: the same executable with other programs in it.
//!
//! Building the sources differently takes minutes and a toolchain. Instead, in a copy of the executable, two
//! neighbouring instructions of an eBPF program that set registers and do not depend on each other change places,
//! wherever that can be done. No program behaves differently, but the kernel sees others: their tags differ. Or else each
//! section of programs begins with an exit, before there is a number to exit with: then the kernel refuses them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// An ELF file's first bytes: 64 bits, little endian.
const MAGIC: [u8; 6] = [0x7f, b'E', b'L', b'F', 2, 1];
/// The machine number of eBPF.
const EM_BPF: u16 = 247;
/// The flag of sections that hold instructions.
const SHF_EXECINSTR: u64 = 4;
const INSTRUCTION: usize = 8;
/// `dst = imm` and `dst = src`, of 64 and of 32 bits.
const MOVES_IMM: [u8; 2] = [0xb7, 0xb4];
const MOVES_REGISTER: [u8; 2] = [0xbf, 0xbc];
/// The load of 64 bits that takes two instructions' places.
const LOAD64: u8 = 0x18;
/// `goto` with a 32-bit offset, a call, and an exit: of the jumps those whose offset is not in the usual place.
const LONG_GOTO: u8 = 0x06;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Writes to `copy` the executable `original` with other programs; returns how many pairs changed places.
///
/// # Errors
/// When a file can't be read or written, or the executable holds no programs.
pub fn another_build(original: &Path, copy: &Path) -> Result<usize> {
    rebuild(original, copy, swap_moves)
}

/// Writes to `copy` the executable `original` with programs that the kernel refuses.
///
/// # Errors
/// As [`another_build`].
pub fn refused_build(original: &Path, copy: &Path) -> Result<()> {
    let spoil = |code: &mut [u8]| {
        let first = code.first_chunk_mut::<INSTRUCTION>();
        first.map_or(0, |first| {
            *first = [EXIT, 0, 0, 0, 0, 0, 0, 0];
            1
        })
    };
    rebuild(original, copy, spoil).map(drop)
}

/// Writes to `copy` the executable `original` with each section of programs changed; returns how many changes there were.
fn rebuild(original: &Path, copy: &Path, change: impl Fn(&mut [u8]) -> usize) -> Result<usize> {
    let mut bytes = fs::read(original).with_context(|| format!("read {}", original.display()))?;
    let mut swapped = 0;
    for at in objects(&bytes) {
        let sections = code_sections(&bytes[at..]).context("understand the embedded eBPF object")?;
        for (offset, length) in sections {
            let code =
                bytes.get_mut(at + offset..at + offset + length).context("a section beyond the file")?;
            swapped += change(code);
        }
    }
    ensure!(swapped > 0, "{} holds no eBPF programs: make setup, and build again", original.display());
    if let Some(dir) = copy.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    // Copied first, so that it is an executable as well.
    fs::copy(original, copy)
        .and_then(|_| fs::write(copy, &bytes))
        .with_context(|| format!("write {}", copy.display()))?;
    Ok(swapped)
}

/// Where eBPF objects begin.
fn objects(bytes: &[u8]) -> Vec<usize> {
    let begins = bytes.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    begins.map(|(at, _)| at).filter(|&at| half(bytes, at + 18) == Some(EM_BPF)).collect()
}

/// Offset and length of each section with instructions.
fn code_sections(object: &[u8]) -> Option<Vec<(usize, usize)>> {
    let table = usize::try_from(long(object, 0x28)?).ok()?;
    let (size, count) = (usize::from(half(object, 0x3a)?), usize::from(half(object, 0x3c)?));
    let mut sections = Vec::new();
    for header in (0..count).map(|index| table + index * size) {
        if long(object, header + 8)? & SHF_EXECINSTR != 0 {
            let offset = usize::try_from(long(object, header + 0x18)?).ok()?;
            sections.push((offset, usize::try_from(long(object, header + 0x20)?).ok()?));
        }
    }
    Some(sections)
}

/// Swaps neighbours that set registers independently, unless a jump leads between them.
fn swap_moves(code: &mut [u8]) -> usize {
    let targets = jump_targets(code);
    let (mut at, mut swapped) = (0, 0);
    let count = code.len() / INSTRUCTION;
    while at + 1 < count {
        let pair = &mut code[at * INSTRUCTION..(at + 2) * INSTRUCTION];
        let (first, second) = pair.split_at_mut(INSTRUCTION);
        if are_independent(first, second) && !targets.contains(&(at + 1)) {
            first.swap_with_slice(second);
            swapped += 1;
            at += 2;
        } else {
            at += width(first[0]);
        }
    }
    swapped
}

/// Whether both are moves, and neither reads or writes the register that the other writes.
fn are_independent(first: &[u8], second: &[u8]) -> bool {
    let parts = |instruction: &[u8]| {
        let (written, read) = (instruction[1] & 15, instruction[1] >> 4);
        if MOVES_IMM.contains(&instruction[0]) {
            Some((written, None))
        } else {
            MOVES_REGISTER.contains(&instruction[0]).then_some((written, Some(read)))
        }
    };
    match (parts(first), parts(second)) {
        (Some((one, from_one)), Some((other, from_other))) => {
            one != other && from_one != Some(other) && from_other != Some(one)
        }
        _ => false,
    }
}

/// The instructions that jumps lead to, a call's target counting as one.
fn jump_targets(code: &[u8]) -> BTreeSet<usize> {
    let mut targets = BTreeSet::new();
    let (mut at, count) = (0, code.len() / INSTRUCTION);
    while at < count {
        let instruction = &code[at * INSTRUCTION..][..INSTRUCTION];
        let operation = instruction[0];
        let short = i64::from(i16::from_le_bytes([instruction[2], instruction[3]]));
        let wide =
            i64::from(i32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]));
        let offset = match operation {
            LONG_GOTO | CALL => Some(wide),
            EXIT => None,
            // The classes of jumps, with 64- and 32-bit operands.
            _ if matches!(operation & 7, 5 | 6) => Some(short),
            _ => None,
        };
        let target = offset.and_then(|offset| usize::try_from(at as i64 + 1 + offset).ok());
        targets.extend(target);
        at += width(operation);
    }
    targets
}

/// How many instructions' places it takes.
fn width(operation: u8) -> usize {
    if operation == LOAD64 { 2 } else { 1 }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn load(register: u8, value: u8) -> [u8; 8] {
        [MOVES_IMM[0], register, 0, 0, value, 0, 0, 0]
    }

    const fn copy(register: u8, from: u8) -> [u8; 8] {
        [MOVES_REGISTER[0], from << 4 | register, 0, 0, 0, 0, 0, 0]
    }

    #[test]
    fn only_independent_moves_that_no_jump_parts_change_places() {
        let jump = |offset: u8| [0x05, 0, offset, 0, 0, 0, 0, 0];
        let exit = [EXIT, 0, 0, 0, 0, 0, 0, 0];
        let wide = [[LOAD64, 1, 0, 0, 0, 0, 0, 0], load(2, 9)];
        for (code, expected) in [
            (vec![load(1, 5), load(2, 6), exit], vec![load(2, 6), load(1, 5), exit]),
            (vec![load(1, 5), load(1, 6), exit], vec![load(1, 5), load(1, 6), exit]),
            (vec![copy(1, 6), copy(2, 6), exit], vec![copy(2, 6), copy(1, 6), exit]),
            (vec![copy(1, 2), load(2, 6), exit], vec![copy(1, 2), load(2, 6), exit]),
            (vec![load(1, 5), copy(2, 1), exit], vec![load(1, 5), copy(2, 1), exit]),
            (vec![jump(1), load(1, 5), load(2, 6), exit], vec![jump(1), load(1, 5), load(2, 6), exit]),
            (vec![jump(0), load(1, 5), load(2, 6), exit], vec![jump(0), load(2, 6), load(1, 5), exit]),
            // The second half of a wide load is no instruction, whatever it looks like.
            (vec![wide[0], wide[1], load(3, 1), exit], vec![wide[0], wide[1], load(3, 1), exit]),
        ] {
            let mut bytes = code.concat();
            swap_moves(&mut bytes);
            assert_eq!(bytes, expected.concat(), "{code:?}");
        }
    }

    #[test]
    fn another_build_of_the_agent_has_other_programs_and_the_same_size() {
        let Ok(original) = crate::binary("fairlead-proxy") else { return };
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("fairlead-proxy");
        // Built where the eBPF toolchain is missing, it has no programs to change.
        if let Ok(swapped) = another_build(&original, &copy) {
            assert!(swapped > 10, "only {swapped} pairs changed places");
            let (before, after) = (fs::read(&original).unwrap(), fs::read(&copy).unwrap());
            assert_eq!(before.len(), after.len());
            let changed = before.iter().zip(&after).filter(|(one, other)| one != other).count();
            assert!(changed > 0 && changed <= swapped * 16, "{changed} bytes differ");
        }
    }
}
