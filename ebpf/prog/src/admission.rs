//! Who may use a guarded frontend (loadBalancerSourceRanges), and what becomes of packets for addresses of the
//! ServiceCIDR that are no frontend.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LpmTrie;
use aya_ebpf::maps::lpm_trie::Key;
use fairlead_abi::{Address, FrontendKey, Reason, SourceRange, cidr_flags, frontend_flags};

use crate::service;

#[map]
static SOURCE_RANGES: LpmTrie<SourceRange, u32> = LpmTrie::pinned(65_536, 0);

#[map]
static SERVICE_CIDRS: LpmTrie<Address, u32> = LpmTrie::pinned(65_536, 0);

const SERVICE_BITS: u32 = 32;

/// Whether the client is in one of the Service port's ranges.
#[inline(never)]
pub(crate) fn admits(service: u32, client: &Address) -> bool {
    let key = Key::new(SERVICE_BITS + Address::BITS, SourceRange { service, address: *client });
    SOURCE_RANGES.get(&key).is_some()
}

/// Why a packet to this address, which has no frontend for it, may go no further; none if it is none of ours.
///
/// Like kube-proxy: a ClusterIP refuses what is for a port that its Service has not, and an address of the
/// ServiceCIDR that no Service has is a black hole.
#[inline(never)]
pub(crate) fn unclaimed(destination: &Address) -> Option<Reason> {
    let key = Key::new(Address::BITS, *destination);
    let flags = *SERVICE_CIDRS.get(&key)?;
    let whole = FrontendKey::whole(*destination);
    if service::has_flags(&whole, frontend_flags::WHOLE) {
        return Some(Reason::UnknownPort);
    }
    (flags & cidr_flags::DROP != 0).then_some(Reason::NoService)
}
