//! How long the entries of the flow table live, by what their connection last did.
//!
//! Times are in nanoseconds of the monotonic clock. An entry that is over may be removed by anybody: by a program
//! that needs its place, or by the agent, which sweeps the table.

use fairlead_abi::{Flow, flow_flags, protocol};

const SECOND: u64 = 1_000_000_000;

/// A TCP or SCTP connection that was never answered is over after two minutes (nf_conntrack_tcp_timeout_syn_sent).
pub const OPENING: u64 = 120 * SECOND;
/// One that was answered, but whose client never went on, after one (nf_conntrack_tcp_timeout_syn_recv): whoever sent
/// the first packet may have forged its address.
pub const UNCONFIRMED: u64 = 60 * SECOND;
/// An open TCP connection is over after a day (kube-proxy's --conntrack-tcp-timeout-established).
pub const TCP: u64 = 86_400 * SECOND;
/// An open SCTP association is over after 210 seconds (nf_conntrack_sctp_timeout_established): its heartbeats
/// come every thirty (RFC 9260, section 16).
pub const SCTP: u64 = 210 * SECOND;
/// A connection that one side closed is over after an hour (kube-proxy's --conntrack-tcp-timeout-close-wait).
pub const CLOSING: u64 = 3_600 * SECOND;
/// One that both sides closed is over after two minutes (nf_conntrack_tcp_timeout_time_wait).
pub const CLOSED: u64 = 120 * SECOND;
/// One that was refused is over after ten seconds (nf_conntrack_tcp_timeout_close).
pub const REFUSED: u64 = 10 * SECOND;
/// An open connection that saw an RST is over after two hours, by when either side has asked whether the other is
/// still there (tcp_keepalive_time). The RST may have been out of the window, and not believed.
pub const RESET: u64 = 7_200 * SECOND;
/// A UDP flow, or one of ICMP or another protocol without connections, in which the client went on after an answer is over after two minutes (nf_conntrack_udp_timeout_stream).
pub const UDP: u64 = 120 * SECOND;
/// Another one is over after half a minute (nf_conntrack_udp_timeout).
pub const UDP_OPENING: u64 = 30 * SECOND;

/// When room is scarce, a connection that has ended makes way after two seconds without a packet, and so does a flow
/// whose client never went on, like the kernel's early drop of connections that are not assured: a flood of first
/// packets then keeps nobody out for long.
pub const IF_SCARCE: u64 = 2 * SECOND;

/// When no port is free, that of a connection that ended serves again after a tenth of a second,
pub const ENDED_REST: u64 = SECOND / 10;
/// and that of one which one side closed after a minute.
pub const CLOSING_REST: u64 = 60 * SECOND;

/// Whether the protocol says when a flow begins and ends.
#[inline(always)]
pub const fn is_of_connections(ip_protocol: u8) -> bool {
    matches!(ip_protocol, protocol::TCP | protocol::SCTP)
}

/// How long the entry may stay without a packet.
#[inline(always)]
pub const fn span(flow: &Flow, ip_protocol: u8) -> u64 {
    let flags = flow.flags;
    let answered = flags & flow_flags::ANSWERED != 0;
    let confirmed = flags & flow_flags::CONFIRMED != 0;
    if !is_of_connections(ip_protocol) {
        return if confirmed { UDP } else { UDP_OPENING };
    }
    if flags & flow_flags::CLOSED != 0 {
        return CLOSED;
    }
    if flags & flow_flags::RESET != 0 && !confirmed {
        return REFUSED;
    }
    if !confirmed {
        return if answered { UNCONFIRMED } else { OPENING };
    }
    if ip_protocol != protocol::TCP {
        return SCTP;
    }
    if flags & flow_flags::CLOSING != 0 {
        return CLOSING;
    }
    if flags & flow_flags::RESET != 0 { RESET } else { TCP }
}

/// Whether the entry has outlived its connection. The other direction's entry may still be live: only when both
/// are over is the connection.
#[inline(always)]
pub const fn is_over(flow: &Flow, ip_protocol: u8, now: u64) -> bool {
    !is_tracked(flow) && now.saturating_sub(flow.last_seen) > span(flow, ip_protocol)
}

/// Whether it is connection tracking that says when the flow is over.
#[inline(always)]
pub const fn is_tracked(flow: &Flow) -> bool {
    flow.flags & flow_flags::TRACKED != 0
}

/// Whether the entry may be removed to make way for another, when room is scarce.
#[inline(always)]
pub const fn may_make_way(flow: &Flow, ip_protocol: u8, now: u64) -> bool {
    let idle = now.saturating_sub(flow.last_seen);
    let ended = flow.flags & (flow_flags::RESET | flow_flags::CLOSED) != 0;
    let confirmed = flow.flags & flow_flags::CONFIRMED != 0;
    !is_tracked(flow) && (is_over(flow, ip_protocol, now) || (ended || !confirmed) && idle > IF_SCARCE)
}

/// Whether the entry's port may be given to another flow at `now`, when none is free.
#[inline(always)]
pub const fn may_take_over(flow: &Flow, ip_protocol: u8, now: u64) -> bool {
    let idle = now.saturating_sub(flow.last_seen);
    let ended = flow.flags & (flow_flags::RESET | flow_flags::CLOSED) != 0;
    let closing = flow.flags & flow_flags::CLOSING != 0;
    let rested = ended && idle > ENDED_REST || closing && idle > CLOSING_REST;
    !is_tracked(flow) && (may_make_way(flow, ip_protocol, now) || rested)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000 * SECOND;
    const OPEN: u32 = flow_flags::ANSWERED | flow_flags::CONFIRMED;

    fn idle(seconds: u64, flags: u32) -> Flow {
        Flow { last_seen: NOW - seconds * SECOND, flags, ..Flow::default() }
    }

    /// An entry with these flags lives for so many seconds.
    fn lives(ip_protocol: u8, flags: u32, seconds: u64) {
        assert!(!is_over(&idle(seconds - 1, flags), ip_protocol, NOW), "{flags} at {seconds} s");
        assert!(is_over(&idle(seconds + 1, flags), ip_protocol, NOW), "{flags} after {seconds} s");
    }

    #[test]
    fn an_open_connection_lives_a_day_and_one_whose_client_never_went_on_a_minute() {
        lives(protocol::TCP, OPEN, 86_400);
        lives(protocol::TCP, flow_flags::ANSWERED, 60);
        lives(protocol::TCP, 0, 120);
        lives(protocol::SCTP, OPEN, 210);
        lives(protocol::SCTP, 0, 120);
    }

    #[test]
    fn a_connection_that_ended_is_over_soon_and_a_half_closed_one_after_an_hour() {
        lives(protocol::TCP, OPEN | flow_flags::CLOSING, 3_600);
        lives(protocol::TCP, OPEN | flow_flags::CLOSING | flow_flags::CLOSED, 120);
        lives(protocol::TCP, flow_flags::ANSWERED | flow_flags::RESET, 10);
    }

    #[test]
    fn one_reset_that_may_not_have_been_believed_leaves_an_idle_connection_its_entry() {
        lives(protocol::TCP, OPEN | flow_flags::RESET, 7_200);
        lives(protocol::SCTP, OPEN | flow_flags::RESET, 210);
        assert!(may_make_way(&idle(3, OPEN | flow_flags::RESET), protocol::TCP, NOW));
    }

    #[test]
    fn a_datagram_flow_lives_longer_once_its_client_went_on() {
        lives(protocol::UDP, 0, 30);
        lives(protocol::UDP, flow_flags::ANSWERED, 30);
        lives(protocol::UDP, OPEN, 120);
        lives(protocol::ICMP, 0, 30);
        lives(47, OPEN, 120);
    }

    #[test]
    fn only_a_flow_that_ended_or_whose_client_never_went_on_makes_way_before_its_time() {
        for flags in [0, flow_flags::ANSWERED] {
            assert!(may_make_way(&idle(3, flags), protocol::TCP, NOW));
            assert!(!may_make_way(&idle(1, flags), protocol::UDP, NOW));
        }
        for flags in [OPEN, OPEN | flow_flags::CLOSING] {
            assert!(!may_make_way(&idle(100, flags), protocol::TCP, NOW));
        }
    }

    #[test]
    fn what_connection_tracking_has_is_over_only_when_that_says_so() {
        let tracked = idle(1_000_000, OPEN | flow_flags::TRACKED | flow_flags::RESET);
        for ip_protocol in [protocol::TCP, protocol::UDP] {
            assert!(!is_over(&tracked, ip_protocol, NOW) && !may_take_over(&tracked, ip_protocol, NOW));
        }
    }

    #[test]
    fn a_live_connection_keeps_its_port_and_one_that_ended_gives_it_up_after_a_rest() {
        assert!(!may_take_over(&idle(60, OPEN), protocol::TCP, NOW));
        assert!(!may_take_over(&idle(59, OPEN | flow_flags::CLOSING), protocol::TCP, NOW));
        assert!(may_take_over(&idle(61, OPEN | flow_flags::CLOSING), protocol::TCP, NOW));
        for flags in [OPEN | flow_flags::RESET, OPEN | flow_flags::CLOSING | flow_flags::CLOSED] {
            let ended = Flow { last_seen: NOW - SECOND / 5, flags, ..Flow::default() };
            assert!(may_take_over(&ended, protocol::TCP, NOW));
            let just_ended = Flow { last_seen: NOW - SECOND / 20, ..ended };
            assert!(!may_take_over(&just_ended, protocol::TCP, NOW));
        }
    }
}
