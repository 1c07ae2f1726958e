//! Fairlead's service proxy: watches the API and keeps one node's eBPF maps programmed.
//!
//! ```text
//!  API server ──► watch ──► sync (thread) ──────► fairlead_core::reconcile ──► dataplane::services ──┐
//!                   │         │ own Node                                                             │
//!   interfaces ─────┼────►    ├──► uplinks ──────────────────────────────────► dataplane::links ─────┤
//!                   │         └──► service_health ◄── load balancers                                 ▼
//!                   ├──► policy (thread) ────────► fairlead_core::policy ────► dataplane::policies ─► maps, links
//!                   │         ▲ guards                                                               ▲ (pinned)
//!                   └──► pods ┼ what is translated                                                   │
//!  CNI plugin ──► socket ──► agent ──────────────► dataplane::endpoints, clients ────────────────────┤
//!                             │                    sweep (thread) ──► dataplane::flows ──────────────┤
//!                             │                    drops ◄─────────── dataplane::events ◄────────────┤
//!  connection tracking ──► takeover (thread) ────► dataplane::tracked ◄──────────────────────────────┘
//!  kubelet, Prometheus, people ──► health, metrics, in_effect, status, inquiry, policy::why; cli     events ──► API
//! ```
//!
//! The kernel's half lives on without the agent: what [`run`] finds pinned it adopts.

pub mod agent;
pub mod cleanup;
pub mod cli;
pub mod dataplane;
pub mod drops;
pub mod ends;
pub mod errors;
pub mod events;
pub mod health;
pub mod host_ports;
pub mod in_effect;
pub mod inquiry;
pub mod interfaces;
pub mod kernel;
pub mod masquerade;
pub mod measure;
pub mod metrics;
pub mod node;
pub mod pace;
pub mod pods;
pub mod policy;
pub mod progress;
pub mod requests;
pub mod run;
pub mod service_health;
pub mod socket;
pub mod status;
pub mod sweep;
pub mod sync;
pub mod takeover;
pub mod uplinks;
pub mod watch;
