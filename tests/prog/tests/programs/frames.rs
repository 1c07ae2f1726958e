//! How deep the programs' frames go, as the oldest kernel reckons that they are meant for. This kernel's verifier may be
//! content with more.

use std::collections::HashMap;

use fairlead_object::OBJECT;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionIndex, SymbolKind};

/// What all frames of a chain of calls may have in bytes (`MAX_BPF_STACK`).
const MOST: u32 = 512;
/// How many frames there may be (`MAX_CALL_FRAMES`).
const FRAMES: usize = 8;
/// Each frame is rounded up to this (`check_max_stack_depth` of kernel 6.1; later ones take 16, or stacks of their own).
const STEP: u32 = 32;

/// Where a function begins: its section, and the offset there.
type Start = (SectionIndex, u64);

#[derive(Default)]
struct Function {
    name: String,
    /// Bytes below the frame pointer.
    depth: u32,
    calls: Vec<Start>,
}

/// An instruction (RFC 9669, section 3).
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    const FRAME_POINTER: u8 = 10;

    fn new(bytes: &[u8; 8]) -> Self {
        let [code, registers, a, b, c, d, e, f] = *bytes;
        Self {
            code,
            destination: registers & 15,
            source: registers >> 4,
            offset: i16::from_le_bytes([a, b]),
            immediate: i32::from_le_bytes([c, d, e, f]),
        }
    }

    /// Whether another function of the object is called.
    fn is_call(&self) -> bool {
        self.code == 0x85 && self.source == 1
    }
}

/// How far below the frame pointer the code reaches: by loads and stores, and by addresses that it reckons.
fn depth(code: &[Instruction]) -> u32 {
    let mut lowest = 0_i32;
    let mut copies = [false; 16];
    for step in code {
        let class = step.code & 7;
        let at_frame = match class {
            1 => step.source == Instruction::FRAME_POINTER,
            2 | 3 => step.destination == Instruction::FRAME_POINTER,
            _ => false,
        };
        if at_frame {
            lowest = lowest.min(step.offset.into());
        }
        let copy = &mut copies[usize::from(step.destination)];
        match step.code {
            0xbf => *copy = step.source == Instruction::FRAME_POINTER,
            0x07 if *copy => {
                lowest = lowest.min(step.immediate);
                *copy = false;
            }
            _ => {}
        }
    }
    lowest.unsigned_abs()
}

fn functions(file: &object::File<'_>) -> HashMap<Start, Function> {
    let mut functions = HashMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0) {
        let Some(index) = symbol.section_index() else { continue };
        let section = file.section_by_index(index).expect("a section");
        let bytes = section.data_range(symbol.address(), symbol.size()).expect("code").expect("code");
        let code: Vec<Instruction> = bytes.as_chunks().0.iter().map(Instruction::new).collect();
        let relocations: HashMap<u64, RelocationTarget> =
            section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
        let begin = symbol.address();
        let called = |(at, step): (u64, &Instruction)| {
            let beyond = |start: u64| start.wrapping_add_signed((i64::from(step.immediate) + 1) * 8);
            match relocations.get(&at) {
                Some(RelocationTarget::Symbol(target)) => {
                    let target = file.symbol_by_index(*target).expect("a symbol");
                    let start =
                        if target.kind() == SymbolKind::Section { beyond(0) } else { target.address() };
                    (target.section_index().expect("a section"), start)
                }
                _ => (index, beyond(at)),
            }
        };
        let offsets = (begin..).step_by(8);
        let calls = offsets.zip(&code).filter(|(_, step)| step.is_call()).map(called).collect();
        let name = symbol.name().expect("a name").to_owned();
        functions.insert((index, begin), Function { name, depth: depth(&code), calls });
    }
    functions
}

/// The deepest chain of calls from there on.
fn deepest(functions: &HashMap<Start, Function>, start: Start, frames: usize) -> (u32, String) {
    assert!(frames <= FRAMES, "more than {FRAMES} frames");
    let function = functions.get(&start).unwrap_or_else(|| panic!("no function at {start:?}"));
    let own = function.depth.max(1).next_multiple_of(STEP);
    let below = function.calls.iter().map(|call| deepest(functions, *call, frames + 1)).max();
    let (depth, chain) = below.unwrap_or_default();
    (own + depth, format!("{} {} > {chain}", function.name, function.depth))
}

#[test]
#[ignore = "needs the eBPF programs: run make test"]
fn no_chain_of_calls_has_more_frames_than_kernel_6_1_takes() {
    let file = object::File::parse(OBJECT).expect("an object file");
    let functions = functions(&file);
    let mut entries = 0;
    for (start, function) in &functions {
        let section = file.section_by_index(start.0).expect("a section");
        let section = section.name().expect("a name");
        if !["classifier", "cgroup"].iter().any(|kind| section.starts_with(kind)) {
            continue;
        }
        entries += 1;
        let (depth, chain) = deepest(&functions, *start, 1);
        println!("{}: {depth}", function.name);
        assert!(depth <= MOST, "{depth} bytes of {MOST}: {chain}");
    }
    assert!(entries >= 10, "only {entries} programs were found");
}
