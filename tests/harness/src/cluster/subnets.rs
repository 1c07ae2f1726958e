//! Further subnets of the fabric: bridges beside the usual one, joined by the fabric's own namespace, which is the router
//! of each and knows of pods as little as a cloud's does.
//!
//! ```text
//!  node1  client         node3
//!    │      │              │
//!  fabric ──┴── router ── fabric2      10.90.0.0/24, fd00:90::/64 and 10.90.2.0/24, fd00:90:0:2::/64
//! ```

use std::collections::BTreeSet;

use anyhow::Result;

use super::outside::forward;
use crate::fabric;
use crate::layout::{API_HOST, FABRIC, Layout, MAIN_SUBNET, SUBNET_BITS, fabric_address};
use crate::place::Place;

/// Makes the subnets that the layout names beside the usual one, and routes between all.
pub(super) fn make(layout: &Layout) -> Result<()> {
    let subnets: BTreeSet<u8> = layout.subnets.values().copied().filter(|&n| n != MAIN_SUBNET).collect();
    if subnets.is_empty() {
        return Ok(());
    }
    let open = |netns: &str| Place::open(netns, &layout.outside_cgroup());
    let (router, client) = (open(&layout.fabric_netns())?, open(&layout.client_netns())?);
    let (gateway_v4, gateway_v6) = fabric_address(MAIN_SUBNET, API_HOST);
    for subnet in subnets {
        fabric::create(router.netns(), subnet, API_HOST)?;
        let (v4, v6) = fabric_address(subnet, 0);
        for (network, bits, gateway) in [(v4, SUBNET_BITS.0, gateway_v4), (v6, SUBNET_BITS.1, gateway_v6)] {
            client.ip(&["route", "add", &format!("{network}/{bits}"), "via", &gateway.to_string()])?;
        }
    }
    forward(&router)?;
    keep_to_known_sources(&router)
}

/// What comes from the router itself or from an address of the fabric is routed, and nothing else.
fn keep_to_known_sources(router: &Place) -> Result<()> {
    for (family, fabric) in ["-4", "-6"].into_iter().zip(FABRIC) {
        let add = |rule: &[&str]| router.ip(&[&[family, "rule", "add"], rule].concat());
        add(&["pref", "100", "iif", "lo", "lookup", "main"])?;
        add(&["pref", "101", "from", fabric, "lookup", "main"])?;
        add(&["pref", "102", "blackhole"])?;
    }
    Ok(())
}
