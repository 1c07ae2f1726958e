//! Which of the kernel's helpers the programs call: read from the programs themselves, so that none is forgotten.

use std::collections::{BTreeMap, HashSet};

use aya::programs::ProgramType;
use aya::sys::BpfHelper;
use aya_obj::generated::bpf_insn;
use aya_obj::{Object, ProgramSection};

use super::features::Part;

/// `call`, of a helper if the source register is 0 (Documentation/bpf/standardization/instruction-set.rst).
const CALL: u8 = 0x85;

/// A helper that programs of one type call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) kind: ProgramType,
    /// Its number.
    pub(super) number: i32,
}

impl Call {
    /// The name of a feature: the programs' kind and the helper's name.
    pub(super) fn name(&self) -> String {
        let kind = label(self.kind);
        match self.helper() {
            Some((helper, _)) => {
                let name = format!("{helper:?}");
                format!("{kind}:{}", name.trim_start_matches("BPF_FUNC_"))
            }
            None => format!("{kind}:{}", self.number),
        }
    }

    /// The helper, and the release that brought it for the programs that call it here.
    pub(super) fn helper(&self) -> Option<(BpfHelper, &'static str)> {
        HELPERS.iter().copied().find(|(helper, _)| *helper as i32 == self.number)
    }

    /// What is lost without it.
    pub(super) fn part(&self) -> Part {
        match self.kind {
            _ if self.number == BpfHelper::BPF_FUNC_set_retval as i32 => Part::Errors,
            ProgramType::SchedClassifier => Part::Core,
            _ => Part::Sockets,
        }
    }
}

/// Helpers by the release that brought them.
const HELPERS: &[(BpfHelper, &str)] = &[
    (BpfHelper::BPF_FUNC_map_lookup_elem, "3.19"),
    (BpfHelper::BPF_FUNC_map_update_elem, "3.19"),
    (BpfHelper::BPF_FUNC_map_delete_elem, "3.19"),
    (BpfHelper::BPF_FUNC_ktime_get_ns, "4.1"),
    (BpfHelper::BPF_FUNC_trace_printk, "4.1"),
    (BpfHelper::BPF_FUNC_get_prandom_u32, "4.1"),
    (BpfHelper::BPF_FUNC_get_smp_processor_id, "4.1"),
    (BpfHelper::BPF_FUNC_skb_store_bytes, "4.1"),
    (BpfHelper::BPF_FUNC_l3_csum_replace, "4.1"),
    (BpfHelper::BPF_FUNC_l4_csum_replace, "4.1"),
    (BpfHelper::BPF_FUNC_tail_call, "4.2"),
    (BpfHelper::BPF_FUNC_clone_redirect, "4.2"),
    (BpfHelper::BPF_FUNC_redirect, "4.4"),
    (BpfHelper::BPF_FUNC_perf_event_output, "4.4"),
    (BpfHelper::BPF_FUNC_skb_load_bytes, "4.5"),
    (BpfHelper::BPF_FUNC_csum_diff, "4.6"),
    (BpfHelper::BPF_FUNC_skb_change_proto, "4.8"),
    (BpfHelper::BPF_FUNC_skb_change_tail, "4.9"),
    (BpfHelper::BPF_FUNC_skb_pull_data, "4.9"),
    (BpfHelper::BPF_FUNC_csum_update, "4.9"),
    (BpfHelper::BPF_FUNC_skb_change_head, "4.10"),
    (BpfHelper::BPF_FUNC_get_socket_cookie, "4.12"),
    (BpfHelper::BPF_FUNC_skb_adjust_room, "4.13"),
    (BpfHelper::BPF_FUNC_fib_lookup, "4.18"),
    (BpfHelper::BPF_FUNC_sk_lookup_tcp, "4.20"),
    (BpfHelper::BPF_FUNC_sk_lookup_udp, "4.20"),
    (BpfHelper::BPF_FUNC_sk_release, "4.20"),
    (BpfHelper::BPF_FUNC_spin_lock, "5.1"),
    (BpfHelper::BPF_FUNC_spin_unlock, "5.1"),
    (BpfHelper::BPF_FUNC_sk_storage_get, "5.2"),
    (BpfHelper::BPF_FUNC_skc_lookup_tcp, "5.2"),
    (BpfHelper::BPF_FUNC_jiffies64, "5.5"),
    (BpfHelper::BPF_FUNC_probe_read_kernel, "5.5"),
    (BpfHelper::BPF_FUNC_get_netns_cookie, "5.7"),
    (BpfHelper::BPF_FUNC_ktime_get_boot_ns, "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_output, "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_reserve, "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_submit, "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_discard, "5.8"),
    (BpfHelper::BPF_FUNC_ringbuf_query, "5.8"),
    (BpfHelper::BPF_FUNC_redirect_neigh, "5.10"),
    (BpfHelper::BPF_FUNC_redirect_peer, "5.10"),
    (BpfHelper::BPF_FUNC_ktime_get_coarse_ns, "5.11"),
    (BpfHelper::BPF_FUNC_check_mtu, "5.12"),
    (BpfHelper::BPF_FUNC_for_each_map_elem, "5.13"),
    (BpfHelper::BPF_FUNC_loop, "5.17"),
    (BpfHelper::BPF_FUNC_set_retval, "5.18"),
];

/// The helpers that the object's programs call, those of the same type together.
///
/// # Errors
/// When it is no object with programs.
pub(super) fn calls(object: &[u8]) -> Result<Vec<Call>, String> {
    let mut object = Object::parse(object).map_err(|e| e.to_string())?;
    // Functions are taken into the programs that call them.
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).map_err(|e| e.to_string())?;
    let mut calls = BTreeMap::<_, Call>::new();
    for program in object.programs.values() {
        let Some(kind) = kind(&program.section) else { continue };
        let function =
            object.functions.get(&program.function_key()).ok_or("a program without its function")?;
        for call in function.instructions.iter().filter_map(called) {
            calls.insert((label(kind), call), Call { kind, number: call });
        }
    }
    Ok(calls.into_values().collect())
}

fn kind(section: &ProgramSection) -> Option<ProgramType> {
    match section {
        ProgramSection::SchedClassifier => Some(ProgramType::SchedClassifier),
        ProgramSection::CgroupSockAddr { .. } => Some(ProgramType::CgroupSockAddr),
        ProgramSection::CgroupSock { .. } => Some(ProgramType::CgroupSock),
        _ => None,
    }
}

fn label(kind: ProgramType) -> &'static str {
    match kind {
        ProgramType::SchedClassifier => "tc",
        ProgramType::CgroupSockAddr => "sockets",
        _ => "bind",
    }
}

/// The number of the helper that the instruction calls, if it does.
fn called(instruction: &bpf_insn) -> Option<i32> {
    (instruction.code == CALL && instruction.src_reg() == 0).then_some(instruction.imm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_helper_that_the_programs_call_is_known_by_name() {
        if fairlead_object::OBJECT.is_empty() {
            println!("left out: built without eBPF programs");
            return;
        }
        let calls = calls(fairlead_object::OBJECT).expect("programs");
        let unknown: Vec<_> = calls.iter().filter(|call| call.helper().is_none()).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
        let names: Vec<String> = calls.iter().map(Call::name).collect();
        for expected in ["tc:redirect_peer", "tc:fib_lookup", "sockets:get_netns_cookie", "bind:set_retval"] {
            assert!(names.iter().any(|name| name == expected), "{expected} is not in {names:?}");
        }
        assert!(!names.iter().any(|name| name == "sockets:redirect_peer"), "{names:?}");
    }

    #[test]
    fn what_is_no_object_calls_nothing() {
        assert!(calls(b"no object").is_err());
    }
}
