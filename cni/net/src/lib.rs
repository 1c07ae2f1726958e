//! Pod wiring for Fairlead: configuration, addresses, plans and their execution by rtnetlink.
//!
//! ```text
//! config ──────────┐
//!   capabilities   ├─> store (ipam: addresses) ─> plan (pure) ─> exec (rtnetlink, undone on drop) ─> agent
//! node ────────────┘                                └─> check (pure) <─ observe (rtnetlink)
//! here (this node's addresses) ─> routing (pure) ─> network (pure diff) ─> tables (rtnetlink)
//! node, sysctl: what the daemon installs and sets on the node; changes: what others do to it
//! store + ours (whose the host's interfaces are) ─> gc: what nobody knows any more is removed
//! ```
//!
//! The binary `fairlead-cni` is the caller; the agent uses [`agent`] and, like the test harness, [`netns`].
//! Everything that decides ([`config`], [`capabilities`], [`ipam`], [`plan`], [`check`], [`routing`], [`network`]) is
//! a function of values; what touches the machine ([`store`], [`exec`], [`netns`], [`link`], [`files`], [`tables`])
//! decides nothing.

pub mod agent;
pub mod alias;
pub mod attachment;
pub mod capabilities;
pub mod changes;
pub mod check;
pub mod config;
pub mod exec;
pub mod files;
pub mod gc;
pub mod here;
pub mod ipam;
pub mod link;
pub mod names;
pub mod netns;
pub mod network;
pub mod node;
pub mod ours;
pub mod plan;
pub mod result;
pub mod routes;
pub mod routing;
pub mod shaping;
pub mod store;
pub mod sysctl;
pub mod tables;
pub mod vxlan;

mod messages;
mod netlink;
mod observe;

/// The protocol number that marks every route of ours (`ip route show proto 250`): what carries another
/// number is never touched.
pub const ROUTE_PROTOCOL: u8 = 250;
