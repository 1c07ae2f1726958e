//! One pass over the node: everything that the daemon keeps is compared with what it should be, and put right.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use anyhow::{Context, Result};
use fairlead_net::config::NodeFile;
use fairlead_net::here::Here;
use fairlead_net::network::{Item, diff};
use fairlead_net::node::{self, Conflist};
use fairlead_net::routing::{self, NodeNetwork, Planned};
use fairlead_net::sysctl::{self, Purpose};
use fairlead_net::tables::Tables;

use crate::condition::Readiness;
use crate::daemon::Options;
use crate::metrics::Counts;

/// How often the kernel's tables are read and changed in one pass: what is made anew takes along what hung on it, and
/// that is seen only when they are read again.
const ROUNDS: usize = 3;

/// What a pass found.
pub(crate) struct Outcome {
    /// Whether pods can be run here; None while there is no Node to say it of.
    pub(crate) readiness: Option<Readiness>,
    /// What failed, whether or not it keeps pods from running here.
    pub(crate) failures: Vec<anyhow::Error>,
}

/// Brings the node to what the Nodes ask for.
pub(crate) struct Reconciler {
    node: String,
    options: Options,
    tables: Tables,
    /// What was last said to be wrong with Nodes, so that it is said once.
    problems: BTreeSet<String>,
    counts: Arc<Counts>,
    /// Whether it was said that the Node has no podCIDRs.
    lacks_cidrs: bool,
}

impl Reconciler {
    /// For the node of this name; within a tokio runtime.
    pub(crate) fn new(node: String, options: Options, counts: Arc<Counts>) -> Result<Self> {
        let tables = Tables::open(&options.proc_sys).context("open rtnetlink")?;
        Ok(Self { node, options, tables, problems: BTreeSet::new(), counts, lacks_cidrs: false })
    }

    /// The name of this machine's Node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Brings the node to what `nodes` ask for; each part on its own, so that one failing holds up no other.
    pub(crate) async fn pass(&mut self, nodes: &BTreeMap<String, NodeNetwork>) -> Outcome {
        let Some(own) = nodes.get(&self.node) else {
            self.tell([format!("there is no Node {}: its network is left as it is", self.node)].into());
            return Outcome { readiness: None, failures: Vec::new() };
        };
        let mut pass = Pass::default();
        // Without its addresses nothing can be planned, and what there is may still be right.
        if own.addresses.is_empty() {
            let message = "the Node has no InternalIP: its network is left as it is";
            self.tell([message.to_owned()].into());
            pass.block("NoInternalIP", message.into());
            return pass.outcome();
        }
        let here = match self.tables.here().await.context("read the interfaces' addresses") {
            Ok(here) => here,
            Err(error) => {
                pass.fail("RoutesNotSet", error);
                return pass.outcome();
            }
        };
        let planned = routing::plan(&self.node, nodes, &here, &self.options.routing());
        let others = node::others_before(&self.options.cni_conf_dir);
        let others = others.iter().map(|name| {
            let directory = self.options.cni_conf_dir.display();
            format!("{name} in {directory} comes before {}: runtimes will use that", node::CONFLIST)
        });
        self.tell(planned.problems.iter().map(ToString::to_string).chain(others).collect());
        self.counts.planned(&planned.items);
        self.route(&planned, &mut pass).await;
        for error in sysctl::settle(&self.options.proc_sys, &interfaces(own, &here, &planned)) {
            match error.purpose {
                Purpose::Forwarding => pass.fail("SettingsNotMade", error.into()),
                Purpose::Advertisements | Purpose::ReturnPath => pass.failures.push(error.into()),
            }
        }
        let lacked_cidrs = std::mem::replace(&mut self.lacks_cidrs, own.pod_cidrs.is_empty());
        if own.pod_cidrs.is_empty() {
            if !lacked_cidrs {
                tracing::info!(node = self.node, "the Node has no podCIDRs yet");
            }
            pass.block("NoPodCIDRs", "the Node has no podCIDRs yet".into());
        } else if let Err(error) = self.install(own, self.options.mtu.or(planned.mtu)) {
            pass.fail("NotInstalled", error);
        }
        pass.outcome()
    }

    /// Puts routes and the overlay right.
    async fn route(&self, planned: &Planned, pass: &mut Pass) {
        for _ in 0..ROUNDS {
            let actual = match self.tables.read().await {
                Ok(actual) => actual,
                Err(error) => {
                    pass.fail("RoutesNotSet", anyhow::Error::new(error).context("read the routes"));
                    return;
                }
            };
            let mut is_done = true;
            for change in diff(&planned.items, &actual) {
                match self.tables.apply(&change).await {
                    Ok(()) => {
                        is_done = false;
                        self.counts.changed(&change);
                        tracing::info!("{change}");
                    }
                    Err(error) => pass.refuse(error, &change),
                }
            }
            if is_done || !pass.failures.is_empty() {
                return;
            }
        }
    }

    /// Says what is wrong with Nodes, if it is not what was said last.
    fn tell(&mut self, problems: BTreeSet<String>) {
        problems.difference(&self.problems).for_each(|problem| tracing::warn!("{problem}"));
        self.problems = problems;
    }

    /// The conflist comes last: with it the runtime takes the node for ready.
    fn install(&self, own: &NodeNetwork, mtu: Option<u32>) -> Result<()> {
        let options = &self.options;
        let file = NodeFile { pod_cidrs: own.pod_cidrs.clone(), mtu };
        if node::write_node_file(&options.node_file, &file)? {
            tracing::info!(podCIDRs = ?file.pod_cidrs, mtu, "wrote the node file");
        }
        let binary = std::env::current_exe().context("find the own binary")?;
        if node::install_binary(&binary, &options.cni_bin_dir)? {
            tracing::info!(directory = %options.cni_bin_dir.display(), "installed the plugin");
        }
        let conflist = Conflist {
            node_file: options.node_file.clone(),
            data_dir: options.data_dir.clone(),
            agent_socket: options.agent(),
        };
        if conflist.install(&options.cni_conf_dir)? {
            tracing::info!(directory = %options.cni_conf_dir.display(), "installed the configuration");
        }
        Ok(())
    }
}

/// What has been found so far.
#[derive(Default)]
struct Pass {
    blocked: Option<Readiness>,
    failures: Vec<anyhow::Error>,
}

impl Pass {
    /// Something keeps pods from running here; the first that does is told.
    fn block(&mut self, reason: &'static str, message: String) {
        self.blocked.get_or_insert(Readiness::NotReady(reason, message));
    }

    /// Something failed, and keeps pods from running here.
    fn fail(&mut self, reason: &'static str, error: anyhow::Error) {
        self.block(reason, format!("{error:#}"));
        self.failures.push(error);
    }

    /// The kernel refused a change: for all that it is about, if we may not make any.
    fn refuse(&mut self, error: io::Error, change: &impl ToString) {
        let is_forbidden = error.kind() == ErrorKind::PermissionDenied;
        let error = anyhow::Error::new(error).context(change.to_string());
        if is_forbidden {
            self.fail("RoutesNotSet", error);
        } else {
            self.failures.push(error);
        }
    }

    fn outcome(self) -> Outcome {
        Outcome { readiness: Some(self.blocked.unwrap_or(Readiness::Ready)), failures: self.failures }
    }
}

/// The interfaces by which the node is reached: those with its addresses, and the overlay's.
fn interfaces(own: &NodeNetwork, here: &Here, planned: &Planned) -> Vec<String> {
    let uplinks = here.addresses.iter().filter(|local| own.addresses.contains(&local.address));
    let overlays = planned.items.iter().filter_map(|item| match item {
        Item::Device(device) => Some(device.underlay.ifname().to_owned()),
        _ => None,
    });
    let names: BTreeSet<String> = uplinks.map(|local| local.ifname.clone()).chain(overlays).collect();
    names.into_iter().collect()
}
