//! One pass over the node: everything that the daemon keeps is compared with what it should be, and put right.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use fairlead_net::config::NodeFile;
use fairlead_net::network::diff;
use fairlead_net::node::{self, Conflist};
use fairlead_net::routing::{self, NodeNetwork};
use fairlead_net::tables::Tables;

use crate::daemon::Options;

/// How often the kernel's tables are read and changed in one pass: what is made anew takes along what hung on it, and
/// that is seen only when they are read again.
const ROUNDS: usize = 3;

/// Brings the node to what the Nodes ask for.
pub(crate) struct Reconciler {
    node: String,
    options: Options,
    tables: Tables,
    /// What was last said to be wrong with Nodes, so that it is said once.
    problems: BTreeSet<String>,
}

impl Reconciler {
    /// For the node of this name; within a tokio runtime.
    pub(crate) fn new(node: String, options: Options) -> Result<Self> {
        let tables = Tables::open().context("open rtnetlink")?;
        Ok(Self { node, options, tables, problems: BTreeSet::new() })
    }

    /// The name of this machine's Node.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Brings the node to what `nodes` ask for; each part on its own, so that one failing holds up no other.
    pub(crate) async fn pass(&mut self, nodes: &BTreeMap<String, NodeNetwork>) -> Vec<anyhow::Error> {
        let mut failures = Vec::new();
        failures.extend(node::enable_forwarding().err().map(Into::into));
        // Without its addresses nothing can be planned, and what there is may still be right.
        let Some(own) = nodes.get(&self.node).filter(|own| !own.addresses.is_empty()) else {
            self.tell(
                ["the Node is not there, or has no InternalIP: its network is left as it is".into()].into(),
            );
            return failures;
        };
        match self.route(nodes).await {
            Ok((mtu, refused)) => {
                failures.extend(refused);
                failures.extend(self.install(own, self.options.mtu.or(mtu)).err());
            }
            Err(error) => failures.push(error),
        }
        failures
    }

    /// Puts routes and the overlay right; what the pods' MTU is to be, and what the kernel refused.
    async fn route(
        &mut self,
        nodes: &BTreeMap<String, NodeNetwork>,
    ) -> Result<(Option<u32>, Vec<anyhow::Error>)> {
        let here = self.tables.here().await.context("read the interfaces' addresses")?;
        let planned = routing::plan(&self.node, nodes, &here, &self.options.routing());
        self.tell(planned.problems.iter().map(ToString::to_string).collect());
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let changes = diff(&planned.items, &self.tables.read().await.context("read the routes")?);
            if changes.is_empty() || !refused.is_empty() {
                break;
            }
            for change in changes {
                match self.tables.apply(&change).await {
                    Ok(()) => tracing::info!("{change}"),
                    Err(error) => refused.push(anyhow::Error::new(error).context(change.to_string())),
                }
            }
        }
        Ok((planned.mtu, refused))
    }

    /// Says what is wrong with Nodes, if it is not what was said last.
    fn tell(&mut self, problems: BTreeSet<String>) {
        problems.difference(&self.problems).for_each(|problem| tracing::warn!("{problem}"));
        self.problems = problems;
    }

    /// The conflist comes last: with it the runtime takes the node for ready.
    fn install(&self, own: &NodeNetwork, mtu: Option<u32>) -> Result<()> {
        let options = &self.options;
        if own.pod_cidrs.is_empty() {
            tracing::info!(node = self.node, "the Node has no podCIDRs yet");
            return Ok(());
        }
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
