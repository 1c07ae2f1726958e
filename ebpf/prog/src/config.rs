//! The node's own configuration.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use fairlead_abi::{Address, Config, Reason};

#[map]
static CONFIG: Array<Config> = Array::pinned(1, 0);

/// The node's configuration; all zero until the agent has written it.
#[inline(always)]
pub(crate) fn get() -> Result<&'static Config, Reason> {
    CONFIG.get(0).ok_or(Reason::NoNodeAddress)
}

/// The node's address of the same family as `like`.
#[inline(always)]
pub(crate) fn node_address(config: &Config, like: Address) -> Result<Address, Reason> {
    let address = if like.is_v4() { config.node_v4 } else { config.node_v6 };
    if address.is_unspecified() { Err(Reason::NoNodeAddress) } else { Ok(address) }
}

/// Whether this is the node's own primary address.
#[inline(always)]
pub(crate) fn is_node_address(address: Address) -> bool {
    let is_configured =
        |config: &Config| address == if address.is_v4() { config.node_v4 } else { config.node_v6 };
    // A family that the node has no address of is configured as unspecified.
    !address.is_unspecified() && CONFIG.get(0).is_some_and(is_configured)
}

/// Whether one of these bits of [`fairlead_abi::config_flags`] is set.
#[inline(always)]
pub(crate) fn has(flags: u32) -> bool {
    CONFIG.get(0).is_some_and(|config| config.flags & flags != 0)
}

/// Whether this is the cookie of the host's network namespace.
#[inline(always)]
pub(crate) fn is_host(netns: u64) -> bool {
    CONFIG.get(0).is_some_and(|config| config.host_netns == netns)
}
