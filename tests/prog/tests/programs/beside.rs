//! Pods that another CNI has wired, behind an interface of the node.

use fairlead_abi::Reason;
use fairlead_prog_tests::{Case, FAMILIES, Family, Hook, Node, Packet, Pod, Then, Transport};

use crate::{CLIENT_PORT, OPENERS, SERVICE_PORT, TARGET_PORT, at, serve};
use fairlead_prog_tests::node::SNAT_FIRST;

const PODS: Hook = Hook::FromPods;
const B: Hook = Hook::FromPod(Pod::B);

fn ways() -> impl Iterator<Item = (Family, Transport)> {
    FAMILIES.into_iter().flat_map(|family| OPENERS.map(|opener| (family, opener)))
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_keeps_its_address_to_a_backend_that_answers_by_way_of_the_node() {
    let mut node = Node::start();
    for (family, opener) in ways() {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        for backend in [at(Pod::B.ip(family), TARGET_PORT), at(family.node(), TARGET_PORT)] {
            serve(&mut node, opener, service, &[backend]);
            let request = Packet::new(opener, client, service);
            let translated = request.clone().to(backend);
            let is_node = backend.ip() == family.node();
            let then = if is_node { Then::ToStack(translated) } else { Then::ToPod(Pod::B, translated) };
            Case::begins("request", PODS, request, then).check(&node);
            let reply = Packet::new(opener, backend, client);
            let translated = reply.clone().from(service);
            let (hook, then) = if is_node {
                (Hook::ToWire, Then::PassedAs(translated))
            } else {
                (B, Then::ToStranger(translated))
            };
            Case::new("answer", hook, reply, then).check(&node);
        }
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn a_client_behind_the_interface_of_its_backend_is_masqueraded_so_that_the_answer_passes_the_node() {
    let mut node = Node::start();
    for (family, opener) in ways() {
        let (client, service) = (at(family.stranger(), CLIENT_PORT), at(family.cluster_ip(), SERVICE_PORT));
        let (backend, masked) = (at(family.remote_pod(), TARGET_PORT), at(family.node(), SNAT_FIRST));
        serve(&mut node, opener, service, &[backend]);
        let request = Packet::new(opener, client, service);
        let translated = request.clone().from(masked).to(backend);
        Case::begins("request", PODS, request, Then::ToNode2(translated)).check(&node);
        let reply = Packet::new(opener, backend, masked);
        let translated = reply.clone().from(service).to(client);
        Case::new("answer", PODS, reply, Then::ToStranger(translated)).check(&node);
    }
}

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn what_is_for_no_service_is_left_to_the_stack_and_nobody_claims_to_be_the_node() {
    let mut node = Node::start();
    for (family, opener) in ways() {
        node.forget();
        let client = at(family.stranger(), CLIENT_PORT);
        for receiver in [family.remote_pod(), Pod::B.ip(family), family.node(), family.client()] {
            let packet = Packet::new(opener, client, at(receiver, TARGET_PORT));
            Case::new("plain", PODS, packet, Then::Passed).check(&node);
        }
        for liar in [family.node(), Pod::B.ip(family)] {
            let packet = Packet::new(opener, at(liar, CLIENT_PORT), at(family.remote_pod(), TARGET_PORT));
            Case::new("lie", PODS, packet, Then::Dropped(Reason::SpoofedSource)).check(&node);
        }
    }
}
