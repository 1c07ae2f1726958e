//! Packets on the wire: header, chunks, parameters, checksum.

/// An SCTP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// The verification tag that the receiver chose.
    pub tag: u32,
    /// What it carries.
    pub chunks: Vec<Chunk>,
}

/// A chunk of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its value, without header and padding.
    pub value: Vec<u8>,
}

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A length does not fit.
    Length,
    /// The checksum is not that of the packet.
    Checksum,
}

const HEADER: usize = 12;

impl Packet {
    /// A packet with one chunk without flags.
    pub fn with(source: u16, destination: u16, tag: u32, kind: u8, value: Vec<u8>) -> Self {
        Self { source, destination, tag, chunks: vec![Chunk { kind, flags: 0, value }] }
    }

    /// The packet as it goes over the wire, its checksum computed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        for chunk in &self.chunks {
            bytes.extend([chunk.kind, chunk.flags]);
            push_with_length(&mut bytes, &chunk.value);
        }
        let checksum = crc32c(&bytes);
        bytes[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet and checks its checksum.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Malformed::Length)?;
        let mut blank = bytes.to_vec();
        blank[8..HEADER].fill(0);
        if crc32c(&blank).to_le_bytes() != header[8..] {
            return Err(Malformed::Checksum);
        }
        let mut chunks = Vec::new();
        let mut rest = &bytes[HEADER..];
        while let [kind, flags, after @ ..] = rest {
            let (value, next) = value_with_length(after).ok_or(Malformed::Length)?;
            chunks.push(Chunk { kind: *kind, flags: *flags, value: value.to_vec() });
            rest = next;
        }
        Ok(Self {
            source: u16::from_be_bytes([header[0], header[1]]),
            destination: u16::from_be_bytes([header[2], header[3]]),
            tag: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
            chunks,
        })
    }

    /// The value of the first chunk of that kind.
    pub fn chunk(&self, kind: u8) -> Option<&[u8]> {
        self.chunks.iter().find(|chunk| chunk.kind == kind).map(|chunk| chunk.value.as_slice())
    }
}

/// Appends a parameter.
pub(super) fn push_parameter(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    push_with_length(bytes, value);
}

/// The value of the first parameter of that kind.
pub(super) fn parameter(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    while let [high, low, after @ ..] = bytes {
        let (value, next) = value_with_length(after)?;
        if u16::from_be_bytes([*high, *low]) == kind {
            return Some(value);
        }
        bytes = next;
    }
    None
}

/// Appends the length that chunks and parameters have after two bytes of their own, the value, and padding.
fn push_with_length(bytes: &mut Vec<u8>, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).expect("chunks of the tests fit into a datagram");
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Reads what [`push_with_length`] wrote: the value, and what follows its padding.
fn value_with_length(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(u16::from_be_bytes(*bytes.first_chunk()?)).checked_sub(4)?;
    let value = bytes.get(2..2 + length)?;
    let next = bytes.get(2 + length.next_multiple_of(4)..).unwrap_or_default();
    Some((value, next))
}

/// The checksum of RFC 9260, appendix A: CRC32c, to be stored with its lowest byte first.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8))
}

static TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0x82f6_3b78 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_castagnoli_polynomial() {
        // The check value of CRC-32/ISCSI, and the 32 zero bytes of RFC 3720, appendix B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn packets_are_read_as_written_and_damage_is_noticed() {
        let mut value = super::super::init(7);
        push_parameter(&mut value, 7, b"cookie");
        push_parameter(&mut value, 8, b"");
        let packet = Packet::with(1000, 80, 9, 1, value);
        let bytes = packet.to_bytes();
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(Packet::read(&bytes), Ok(packet.clone()));
        let parameters = &packet.chunk(1).unwrap()[super::super::INIT_LENGTH..];
        assert_eq!(parameter(parameters, 7), Some(b"cookie".as_slice()));
        assert_eq!(parameter(parameters, 8), Some(b"".as_slice()));
        assert_eq!(parameter(parameters, 9), None);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Packet::read(&damaged), Err(Malformed::Checksum), "byte {at}");
        }
        assert_eq!(Packet::read(&bytes[..8]), Err(Malformed::Length));
    }
}
