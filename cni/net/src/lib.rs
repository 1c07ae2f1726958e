//! Pod wiring for Fairlead: configuration, addresses, plans and their execution by rtnetlink.
//!
//! ```text
//! config ─┐
//!         ├─> store (ipam: addresses) ─> plan (pure) ─> exec (rtnetlink, undone on drop) ─> agent
//! node ───┘
//! here (this node's addresses) ─> routing (pure) ─> network (pure diff) ─> tables (rtnetlink)
//! node: what the daemon installs and sets on the node
//! ```
//!
//! The binary `fairlead-cni` is the caller; the agent uses [`agent`] and, like the test harness, [`netns`].
//! Everything that decides ([`config`], [`ipam`], [`plan`], [`routing`], [`network`]) is a function of values; what
//! touches the machine ([`store`], [`exec`], [`netns`], [`link`], [`files`], [`tables`]) decides nothing.

pub mod agent;
pub mod attachment;
pub mod config;
pub mod exec;
pub mod files;
pub mod here;
pub mod ipam;
pub mod link;
pub mod netns;
pub mod network;
pub mod node;
pub mod plan;
pub mod routes;
pub mod routing;
pub mod store;
pub mod tables;
pub mod vxlan;

mod messages;
mod netlink;

/// The protocol number that marks every route of ours (`ip route show proto 250`): what carries another
/// number is never touched.
pub const ROUTE_PROTOCOL: u8 = 250;
