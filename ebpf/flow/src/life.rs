//! How long the entries of the flow table live, by what their connection last did.
//!
//! Times are in nanoseconds of the monotonic clock. An entry that is over may be removed by anybody: by a program
//! that needs its place, or by the agent, which sweeps the table.

use fairlead_abi::{Flow, flow_flags, protocol};

const SECOND: u64 = 1_000_000_000;

/// A connection's port rests this long after a FIN from one side, if the other falls silent.
pub const CLOSING_REST: u64 = SECOND;
/// A connection's port rests this long after an RST, or a FIN from both. A segment that still follows an RST shows
/// that it was not believed, and takes the mark away.
pub const ENDED_REST: u64 = SECOND / 10;
/// A connection that ended (RST, or FIN from both) is over after this long without a packet: ten seconds, the
/// kernel's own nf_conntrack_tcp_timeout_close.
pub const ENDED: u64 = 10 * SECOND;
/// A connection that one side closed is over after an hour (kube-proxy's --conntrack-tcp-timeout-close-wait).
pub const CLOSING: u64 = 3_600 * SECOND;
/// An answered TCP connection is over after a day (kube-proxy's --conntrack-tcp-timeout-established).
pub const TCP: u64 = 86_400 * SECOND;
/// A TCP or SCTP connection that was never answered is over after two minutes (nf_conntrack_tcp_timeout_syn_sent).
pub const TCP_OPENING: u64 = 120 * SECOND;
/// An answered SCTP association is over after 210 seconds (nf_conntrack_sctp_timeout_established): its heartbeats
/// come every thirty (RFC 9260, section 16).
pub const SCTP: u64 = 210 * SECOND;
/// A UDP flow that was answered is over after two minutes (nf_conntrack_udp_timeout_stream).
pub const UDP: u64 = 120 * SECOND;
/// A UDP flow that was never answered is over after half a minute (nf_conntrack_udp_timeout).
pub const UDP_OPENING: u64 = 30 * SECOND;

/// When places are scarce, a flow that was never answered is over after two seconds without a packet, like the
/// kernel's early drop of connections that are not assured: a flood of first packets then takes no place for long.
pub const OPENING_IF_SCARCE: u64 = 2 * SECOND;

/// How long the entry may stay without a packet.
#[inline(always)]
pub const fn span(flow: &Flow, ip_protocol: u8) -> u64 {
    let flags = flow.flags;
    if flags & (flow_flags::RESET | flow_flags::CLOSED) != 0 {
        return ENDED;
    }
    if flags & flow_flags::CLOSING != 0 {
        return CLOSING;
    }
    // A reply entry is made before the answer comes; one that was matched has been refreshed by that.
    let answered = flags & flow_flags::ANSWERED != 0;
    match (ip_protocol, answered) {
        (protocol::TCP, true) => TCP,
        (protocol::SCTP, true) => SCTP,
        (protocol::TCP | protocol::SCTP, false) => TCP_OPENING,
        (_, true) => UDP,
        (_, false) => UDP_OPENING,
    }
}

/// Whether the entry has outlived its connection. The other direction's entry may still be live: only when both
/// are over is the connection.
#[inline(always)]
pub const fn is_over(flow: &Flow, ip_protocol: u8, now: u64) -> bool {
    now.saturating_sub(flow.last_seen) > span(flow, ip_protocol)
}

/// Whether the entry may be removed to make way for another, when places are scarce.
#[inline(always)]
pub const fn may_make_way(flow: &Flow, ip_protocol: u8, now: u64) -> bool {
    let answered = flow.flags & flow_flags::ANSWERED != 0;
    is_over(flow, ip_protocol, now) || !answered && now.saturating_sub(flow.last_seen) > OPENING_IF_SCARCE
}

/// Whether the reply entry `held` may be given to another flow at `now`: the port of an ended connection serves
/// again long before the entry is over.
#[inline(always)]
pub const fn may_take_over(held: &Flow, ip_protocol: u8, now: u64) -> bool {
    let idle = now.saturating_sub(held.last_seen);
    if held.flags & (flow_flags::RESET | flow_flags::CLOSED) != 0 {
        return idle > ENDED_REST;
    }
    if held.flags & flow_flags::CLOSING != 0 {
        return idle > CLOSING_REST;
    }
    is_over(held, ip_protocol, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000 * SECOND;

    fn idle(seconds: u64, flags: u32) -> Flow {
        Flow { last_seen: NOW - seconds * SECOND, flags, ..Flow::default() }
    }

    #[test]
    fn a_live_connection_keeps_its_port_and_a_closed_one_gives_it_up_after_a_rest() {
        assert!(!may_take_over(&idle(60, flow_flags::ANSWERED), protocol::TCP, NOW));
        let closed = idle(60, flow_flags::CLOSING);
        assert!(may_take_over(&closed, protocol::TCP, NOW));
        let just_closed = Flow { last_seen: NOW - SECOND / 2, ..closed };
        assert!(!may_take_over(&just_closed, protocol::TCP, NOW));
        for flags in [flow_flags::RESET, flow_flags::CLOSING | flow_flags::CLOSED] {
            let ended = Flow { flags, ..just_closed };
            assert!(may_take_over(&ended, protocol::TCP, NOW));
            let just_ended = Flow { last_seen: NOW - SECOND / 20, ..ended };
            assert!(!may_take_over(&just_ended, protocol::TCP, NOW));
        }
        assert!(may_take_over(&idle(121, flow_flags::ANSWERED), protocol::UDP, NOW));
    }

    #[test]
    fn an_idle_connection_lives_a_day_and_one_that_nobody_answered_two_minutes() {
        assert!(!is_over(&idle(86_399, flow_flags::ANSWERED), protocol::TCP, NOW));
        assert!(is_over(&idle(86_401, flow_flags::ANSWERED), protocol::TCP, NOW));
        assert!(is_over(&idle(121, 0), protocol::TCP, NOW));
        assert!(!is_over(&idle(119, 0), protocol::SCTP, NOW));
        assert!(is_over(&idle(211, flow_flags::ANSWERED), protocol::SCTP, NOW));
    }

    #[test]
    fn a_connection_that_ended_is_over_soon_and_a_half_closed_one_after_an_hour() {
        assert!(is_over(&idle(11, flow_flags::CLOSED), protocol::TCP, NOW));
        assert!(!is_over(&idle(11, flow_flags::CLOSING), protocol::TCP, NOW));
        assert!(is_over(&idle(3_601, flow_flags::CLOSING), protocol::TCP, NOW));
    }

    #[test]
    fn only_a_flow_that_nobody_answered_makes_way_before_its_time() {
        assert!(may_make_way(&idle(3, 0), protocol::TCP, NOW) && !is_over(&idle(3, 0), protocol::TCP, NOW));
        assert!(!may_make_way(&idle(1, 0), protocol::UDP, NOW));
        assert!(!may_make_way(&idle(100, flow_flags::ANSWERED), protocol::UDP, NOW));
    }

    #[test]
    fn a_datagram_flow_lives_longer_once_it_was_answered() {
        assert!(is_over(&idle(31, 0), protocol::UDP, NOW));
        assert!(!is_over(&idle(31, flow_flags::ANSWERED), protocol::UDP, NOW));
    }
}
