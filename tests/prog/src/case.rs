//! A row of a test table: a packet, where it is met, and all that must come of it.

use fairlead_abi::{Counter, Reason};

use crate::node::{Hook, Node};
use crate::packet::{Packet, dump};
use crate::place::{GATEWAY_MAC, NODE2_MAC, Pod, UPLINK_MAC};

/// `TC_ACT_UNSPEC`: the next program or the kernel's stack goes on with the packet.
pub const UNSPEC: i32 = -1;
/// `TC_ACT_SHOT`: the packet is dropped.
pub const SHOT: i32 = 2;
/// `TC_ACT_REDIRECT`: a redirect helper has taken the packet.
pub const REDIRECT: i32 = 7;

/// What becomes of a packet. The packets given here need no frame and, where a program forwards, no hop
/// less: a row says what the Service changes, and the rest follows.
#[derive(Clone, Debug)]
pub enum Then {
    /// Not our business: left to the stack as it came, uncounted.
    Passed,
    /// Left to the stack, changed, uncounted.
    PassedAs(Packet),
    /// Left to the stack, which goes on with a packet like this.
    ToStack(Packet),
    /// Put into a local pod.
    ToPod(Pod, Packet),
    /// Sent to the other node.
    ToNode2(Packet),
    /// Sent to the gateway.
    ToGateway(Packet),
    /// Sent out of the uplink, in a frame that the kernel is still to address.
    ToStranger(Packet),
    /// Put into a local pod by the node itself, which is no hop.
    IntoPod(Pod, Packet),
    /// Left to the stack, changed, uncounted, in a frame for the other node.
    PassedToNode2(Packet),
    /// Answered with port unreachable.
    Refused,
    /// Answered with a TCP reset.
    Reset,
    /// Answered with this packet, in the frame's opposite direction.
    Answered(Reason, Packet),
    /// Dropped.
    Dropped(Reason),
}

/// A row.
#[derive(Clone, Debug)]
pub struct Case {
    /// What happens, in words.
    pub what: String,
    /// Where the packet is met.
    pub at: Hook,
    /// The packet, but for its frame.
    pub packet: Packet,
    /// What becomes of it.
    pub then: Then,
    /// Whether it begins a flow.
    pub flow: NewFlow,
    /// What is counted besides what follows from the rest.
    pub also: Vec<Counter>,
    /// The size of the segments that the kernel is to make of the packet; 0: none.
    pub segment: u32,
}

/// Whether a packet begins a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFlow {
    /// It does not.
    None,
    /// It does: two more entries.
    Begun,
    /// It does, and takes over the reply entry of a flow that has ended, whose forward entry goes: as many
    /// entries as before.
    TakesOver,
    /// Its flow is given another backend: as many entries as before.
    Rebalanced,
    /// Its flow has lost its backend, and there is no other: two entries less.
    Lost,
}

impl Case {
    /// A packet that begins no flow.
    pub fn new(what: impl Into<String>, at: Hook, packet: Packet, then: Then) -> Self {
        Self { what: what.into(), at, packet, then, flow: NewFlow::None, also: Vec::new(), segment: 0 }
    }

    /// A packet that begins a flow to a Service.
    pub fn begins(what: impl Into<String>, at: Hook, packet: Packet, then: Then) -> Self {
        Self { flow: NewFlow::Begun, ..Self::new(what, at, packet, then) }
    }

    /// A packet that begins a flow in the place of one that has ended.
    pub fn takes_over(what: impl Into<String>, at: Hook, packet: Packet, then: Then) -> Self {
        Self { flow: NewFlow::TakesOver, ..Self::new(what, at, packet, then) }
    }

    /// A packet whose flow is balanced anew.
    pub fn rebalances(what: impl Into<String>, at: Hook, packet: Packet, then: Then) -> Self {
        Self { flow: NewFlow::Rebalanced, ..Self::new(what, at, packet, then) }
    }

    /// A packet whose flow is balanced anew, but finds nobody.
    pub fn loses(what: impl Into<String>, at: Hook, packet: Packet, then: Then) -> Self {
        Self { flow: NewFlow::Lost, ..Self::new(what, at, packet, then) }
    }

    /// And this is counted too.
    #[must_use]
    pub fn counting(mut self, counter: Counter) -> Self {
        self.also.push(counter);
        self
    }

    /// As a packet that the kernel is still to cut into segments of this size.
    #[must_use]
    pub fn segmented(mut self, size: u32) -> Self {
        self.segment = size;
        self
    }

    /// Sends the packet, and compares verdict, packet, counters, drops and number of flow entries.
    ///
    /// # Panics
    /// When any of them differs.
    pub fn check(self, node: &Node) {
        let sent = self.at.frame(self.packet.clone());
        let before = (node.counters(), node.drops(), node.flows().len());
        let outcome = node.send_segmented(self.at, &sent.bytes(), self.segment);
        let (code, expected) = self.expected(&sent);
        let mut counters = before.0;
        let mut drops = before.1;
        let (mut expected_counts, dropped) = self.then.counted();
        let entries = match self.flow {
            NewFlow::None | NewFlow::TakesOver | NewFlow::Rebalanced => 0,
            NewFlow::Begun => 2,
            NewFlow::Lost => -2,
        };
        expected_counts.extend(&self.also);
        match self.flow {
            NewFlow::None | NewFlow::Lost => {}
            NewFlow::Begun | NewFlow::TakesOver => expected_counts.push(Counter::FlowCreated),
            NewFlow::Rebalanced => expected_counts.push(Counter::FlowRebalanced),
        }
        for counter in expected_counts {
            counters[counter as usize] += 1;
        }
        for reason in dropped {
            drops[reason as usize] += 1;
        }
        let mut counted = node.counters();
        // Whether a drop is told of depends on how many there were in this second.
        counted[Counter::EventLost as usize] = counters[Counter::EventLost as usize];
        let what = format!("{}: {:?} of {:?}", self.what, self.at, self.packet);
        assert_eq!(named(&node.drops(), &drops, Reason::ALL, Reason::label), "", "{what}: drops");
        assert_eq!(code_name(outcome.code), code_name(code), "{what}: verdict");
        if let Some(expected) = expected.map(|packet| packet.bytes()) {
            assert!(
                outcome.packet == expected,
                "{what}: packet out\n{}\nexpected\n{}",
                dump(&outcome.packet, &expected),
                dump(&expected, &outcome.packet)
            );
        }
        assert_eq!(named(&counted, &counters, Counter::ALL, Counter::label), "", "{what}: counters");
        let after = before.2.cast_signed() + entries;
        assert_eq!(node.flows().len().cast_signed(), after, "{what}: flow entries");
    }

    /// The return code, and the packet where it goes on.
    fn expected(&self, sent: &Packet) -> (i32, Option<Packet>) {
        let routed = |packet: &Packet| packet.clone().a_hop_on();
        let (code, packet) = match &self.then {
            Then::Passed => (UNSPEC, sent.clone()),
            Then::PassedAs(packet) | Then::ToStack(packet) => (UNSPEC, self.at.frame(packet.clone())),
            Then::ToPod(pod, packet) => (REDIRECT, routed(packet).frame(pod.host_mac(), pod.pod_mac())),
            Then::ToNode2(packet) => (REDIRECT, routed(packet).frame(UPLINK_MAC, NODE2_MAC)),
            Then::ToGateway(packet) => (REDIRECT, routed(packet).frame(UPLINK_MAC, GATEWAY_MAC)),
            Then::ToStranger(packet) => (REDIRECT, self.at.frame(routed(packet))),
            Then::IntoPod(pod, packet) => (REDIRECT, packet.clone().frame(pod.host_mac(), pod.pod_mac())),
            Then::PassedToNode2(packet) => (UNSPEC, packet.clone().frame(UPLINK_MAC, NODE2_MAC)),
            Then::Refused => (REDIRECT, sent.refusal()),
            Then::Reset => (REDIRECT, sent.reset()),
            Then::Answered(_, packet) => (REDIRECT, packet.clone().back_to(sent)),
            Then::Dropped(_) => return (SHOT, None),
        };
        (code, Some(packet))
    }
}

impl Then {
    fn counted(&self) -> (Vec<Counter>, Vec<Reason>) {
        match self {
            Self::Passed | Self::PassedAs(_) | Self::PassedToNode2(_) => (vec![], vec![]),
            Self::ToStack(_) => (vec![Counter::ToStack], vec![]),
            Self::ToPod(..) | Self::IntoPod(..) => (vec![Counter::ToPod], vec![]),
            Self::ToNode2(_) | Self::ToGateway(_) | Self::ToStranger(_) => (vec![Counter::Forwarded], vec![]),
            Self::Refused | Self::Reset => (vec![Counter::Rejected], vec![Reason::NoEndpoint]),
            Self::Answered(reason @ (Reason::TooBig | Reason::NotForwarded), _) => (vec![], vec![*reason]),
            Self::Answered(reason, _) => (vec![Counter::Rejected], vec![*reason]),
            Self::Dropped(reason) => (vec![], vec![*reason]),
        }
    }
}

/// A return code's name.
#[must_use]
pub fn code_name(code: i32) -> String {
    match code {
        UNSPEC => "UNSPEC".into(),
        SHOT => "SHOT".into(),
        REDIRECT => "REDIRECT".into(),
        _ => format!("unknown code {code}"),
    }
}

/// The counters that are not as expected, by name.
fn named<T: Copy>(actual: &[u64], expected: &[u64], all: &[T], label: impl Fn(T) -> &'static str) -> String {
    let rows = all.iter().zip(actual.iter().zip(expected));
    let wrong = rows.filter(|(_, (actual, expected))| actual != expected);
    let text = wrong.map(|(name, (actual, expected))| format!("{} {actual} not {expected}", label(*name)));
    text.collect::<Vec<_>>().join(", ")
}
