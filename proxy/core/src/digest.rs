//! A digest that is the same in every build and on every node, for texts that nobody chooses to collide.

/// FNV-1a of 64 bits (the IETF draft draft-eastlake-fnv), its bits mixed as SplitMix64 ends (Steele, Lea and Flood, 2014),
/// since FNV's upper bits depend little on the last bytes.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let fnv = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let once = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    twice ^ (twice >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_never_changes() {
        assert_eq!(digest(b""), 0xf52a_15e9_a9b5_e89b);
        assert_eq!(digest(b"Service shop/web"), 0x8c1d_152c_601f_0cb3);
    }
}
