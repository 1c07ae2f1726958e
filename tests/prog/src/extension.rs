//! IPv6 extension headers (RFC 8200, section 4).

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extension {
    /// Hop-by-hop, routing or destination options, by number, with this many units of eight bytes.
    Units(u8, usize),
    /// A fragment header.
    Fragment(u16),
}

impl Extension {
    /// The number that stands for it in the header before.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Self::Units(number, _) => *number,
            Self::Fragment(_) => 44,
        }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Units(_, units) => units * 8,
            Self::Fragment(_) => 8,
        }
    }

    /// Its bytes, where `next` follows.
    pub(crate) fn bytes(&self, next: u8) -> Vec<u8> {
        match self {
            Self::Units(_, units) => {
                // One PadN option fills the header (RFC 8200, section 4.2).
                let mut bytes = vec![0; units * 8];
                bytes[..4].copy_from_slice(&[next, (units - 1) as u8, 1, (units * 8 - 4) as u8]);
                bytes
            }
            Self::Fragment(field) => {
                let [high, low] = field.to_be_bytes();
                vec![next, 0, high, low, 0, 0, 0, 1]
            }
        }
    }
}
