//! The Service oracle: random clusters and random packets, through the loaded programs and through an interpreter
//! that is too simple to be wrong, compared.
//!
//! ```text
//!              ┌─► core's index and reconciler ─► maps ─► programs ──┐
//! generate ─► case                                                   ├─► compare ─► shrink ─► data/*.json
//!              └─► cluster (what the API holds in the end) ─► oracle ┘
//! ```
//!
//! A [`case::Case`] is a history of API objects and some probes. [`oracle`] knows nothing of the proxy: it reads the
//! objects that are left at the end, straight by the API's documentation and the project's statement of semantics,
//! for every packet anew. [`compare`] sends each probe with BPF_PROG_TEST_RUN, and the packets that follow it: the
//! backend's answer, the client's next packet, and another one after the objects have changed. A difference is reduced by
//! [`shrink`] to what it needs, and written to `data/`, whose cases are tried first at every run: once it is understood,
//! it gets a name and says what it is about, or goes.
//!
//! `FAIRLEAD_SEED` repeats a run, `FAIRLEAD_ORACLE_CLUSTERS` says how many clusters it has.
//!
//! Socket hooks can't be run without a socket: they are left to the cluster tests.

pub mod case;
pub mod cluster;
pub mod compare;
pub mod generate;
pub mod kept;
pub mod kernel;
pub mod maps;
pub mod oracle;
pub mod shrink;
pub mod subject;
pub mod wire;
pub mod world;
