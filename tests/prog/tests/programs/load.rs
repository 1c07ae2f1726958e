//! The verifier accepts every program.

use fairlead_prog_tests::Node;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_program_passes_the_verifier() {
    let mut node = Node::start();
    node.load_socket_programs().unwrap_or_else(|error| panic!("{error:?}"));
    for (name, program) in node.ebpf.programs() {
        let info = program.info().expect("a loaded program has info");
        println!("{name}: {:?} verified instructions", info.verified_instruction_count());
    }
}
