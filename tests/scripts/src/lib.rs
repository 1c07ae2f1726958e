//! Golden scripts: Kubernetes objects in, a readable map dump out.
//!
//! A script is a text file under `data/`. It starts with what it is about, as `#` lines, and options, each
//! a line `name: value`: `node`, `slots`, `backends`, `frontends`, `order: fixed`; `nodeport_addresses`,
//! `nodeport_loopback: yes`, `service_cidrs`, `maglev` as the operator would choose them; `local_addresses` of the
//! node's interfaces; `ranges: shown` if the ranges of ClusterIPs are expected as well. Then come sections:
//!
//! ```text
//! -- apply --              objects as YAML, separated by `---`
//! -- delete --             lines `Kind namespace/name`
//! -- addresses --          the addresses of the node's interfaces from now on
//! -- expect --             the frontends, then `range`, `lingering`, `health`, `problem` and `pending` lines
//! -- flows --              packets and what becomes of them:
//!                          pod 10.0.0.2 -> 172.30.0.41:80/tcp: 10.180.0.1:80
//!                          outside 203.0.113.2 -> 192.168.0.2:3001/tcp: masqueraded 10.180.0.1:80
//! ```
//!
//! A flow that ends in `| kube-proxy masquerades` says that kube-proxy would, where Fairlead does not.
//!
//! [`Script::parse`] reads one, [`run::in_order`] runs it as it stands, [`run::disturbed`] runs it with
//! events shuffled and repeated, reconciles in between, map writes that fail and restarts of the proxy.
//! What is expected is the same.

pub mod run;
pub mod script;

pub use script::Script;
