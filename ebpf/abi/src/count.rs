//! What the programs count. Numbers are indices into per-CPU arrays and are never reused.

/// Declares an enum of stable numbers with a name and a sentence for each.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $text:literal])+ $variant:ident = $number:literal, $label:literal;)+ }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[doc = $text])+ $variant = $number,)+ }

        impl $name {
            /// Every variant, in order of number.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            /// How many entries a map indexed by this needs.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The variant with this number, or the first for a number that none has.
            #[inline(always)]
            pub const fn numbered(number: u32) -> Self {
                match number { $($number => Self::$variant,)+ _ => Self::ALL[0] }
            }

            /// The label that metrics and command output carry.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// The sentence that explains it.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => concat!($($text),+),)+ }
            }
        }
    };
}

numbered! {
    /// Why a packet was dropped or refused.
    Reason {
        /// The packet is shorter than its headers say, or its headers make no sense.
        Malformed = 0, "malformed";
        /// A pod sent from an address that is not its own, or the wire brought a packet from one of this node's.
        SpoofedSource = 1, "spoofed_source";
        /// The Service has no endpoint at all: answered with port unreachable.
        NoEndpoint = 2, "no_endpoint";
        /// The Service has endpoints, but none on this node, and its traffic policy is Local.
        NoLocalEndpoint = 3, "no_local_endpoint";
        /// The frontend, its slots and its backends disagree; seen only while they are being rewritten.
        StaleService = 4, "stale_service";
        /// No free port was found to masquerade the flow with.
        NoSnatPort = 5, "no_snat_port";
        /// Every place of the flow table that was tried holds a live connection.
        FlowTableFull = 6, "flow_table_full";
        /// The kernel has no usable route to the destination, or the packet could not be changed.
        NotForwarded = 7, "not_forwarded";
        /// A flow to masquerade, on a node that has no address of the packet's family.
        NoNodeAddress = 8, "no_node_address";
        /// The Service's loadBalancerSourceRanges do not admit the client.
        SourceNotAllowed = 9, "source_not_allowed";
        /// The ClusterIP has no such port: answered with port unreachable.
        UnknownPort = 10, "unknown_port";
        /// The address is one of the ServiceCIDR that no Service has.
        NoService = 11, "no_service";
        /// The translated packet is too large for its route: answered with what fits.
        TooBig = 12, "too_big";
        /// An RST for a connection to a Service that the flow table does not know.
        StrayReset = 13, "stray_reset";
        /// A policy of the pod that is sent to does not allow it.
        PolicyIngress = 14, "policy_ingress";
        /// A policy of the pod that sends does not allow it.
        PolicyEgress = 15, "policy_egress";
        /// The pod's policies are not known yet, or could not be programmed.
        PolicyUnknown = 16, "policy_unknown";
    }
}

numbered! {
    /// What happened to packets that were not dropped.
    Counter {
        /// Delivered straight into a local pod.
        ToPod = 0, "to_pod";
        /// Sent on to another node or outside by the route that the kernel's table gives.
        Forwarded = 1, "forwarded";
        /// Left to the kernel's own stack.
        ToStack = 2, "to_stack";
        /// A flow to a Service was translated for the first time.
        FlowCreated = 3, "flow_created";
        /// A flow was balanced anew because its backend is gone.
        FlowRebalanced = 4, "flow_rebalanced";
        /// A socket's peer was translated before any packet was sent.
        SocketTranslated = 5, "socket_translated";
        /// Answered with ICMP port unreachable.
        Rejected = 6, "rejected";
        /// A flow that had expired made way for a new one.
        FlowReclaimed = 7, "flow_reclaimed";
        /// An ICMP error about a translated flow was translated.
        ErrorTranslated = 8, "error_translated";
        /// A client was given the backend that it had before (sessionAffinity).
        AffinityKept = 9, "affinity_kept";
        /// A process was kept from binding a NodePort.
        BindRefused = 10, "bind_refused";
        /// A packet was judged by policies: its flow was new to them, or they had changed.
        PolicyJudged = 11, "policy_judged";
        /// An event was left out: its pod, or its reason, had as many in this second as it may, or nobody read them.
        EventLost = 12, "event_lost";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_indices() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "{}", reason.label());
        }
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index, "{}", counter.label());
        }
    }
}
