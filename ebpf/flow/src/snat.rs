//! Which ports a masqueraded flow may try, and when an entry's port may be taken over.

use fairlead_abi::{Flow, Port, flow_flags, protocol};

/// How many ports are tried before the flow is dropped.
pub const ATTEMPTS: u32 = 16;

const SECOND: u64 = 1_000_000_000;
/// A connection's port rests this long after a FIN from one side, if the other falls silent.
pub const CLOSING_REST: u64 = SECOND;
/// A connection's port rests this long after an RST, or a FIN from both. A segment that still follows an RST shows
/// that it was not believed, and takes the mark away.
pub const ENDED_REST: u64 = SECOND / 10;
/// The kernel's own timeout for an established TCP connection (nf_conntrack_tcp_timeout_established).
pub const TCP_IDLE: u64 = 432_000 * SECOND;
/// The kernel's own timeout for a UDP stream (nf_conntrack_udp_timeout_stream).
pub const UDP_IDLE: u64 = 120 * SECOND;

/// The port of the `attempt`th try in a range of `count` (a power of two) ports that starts at `first`.
///
/// The tries of one flow start at a place drawn from `seed` and go on from there.
#[inline(always)]
pub const fn candidate(first: u16, count: u16, seed: u32, attempt: u32) -> Port {
    let offset = seed.wrapping_add(attempt) & (count.wrapping_sub(1) as u32);
    Port::new(first.wrapping_add(offset as u16))
}

/// Whether the reply entry `held` may be given to another flow at `now`.
#[inline(always)]
pub const fn may_take_over(held: &Flow, ip_protocol: u8, now: u64) -> bool {
    let idle = now.saturating_sub(held.last_seen);
    if held.flags & (flow_flags::RESET | flow_flags::CLOSED) != 0 {
        return idle > ENDED_REST;
    }
    if held.flags & flow_flags::CLOSING != 0 {
        return idle > CLOSING_REST;
    }
    idle > if ip_protocol == protocol::TCP { TCP_IDLE } else { UDP_IDLE }
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

    #[test]
    fn a_live_connection_keeps_its_port_and_a_closed_one_gives_it_up_after_a_rest() {
        let now = 1_000_000 * SECOND;
        let live = Flow { last_seen: now - 60 * SECOND, ..Flow::default() };
        assert!(!may_take_over(&live, protocol::TCP, now));
        let closed = Flow { flags: flow_flags::CLOSING, ..live };
        assert!(may_take_over(&closed, protocol::TCP, now));
        let just_closed = Flow { last_seen: now - SECOND / 2, ..closed };
        assert!(!may_take_over(&just_closed, protocol::TCP, now));
        for flags in [flow_flags::RESET, flow_flags::CLOSING | flow_flags::CLOSED] {
            let ended = Flow { flags, ..just_closed };
            assert!(may_take_over(&ended, protocol::TCP, now));
            let just_ended = Flow { last_seen: now - SECOND / 20, ..ended };
            assert!(!may_take_over(&just_ended, protocol::TCP, now));
        }
        let quiet = Flow { last_seen: now - 121 * SECOND, ..Flow::default() };
        assert!(may_take_over(&quiet, protocol::UDP, now));
    }
}
