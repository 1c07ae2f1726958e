//! What is tested: the proxy's core, writing into the maps of the loaded programs, and the programs.

use std::net::IpAddr;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_abi::{Config, Counter};
use fairlead_core::index::Index;
use fairlead_core::model::ObjectName;
use fairlead_core::reconcile::Reconciler;
use fairlead_core::settings::{NodePortAddresses, Settings as CoreSettings};
use fairlead_prog_tests::node::PLACES;
use fairlead_prog_tests::{FAMILIES, Hook, Node, Outcome};

use crate::case::{Object, Settings, Step};
use crate::cluster::{Cluster, name_of};
use crate::compare::Counted;
use crate::maps::{self, NodeMaps};
use crate::world;

/// First port of the range that flows are masqueraded with.
pub const SNAT_FIRST: u16 = 49_152;
/// How many ports that range has.
pub const SNAT_COUNT: u16 = 16_384;
/// More reconciles than any history needs.
const PATIENCE: usize = 50;
/// Between two steps of a history: longer than numbers rest before they are given out again.
const PAUSE: Duration = Duration::from_secs(2);

/// The programs and the proxy's core.
pub struct Subject {
    node: MutexGuard<'static, Node>,
    settings: CoreSettings,
    reconciler: Reconciler,
    now: Instant,
    /// What the API holds.
    cluster: Cluster,
}

impl Subject {
    /// The programs with empty maps, and a proxy that has just been started.
    #[must_use]
    pub fn start(settings: &Settings) -> Self {
        let node = Node::start();
        let addresses = settings.nodeport_addresses.clone();
        let settings = CoreSettings {
            nodeport_addresses: addresses.map_or(NodePortAddresses::Primary, NodePortAddresses::Within),
            nodeport_loopback: false,
            service_cidrs: settings.service_cidrs.clone(),
            maglev: settings.maglev,
        };
        let reconciler = proxy(&node, &settings);
        let now = Instant::now();
        let mut subject = Self { node, settings, reconciler, now, cluster: Cluster::default() };
        subject.reconciler.set_synced();
        subject
    }

    /// The addresses that the node's interfaces have, as the agent would find them.
    #[must_use]
    pub fn local_addresses() -> Vec<IpAddr> {
        FAMILIES.iter().flat_map(|family| [family.node(), world::second_address(*family)]).collect()
    }

    /// Feeds the proxy with the history, and brings the maps up to date.
    ///
    /// # Errors
    /// When a map refuses, or something stays undone.
    pub fn live_through(&mut self, history: &[Step]) -> Result<()> {
        for step in history {
            self.cluster.take(step);
            match step {
                Step::Apply(object) => apply(self.reconciler.index_mut(), object),
                Step::Delete(object) => delete(self.reconciler.index_mut(), object),
                Step::Reconcile => self.reconcile(),
                Step::Restart => self.restart().context("restart")?,
            }
        }
        self.settle()
    }

    /// Gives the programs these addresses of the node, as the agent does when it learns them.
    pub fn configure(&mut self, v4: Option<IpAddr>, v6: Option<IpAddr>) {
        self.node.set_config(Config {
            node_v4: v4.map(Into::into).unwrap_or_default(),
            node_v6: v6.map(Into::into).unwrap_or_default(),
            snat_first: SNAT_FIRST,
            snat_count: SNAT_COUNT,
            places: PLACES,
            ..Config::default()
        });
    }

    /// Runs `work` where packets can be sent.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.node.inside(work)
    }

    /// Hands a packet to the program at `hook`; only [`Self::inside`].
    #[must_use]
    pub fn send(&self, hook: Hook, packet: &[u8]) -> Outcome {
        self.node.send_inside(hook, packet)
    }

    /// What the programs have counted, but for drops that they have not told of: that depends on how many there were in the
    /// same second.
    #[must_use]
    pub fn counted(&self) -> Counted {
        let mut counters = self.node.counters();
        counters[Counter::EventLost as usize] = 0;
        (counters, self.node.drops())
    }

    /// Ends every connection.
    pub fn forget_flows(&mut self) {
        maps::clear_flows(&mut self.node);
    }

    fn reconcile(&mut self) {
        self.now += PAUSE;
        self.reconciler.reconcile(self.now, &mut NodeMaps(&mut self.node));
    }

    fn settle(&mut self) -> Result<()> {
        self.reconcile();
        for _ in 0..PATIENCE {
            let Some(deadline) = self.reconciler.next_deadline() else { return Ok(()) };
            self.now = self.now.max(deadline);
            self.reconcile();
        }
        bail!("still pending: {:?}", self.reconciler.pending().collect::<Vec<_>>())
    }

    fn restart(&mut self) -> Result<()> {
        self.reconciler = proxy(&self.node, &self.settings);
        self.reconciler.adopt(&NodeMaps(&mut self.node))?;
        for object in self.cluster.objects() {
            apply(self.reconciler.index_mut(), &object);
        }
        self.reconciler.set_synced();
        Ok(())
    }
}

fn proxy(node: &Node, settings: &CoreSettings) -> Reconciler {
    let mut reconciler = Reconciler::new(world::NODE, maps::capacity(node), settings.clone());
    reconciler.index_mut().set_local_addresses(Subject::local_addresses());
    reconciler
}

fn apply(index: &mut Index, object: &Object) {
    match object {
        Object::Node(node) => index.apply_node(node),
        Object::Service(service) => index.apply_service(service),
        Object::EndpointSlice(slice) => index.apply_slice(slice),
        Object::ServiceCIDR(cidr) => index.apply_service_cidr(cidr),
    }
}

fn delete(index: &mut Index, object: &Object) {
    let (namespace, name) = name_of(object.metadata());
    match object {
        Object::Node(_) => index.delete_node(&name),
        Object::Service(_) => index.delete_service(&ObjectName::new(namespace, name)),
        Object::EndpointSlice(_) => index.delete_slice(&ObjectName::new(namespace, name)),
        Object::ServiceCIDR(_) => index.delete_service_cidr(&name),
    }
}
