//! What a policy says to one identity: a table of ports, in the one form that equal tables share.
//!
//! ```text
//! segments of each protocol ──► the fewest prefixes that say the same ──► entries of ROWS
//! 0 deny, 80 allow, 81 deny     tcp 80/16 allow, all else deny
//! ```

use fairlead_abi::rows;

use crate::dataplane::RowPrefix;
use crate::model::Protocol;

/// How many verdicts there are: the numbers of rows that say the same to every packet.
const VERDICTS: u32 = rows::FIRST;
/// Bits of a port.
const PORT_BITS: u32 = 16;

/// The protocols that have ports.
pub(super) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// The verdicts of one protocol: each from its first port on to the next one's. The first is that of port 0.
pub(super) type Segments = Vec<(u16, u32)>;

/// A table of ports. Tables that say the same are equal.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Row {
    /// The verdict of packets that no entry covers.
    whole: u32,
    /// In order.
    entries: Box<[Entry]>,
}

/// The verdict of a protocol's ports with a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Entry {
    protocol: Protocol,
    first: u16,
    bits: u32,
    verdict: u32,
}

impl Row {
    /// The table with this verdict for packets without ports, and these for the [`PROTOCOLS`], in their order.
    pub(super) fn new(whole: u32, protocols: &[Segments; 3]) -> Self {
        let mut entries = Vec::new();
        for (protocol, segments) in PROTOCOLS.into_iter().zip(protocols) {
            let block = Block { first: 0, bits: 0 };
            let choices = choices(segments, block);
            choices.emit(block, whole, &mut |block, verdict| {
                entries.push(Entry { protocol, first: block.first, bits: block.bits, verdict });
            });
        }
        Self { whole, entries: entries.into() }
    }

    /// The row that these entries of a map are, if they are one.
    pub(super) fn from_entries(found: &[(RowPrefix, u32)]) -> Option<Self> {
        let mut whole = None;
        let mut entries = Vec::new();
        for (RowPrefix { key, prefix_len }, verdict) in found {
            if *verdict >= VERDICTS {
                return None;
            }
            match prefix_len.checked_sub(rows::PROTOCOL_BITS) {
                None if *prefix_len == rows::ROW_BITS => whole = Some(*verdict),
                None => return None,
                Some(bits) => entries.push(Entry {
                    protocol: Protocol::from_number(key.protocol)?,
                    first: u16::from_be_bytes(key.port),
                    bits,
                    verdict: *verdict,
                }),
            }
        }
        entries.sort_unstable();
        Some(Self { whole: whole?, entries: entries.into() })
    }

    /// The verdict, if it is the same for every packet: then the row needs no entries, and this is its number.
    pub(super) fn constant(&self) -> Option<u32> {
        self.entries.is_empty().then_some(self.whole)
    }

    /// The entries of the row under this number, the one that every row has first.
    pub(super) fn entries(&self, number: u32) -> impl Iterator<Item = (RowPrefix, u32)> + '_ {
        let ports = self.entries.iter().map(move |entry| {
            (RowPrefix::ports(number, entry.protocol, entry.first, entry.bits), entry.verdict)
        });
        std::iter::once((RowPrefix::whole(number), self.whole)).chain(ports)
    }

    /// How many entries it has in the map.
    pub(super) fn len(&self) -> usize {
        if self.entries.is_empty() { 0 } else { 1 + self.entries.len() }
    }

    /// What it says to a packet; `None` for a protocol without ports.
    #[cfg(test)]
    pub(super) fn verdict(&self, protocol: Option<Protocol>, port: u16) -> u32 {
        let covers = |entry: &&Entry| {
            Some(entry.protocol) == protocol
                && (entry.first ^ port).checked_shr(PORT_BITS - entry.bits).unwrap_or(0) == 0
        };
        let longest = self.entries.iter().filter(covers).max_by_key(|entry| entry.bits);
        longest.map_or(self.whole, |entry| entry.verdict)
    }
}

/// The ports that share the first `bits` bits of `first`.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: u16,
    bits: u32,
}

impl Block {
    fn last(self) -> u16 {
        self.first | u16::MAX.checked_shr(self.bits).unwrap_or(0)
    }

    fn halves(self) -> [Self; 2] {
        let bits = self.bits + 1;
        [Self { first: self.first, bits }, Self { first: self.first | 1 << (PORT_BITS - bits), bits }]
    }
}

/// Which verdicts a block might inherit at no more than the least cost (R. Draves et al., "Constructing Optimal IP
/// Routing Tables", 1999), as a set of bits.
#[derive(Debug)]
struct Choices {
    verdicts: u32,
    halves: Option<Box<[Choices; 2]>>,
}

fn choices(segments: &[(u16, u32)], block: Block) -> Choices {
    let place = segments.partition_point(|(first, _)| *first <= block.first) - 1;
    let is_uniform = segments.get(place + 1).is_none_or(|(next, _)| *next > block.last());
    if is_uniform {
        return Choices { verdicts: 1 << segments[place].1, halves: None };
    }
    let halves = block.halves().map(|half| choices(segments, half));
    let [low, high] = &halves;
    let both = low.verdicts & high.verdicts;
    let verdicts = if both == 0 { low.verdicts | high.verdicts } else { both };
    Choices { verdicts, halves: Some(halves.into()) }
}

impl Choices {
    fn emit(&self, block: Block, inherited: u32, entry: &mut impl FnMut(Block, u32)) {
        let mut verdict = inherited;
        if self.verdicts & 1 << inherited == 0 {
            verdict = self.verdicts.trailing_zeros();
            entry(block, verdict);
        }
        if let Some(halves) = &self.halves {
            for (half, choices) in block.halves().into_iter().zip(halves.iter()) {
                choices.emit(half, verdict, entry);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: u32 = 0;
    const ALLOW: u32 = 1;

    fn nothing() -> Segments {
        vec![(0, DENY)]
    }

    fn row(tcp: Segments) -> Row {
        Row::new(DENY, &[tcp, nothing(), nothing()])
    }

    #[test]
    fn a_table_says_of_every_port_what_its_segments_say() {
        let mut state = 7_u32;
        let mut next = |bound: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % bound
        };
        for turn in 0..24 {
            let mut starts: Vec<u16> = (0..next(9)).map(|_| next(65_536) as u16).collect();
            starts.extend([0, 1, 80, 65_535].into_iter().take(1 + turn % 4));
            starts.sort_unstable();
            starts.dedup();
            let segments: Segments = starts.iter().map(|start| (*start, next(4))).collect();
            let row = Row::new(next(4), &[segments.clone(), nothing(), nothing()]);
            for port in 0..=u16::MAX {
                let place = segments.partition_point(|(first, _)| *first <= port) - 1;
                assert_eq!(
                    row.verdict(Some(Protocol::Tcp), port),
                    segments[place].1,
                    "{segments:?} at {port}"
                );
            }
        }
    }

    #[test]
    fn tables_are_as_small_as_they_can_be() {
        assert_eq!(row(vec![(0, DENY), (80, ALLOW), (81, DENY)]).len(), 2);
        assert_eq!(row(vec![(0, ALLOW), (80, DENY), (81, ALLOW)]).len(), 3, "all of tcp, then the exception");
        assert_eq!(row(vec![(0, DENY), (1024, ALLOW), (2048, DENY)]).len(), 2);
        assert_eq!(row(vec![(0, DENY)]).constant(), Some(DENY));
        assert_eq!(Row::new(ALLOW, &[nothing(), nothing(), nothing()]).len(), 4);
    }

    #[test]
    fn equal_tables_are_one_however_they_are_cut() {
        assert_eq!(
            row(vec![(0, DENY), (80, ALLOW), (100, ALLOW), (200, DENY), (300, DENY)]),
            row(vec![(0, DENY), (80, ALLOW), (200, DENY)])
        );
    }

    #[test]
    fn a_row_is_known_again_by_its_entries() {
        let row = row(vec![(0, DENY), (80, ALLOW), (1000, DENY)]);
        let mut entries: Vec<_> = row.entries(9).collect();
        assert_eq!(entries.len(), row.len());
        entries.reverse();
        assert_eq!(Row::from_entries(&entries), Some(row));
        entries.pop();
        assert_eq!(Row::from_entries(&entries), None, "without the entry that every row has");
    }
}
