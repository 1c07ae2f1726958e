//! The pure half of the Fairlead proxy: what the maps should hold, from what the API holds.
//!
//! No sockets, no clocks of its own, no kernel: objects go in, map writes come out through a trait.
//!
//! ```text
//! watch ──► convert ──► index ──► endpoints ──► frontends ──► reconcile ──► dataplane (maps)
//!           objects     state,    who may       what each     ids, regions, order of writes,
//!           checked     dirty     serve         client dials  retries, adoption
//!              │        Services                    (tables)            ▲
//!              └──────► policy: who is whom, what each pod is under ────┘
//! ```
//!
//! The agent feeds [`index::Index`] and [`policy::Engine`] from its watches and calls
//! [`reconcile::Reconciler::reconcile`] and [`policy::Engine::reconcile`]; the golden scripts do the same from files.

mod behind;
pub mod convert;
pub mod dataplane;
pub mod decide;
pub mod detail;
mod digest;
pub mod effect;
pub mod egress;
pub mod endpoints;
pub mod events;
pub mod frontends;
pub mod host_ports;
pub mod index;
pub mod intern;
pub mod maglev;
pub mod model;
pub mod policy;
pub mod reconcile;
pub mod reporter;
pub mod settings;
pub mod small;
pub mod stamp;
pub mod tables;
mod tracked;
pub mod view;
