//! The real binary, run as a runtime runs it, in network namespaces of its own.
//!
//! Each test makes a namespace that plays the host and one for each pod. The agent is a stand-in inside the
//! test ([`agent`]), which records what it is asked and programs nothing: packets go by kernel routing. So is
//! the API server ([`api`]).

mod agent;
mod api;
mod capabilities;
mod chain;
mod check;
mod converge;
mod daemon;
mod faults;
mod gc;
mod host;
mod ledger;
mod overlay;
mod readiness;
mod runtime;
mod servers;
mod shipped;
mod sites;
mod status;
mod steps;
mod traffic;
mod verbs;
