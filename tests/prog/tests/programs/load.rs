//! The verifier accepts every program.

use fairlead_prog_tests::Node;

#[test]
#[ignore = "needs root and the eBPF programs: run make test"]
fn every_program_passes_the_verifier() {
    for (variant, mut node) in [("usual", Node::start()), ("handover", Node::start_handover())] {
        node.load_socket_programs().unwrap_or_else(|error| panic!("{error:?}"));
        for (name, program) in node.ebpf.programs() {
            let info = program.info().expect("a loaded program has info");
            println!("{variant} {name}: {:?} verified instructions", info.verified_instruction_count());
        }
    }
}
