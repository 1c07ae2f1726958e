//! A stand-in for the Kubernetes API server, for Fairlead's demo and tests.
//!
//! **This is not Kubernetes.** It keeps objects in memory, over plain HTTP, for anyone who asks: no authentication,
//! encryption, quotas, no authorisation but what a test asks for, webhooks, installing of custom resources or pruning of fields, and nothing
//! survives its end.
//! It serves the kinds that a network data plane works with, to kubectl and to client libraries, as the real one
//! would: discovery, list and watch (bookmarks, streamed lists, 410 Gone), create, update, patch and delete, status.
//! Wherever a real `kube-apiserver` can be had, the cluster tests run on that instead.
//!
//! It also does the parts of a cluster's control plane that a data plane depends on: addresses and node ports of
//! Services, EndpointSlices from Services and Pods, Nodes' pod ranges, the deletion of Namespaces and their content.
//!
//! ```text
//! http ──► cluster (verbs, one lock) ──► admission ──► service (defaults, rules, claims)
//!              ▲            │
//! controllers ─┘            └──► store (objects, revisions, history) ──► watches
//! ```
//!
//! Fault controls, for tests:
//!
//! - `POST /-/compact` forgets the history, so that watches end with 410 Gone.
//! - `POST /-/outage` ends all watches and refuses all requests with 503, until `DELETE /-/outage`.
//! - `POST /-/break` ends all watches.
//! - `POST /-/undefine` ends all watches and makes the kinds of custom resources unknown, until `DELETE /-/undefine`.
//! - `POST /-/duplicate` makes watches tell each change twice, the second time after the changes that came with it,
//!   as to a client that resumes from an earlier revision; until `DELETE /-/duplicate`.
//! - `POST /-/delay?ms=100` makes watches late, so that they tell many changes at once; with `&kind=services` only those
//!   of one kind, so that they are told after later changes of others. 0 ends it.
//!
//! - `PUT /-/rights?user=u` lets the user of that bearer token do no more than the roles in the body allow;
//!   `GET /-/rights?user=u` tells what was refused, and which rights were of no use.
//!
//! [`Server::start`] runs it in this process; the binary `fairlead-apiserver` runs it in its own.

mod admission;
mod clock;
mod cluster;
mod controllers;
mod custom;
mod event;
mod http;
mod labels;
mod network_policy;
mod object;
mod patch;
mod pod;
mod resource;
mod selector;
mod server;
mod service;
mod status;
mod store;

pub use cluster::{Cluster, DeleteOptions, Deleted, Target};
pub use object::Object;
pub use patch::PatchKind;
pub use resource::*;
pub use selector::Selector;
pub use server::{Options, Server, StartError, kubeconfig};
pub use status::{ApiError, FieldError};
pub use store::Change;
