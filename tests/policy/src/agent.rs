//! The agent's part of a case: the policy engine, fed with what happens, and writing into some maps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use fairlead_core::dataplane::PolicyMaps;
use fairlead_core::model::{ObjectName, Protocol};
use fairlead_core::policy::{Capacity, Engine, Party, PodId};

use crate::case::{Endpoint, Object, Probe, Step};
use crate::cluster::Cluster;
use crate::world::NODE;

/// More reconciles than any history needs, even with every fourth write failing.
const PATIENCE: usize = 200;
/// Between two reconciles: longer than numbers rest before they are given out again.
const PAUSE: Duration = Duration::from_secs(2);

/// The policy engine, and what it has been told.
#[derive(Debug)]
pub struct Agent {
    engine: Engine,
    capacity: Capacity,
    now: Instant,
    cluster: Cluster,
}

impl Agent {
    /// An agent that has just been started, with maps of this size.
    #[must_use]
    pub fn start(capacity: Capacity) -> Self {
        let mut engine = Engine::new(NODE, capacity, false);
        engine.set_synced();
        Self { engine, capacity, now: Instant::now(), cluster: Cluster::default() }
    }

    /// What the API holds and the node has.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether the flow passes on the client's and on the server's side, as the engine explains it.
    #[must_use]
    pub fn why(&self, probe: &Probe) -> [bool; 2] {
        let protocol = Protocol::from_number(probe.protocol());
        let [client, server] = [probe.from, probe.to].map(|end| Party::Address(end.ip()));
        let explained = self.engine.why(&client, &server, protocol, probe.port());
        [explained.egress.allowed, explained.ingress.allowed]
    }

    /// Feeds the engine with the history, and brings the maps up to date.
    ///
    /// # Errors
    /// When the maps can't be read, or something stays undone.
    pub fn live_through(&mut self, history: &[Step], maps: &mut impl PolicyMaps) -> Result<()> {
        for step in history {
            self.cluster.take(step);
            match step {
                Step::Reconcile => self.reconcile(maps),
                Step::Restart => self.restart(maps).context("restart")?,
                step => feed(&mut self.engine, step)?,
            }
        }
        self.settle(maps)?;
        self.cluster.look();
        Ok(())
    }

    fn reconcile(&mut self, maps: &mut impl PolicyMaps) {
        self.now += PAUSE;
        self.engine.reconcile(self.now, maps);
    }

    fn settle(&mut self, maps: &mut impl PolicyMaps) -> Result<()> {
        self.reconcile(maps);
        for _ in 0..PATIENCE {
            let Some(deadline) = self.engine.next_deadline() else { return Ok(()) };
            self.now = self.now.max(deadline);
            self.reconcile(maps);
        }
        bail!("still pending: {:?}", self.engine.pending().collect::<Vec<_>>())
    }

    /// The agent dies; another one finds its maps and endpoints, and lists all objects.
    fn restart(&mut self, maps: &mut impl PolicyMaps) -> Result<()> {
        self.engine = Engine::new(NODE, self.capacity, false);
        let (restored, listed): (Vec<Step>, Vec<Step>) =
            self.cluster.steps().into_iter().partition(|step| !matches!(step, Step::Apply(_)));
        for step in restored {
            feed(&mut self.engine, &step)?;
        }
        self.engine.adopt(&*maps)?;
        self.reconcile(maps);
        for step in listed {
            feed(&mut self.engine, &step)?;
        }
        self.engine.set_synced();
        Ok(())
    }
}

fn feed(engine: &mut Engine, step: &Step) -> Result<()> {
    match step {
        Step::Apply(object) => apply(engine, object)?,
        Step::Delete(object) => delete(engine, object),
        Step::Attach(Endpoint { index, namespace, name, uid, addresses }) => {
            let pod = PodId { namespace: namespace.clone(), name: name.clone(), uid: uid.clone() };
            engine.add_endpoint(*index, pod, addresses.clone());
        }
        Step::Detach(index) => engine.remove_endpoint(*index),
        Step::Addresses(addresses) => engine.set_local_addresses(addresses.clone()),
        Step::Reconcile | Step::Restart => {}
    }
    Ok(())
}

fn apply(engine: &mut Engine, object: &Object) -> Result<()> {
    match object {
        Object::Node(node) => engine.apply_node(node),
        Object::Namespace(namespace) => engine.apply_namespace(namespace),
        Object::Pod(pod) => engine.apply_pod(pod),
        Object::NetworkPolicy(policy) => engine.apply_network_policy(policy),
        Object::ClusterNetworkPolicy(policy) => {
            let policy = serde_json::from_value(policy.clone()).context("a ClusterNetworkPolicy")?;
            engine.apply_cluster_policy(&policy);
        }
    }
    Ok(())
}

fn delete(engine: &mut Engine, object: &Object) {
    let (namespace, name) = object.name();
    match object {
        Object::Node(_) => engine.delete_node(&name),
        Object::Namespace(_) => engine.delete_namespace(&name),
        Object::Pod(_) => engine.delete_pod(&ObjectName::new(namespace, name)),
        Object::NetworkPolicy(_) => engine.delete_network_policy(&ObjectName::new(namespace, name)),
        Object::ClusterNetworkPolicy(_) => engine.delete_cluster_policy(&name),
    }
}
