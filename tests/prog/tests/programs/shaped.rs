//! Pods whose interface has a queue that limits what they are sent: packets leave by that interface, and not past it.

use fairlead_prog_tests::case::{REDIRECT, UNSPEC};
use fairlead_prog_tests::{FAMILIES, Hook, Node, Packet, Pod};

use crate::{CLIENT_PORT, NODE_PORT, SERVICE_PORT, TARGET_PORT, at, every, serve};

/// Whether what is sent there goes through the egress of an interface, where the mark says that it is settled.
fn leaves_by_an_interface(node: &Node, hook: Hook, packet: &Packet) -> bool {
    let outcome = node.send(hook, &hook.frame(packet.clone()).bytes());
    assert_eq!(outcome.code, REDIRECT, "{hook:?}: {packet:?}");
    outcome.is_marked
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_a_pod_with_a_queue_is_sent_passes_its_interface_and_what_others_are_sent_does_not() {
    let mut node = Node::start();
    for (family, opener) in every() {
        let stranger = at(family.stranger(), CLIENT_PORT);
        let [plain, shaped] = [Pod::B, Pod::A].map(|pod| at(pod.ip(family), SERVICE_PORT));
        node.reset();
        node.shape(Pod::A);
        for (to, passes) in [(shaped, true), (plain, false)] {
            let packet = Packet::new(opener, stranger, to);
            assert_eq!(leaves_by_an_interface(&node, Hook::FromWire, &packet), passes, "{packet:?}");
        }
        let packet = Packet::new(opener, at(Pod::B.ip(family), CLIENT_PORT), shaped);
        assert!(leaves_by_an_interface(&node, Hook::FromPod(Pod::B), &packet), "{packet:?}");
        let frontend = at(family.node(), NODE_PORT);
        serve(&mut node, opener, frontend, &[at(Pod::A.ip(family), TARGET_PORT)]);
        let packet = Packet::new(opener, stranger, frontend);
        assert!(leaves_by_an_interface(&node, Hook::FromWire, &packet), "{packet:?}");
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_pod_with_a_queue_gets_the_same_frame_as_one_without() {
    let mut node = Node::start();
    for family in FAMILIES {
        let packet = Packet::udp(at(family.stranger(), CLIENT_PORT), at(Pod::A.ip(family), SERVICE_PORT));
        let frame = Hook::FromWire.frame(packet).bytes();
        node.reset();
        let plain = node.send(Hook::FromWire, &frame);
        node.shape(Pod::A);
        let shaped = node.send(Hook::FromWire, &frame);
        assert_eq!(shaped.packet, plain.packet);
        assert!(shaped.is_marked && !plain.is_marked);
        // The node's own packets meet the queue by themselves.
        let own = Packet::udp(at(family.node(), CLIENT_PORT), at(Pod::A.ip(family), SERVICE_PORT));
        let outcome = node.send(Hook::ToPod(Pod::A), &Hook::ToPod(Pod::A).frame(own).bytes());
        assert_eq!((outcome.code, outcome.is_marked), (UNSPEC, false));
    }
}
