//! What of a connection of connection tracking's is entered in the flow table: pure.
//!
//! Under the tuples that its packets have where programs meet them first, each leaving as it came: the client's, and
//! the backend's.

use fairlead_abi::{Flow, FlowKey, flow_flags, protocol};

use super::conntrack::Connection;

/// No place among those of connections that the programs enter.
const NO_PLACE: u32 = u32::MAX;

/// How many seconds before connection tracking a datagram flow is forgotten: the table was read a while before `now`, and a
/// datagram that is left to the stack too late is lost.
const MARGIN: u64 = 1;

/// A backend that the agent has given a number, and its generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbered {
    /// Its id; 0 if it has none.
    pub id: u32,
    /// Its generation.
    pub generation: u32,
}

/// The two entries, at `now`. A datagram of the client finds out by the backend's number that it is gone, and by the deadline
/// that connection tracking has forgotten the flow.
pub fn of(connection: &Connection, backend: Numbered, now: u64) -> [(FlowKey, Flow); 2] {
    let Connection { original, reply, is_closing, seconds, .. } = connection;
    let is_datagram = original.protocol == protocol::UDP && *seconds != 0;
    let until = now / 1_000_000_000 + u64::from(*seconds).saturating_sub(MARGIN);
    let deadline = if is_datagram { u32::try_from(until).unwrap_or(u32::MAX) } else { 0 };
    let closing = if *is_closing { flow_flags::CLOSING } else { 0 };
    // No policy has a say in it, and it is neither new nor forged.
    let flags = flow_flags::STACK
        | flow_flags::TRACKED
        | flow_flags::NODE
        | flow_flags::ANSWERED
        | flow_flags::CONFIRMED
        | closing;
    let entry = |key: &FlowKey, Numbered { id, generation }, flags| {
        let flow = Flow {
            last_seen: now,
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            backend: id,
            generation,
            flags,
            place: NO_PLACE,
            deadline,
            ..Flow::default()
        };
        (*key, flow)
    };
    [entry(original, backend, flags), entry(reply, Numbered::default(), flags | flow_flags::REPLY)]
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use fairlead_abi::{Address, Port};

    use super::*;

    #[test]
    fn both_directions_leave_as_they_came_and_are_the_stacks() {
        let address = |last| Address::from(Ipv4Addr::new(10, 0, 0, last));
        let key = |source, destination| FlowKey {
            source: address(source),
            destination: address(destination),
            source_port: Port::new(40_000),
            destination_port: Port::new(80),
            protocol: protocol::UDP,
            reserved: [0; 3],
        };
        let connection = Connection {
            original: key(1, 2),
            reply: key(3, 4),
            is_translated: true,
            seconds: 30,
            is_closing: false,
            is_over: false,
        };
        let backend = Numbered { id: 7, generation: 3 };
        let [(there, forward), (back, reply)] = of(&connection, backend, 5_000_000_000);
        assert_eq!(forward.deadline, 34);
        assert_eq!((there, back), (connection.original, connection.reply));
        assert_eq!((forward.destination, reply.destination), (address(2), address(4)));
        assert_eq!((forward.backend, forward.generation, reply.backend), (7, 3, 0));
        assert_eq!(
            (forward.flags & flow_flags::REPLY, reply.flags & flow_flags::REPLY),
            (0, flow_flags::REPLY)
        );
        for flow in [forward, reply] {
            assert_eq!(flow.flags & (flow_flags::STACK | flow_flags::TRACKED), 768);
        }
    }
}
