//! The policy oracle: who reaches whom under NetworkPolicies and ClusterNetworkPolicies, by an interpreter that is too
//! simple to be wrong, compared with what the policy engine compiles and what the loaded programs do.
//!
//! ```text
//!                  ┌─► core's policy engine ─► maps in memory ───────────────┐
//! generate ─► case ┼─► core's policy engine ─► the kernel's maps ─► programs ┼─► compare ─► shrink ─► found/*.json
//! data/*.txt ─►    └─► cluster (what there is in the end) ─► oracle ─────────┘
//! ```
//!
//! A [`case::Case`] is a history of API objects and local pods, and some packets that begin flows. [`oracle`] knows
//! nothing of the engine: it reads the objects that are left at the end, straight by the API's documentation and the
//! project's statement of semantics, for every packet anew. [`memory`] judges each packet by maps in memory, into which
//! writes fail now and then; [`programs`] sends it with BPF_PROG_TEST_RUN, and if it passes the server's answer, the
//! client's next packet, and another one after policies and labels have changed. A difference is reduced to what it
//! needs, and written to `found/`, whose cases are tried first at every run: once it is understood, it gets a name and
//! says what it is about, or goes.
//!
//! A [`script::Script`] under `data/` says what its author expects: that goes through all three.
//!
//! `FAIRLEAD_SEED` repeats a run, `FAIRLEAD_POLICY_CLUSTERS` says how many clusters each test has.

pub mod agent;
pub mod case;
pub mod cluster;
pub mod generate;
pub mod maps;
pub mod memory;
pub mod oracle;
pub mod programs;
pub mod script;
pub mod tables;
pub mod watched;
pub mod world;
