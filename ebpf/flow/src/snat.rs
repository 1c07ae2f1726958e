//! Which ports a masqueraded flow may try.

use fairlead_abi::Port;

/// How many ports are tried for one that is free.
pub const FREE_ATTEMPTS: u32 = 8;
/// How many more are tried for one that may be taken over, before the flow is dropped.
pub const ATTEMPTS: u32 = 16;

/// The port of the `attempt`th try in a range of `count` (a power of two) ports that starts at `first`.
///
/// The tries of one flow start at a place drawn from `seed` and go on from there.
#[inline(always)]
pub const fn candidate(first: u16, count: u16, seed: u32, attempt: u32) -> Port {
    let offset = seed.wrapping_add(attempt) & (count.wrapping_sub(1) as u32);
    Port::new(first.wrapping_add(offset as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_stay_in_the_range_and_do_not_repeat() {
        let mut seen = [false; 64];
        for attempt in 0..64 {
            let port = candidate(50_000, 64, 0xdead_beef, attempt).number();
            assert!((50_000..50_064).contains(&port));
            let place = usize::from(port - 50_000);
            assert!(!seen[place], "port {port} came twice");
            seen[place] = true;
        }
    }

    #[test]
    fn a_range_may_end_at_the_last_port() {
        assert_eq!(candidate(49_152, 16_384, 16_383, 0).number(), 65_535);
        assert_eq!(candidate(49_152, 16_384, 16_383, 1).number(), 49_152);
    }
}
