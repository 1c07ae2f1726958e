//! Golden scripts: Kubernetes objects in, a readable map dump out.
//!
//! A script is a text file under `data/`. It starts with what it is about, as `#` lines, and options, each
//! a line `name: value` (`node`, `slots`, `backends`, `frontends`, `order: fixed`). Then come sections:
//!
//! ```text
//! -- apply --              objects as YAML, separated by `---`
//! -- delete --             lines `Kind namespace/name`
//! -- expect --             the frontends, then `lingering`, `problem` and `pending` lines
//! ```
//!
//! [`Script::parse`] reads one, [`run::in_order`] runs it as it stands, [`run::disturbed`] runs it with
//! events shuffled and repeated, reconciles in between, map writes that fail and restarts of the proxy.
//! What is expected is the same.

pub mod run;
pub mod script;

pub use script::Script;
