//! SCTP's checksum, and its chunks (RFC 9260, sections 3 and 6.8).
//!
//! The checksum is a CRC32c over the whole packet, which a program can't read through. It need not: a CRC is linear.
//! When the first four bytes change, the checksum changes by what those bytes' difference becomes after as many zero
//! bytes as follow them. Bits are reflected, as in the field on the wire: the least significant one comes first.

use crate::tcp::Flags;

/// The polynomial of CRC32c, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// `x` to the power of 8·2ⁿ modulo the polynomial: what a CRC is multiplied with by 2ⁿ zero bytes.
const ZERO_BYTES: [u32; 16] = powers();

/// One as a polynomial, reflected.
const ONE: u32 = 1 << 31;

const fn powers() -> [u32; 16] {
    let mut powers = [0; 16];
    // x to the eighth: one, shifted by one zero byte.
    let mut power = ONE >> 8;
    let mut n = 0;
    while n < powers.len() {
        powers[n] = power;
        power = multiply(power, power);
        n += 1;
    }
    powers
}

/// The product of two polynomials modulo CRC32c's, without a branch on their bits.
#[inline(always)]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        let taken = 0_u32.wrapping_sub(a >> (31 - bit) & 1);
        product ^= b & taken;
        let carried = 0_u32.wrapping_sub(b & 1);
        b = b >> 1 ^ POLYNOMIAL & carried;
        bit += 1;
    }
    product
}

/// What the checksum field, as it stands in memory, is to be XORed with, when the ports of a packet of `length`
/// bytes (at most 65,535, at least the twelve of the common header) change by the bits of `difference`, the XOR of
/// the old and new four bytes as they stand in memory.
#[inline(always)]
pub const fn change(difference: u32, length: u32) -> u32 {
    // The register that has taken in the four bytes is their difference times x to the 32nd: four zero bytes more.
    let zero_bytes = length;
    let mut change = u32::from_le_bytes(difference.to_ne_bytes());
    let mut n = 0;
    while n < ZERO_BYTES.len() {
        let has = 0_u32.wrapping_sub(zero_bytes >> n & 1);
        let factor = ZERO_BYTES[n] & has | ONE & !has;
        change = multiply(change, factor);
        n += 1;
    }
    // The field holds the CRC's bytes with the least significant one first (RFC 9260, appendix A).
    u32::from_ne_bytes(change.to_le_bytes())
}

/// What the first chunk of a packet says about its association, in TCP's words.
#[inline(always)]
pub const fn flags(chunk: u8) -> Flags {
    match chunk {
        INIT => Flags::OPENS,
        ABORT => Flags::RESETS,
        SHUTDOWN | SHUTDOWN_ACK => Flags::CLOSES,
        _ => Flags(0),
    }
}

const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC32c, bit by bit.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_check_value_of_crc32c_is_right() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_port_changes_the_checksum_as_computing_it_anew_does() {
        for length in [12_usize, 13, 16, 64, 1452, 1500, 9000, 65_515] {
            let mut packet: [u8; 65_515] = core::array::from_fn(|at| (at * 7 + 3) as u8);
            let packet = &mut packet[..length];
            packet[8..12].fill(0);
            let before = crc32c(packet);
            let old = u32::from_ne_bytes([packet[0], packet[1], packet[2], packet[3]]);
            packet[..4].copy_from_slice(&[0x12, 0x34, 0xab, 0xcd]);
            let new = u32::from_ne_bytes([0x12, 0x34, 0xab, 0xcd]);
            let field = u32::from_ne_bytes(before.to_le_bytes()) ^ change(old ^ new, length as u32);
            assert_eq!(field.to_ne_bytes(), crc32c(packet).to_le_bytes(), "{length} bytes");
        }
    }

    #[test]
    fn the_first_chunk_says_whether_an_association_begins_or_ends() {
        assert!(flags(INIT).opens());
        assert!(flags(ABORT).resets());
        assert!(flags(SHUTDOWN).closes() && flags(SHUTDOWN_ACK).closes());
        assert!(!flags(0).opens() && !flags(0).closes() && !flags(0).resets());
    }
}
