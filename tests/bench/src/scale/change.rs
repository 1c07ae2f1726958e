//! How soon a change of endpoints takes effect: from the write to the API until a client meets the new endpoint.
//!
//! A Service has one endpoint, one of two pods; each change makes it the other one. The client, a third pod,
//! connects without a pause, and notes when the new one answers first. The clock starts before the write is sent,
//! so that the API server's own time counts too.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use fairlead_harness::{Cluster, RunningPod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

use crate::named;
use crate::orders::Request;
use crate::worker::Worker;

const OBJECTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: switch-client}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: switch-0}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Pod
metadata: {name: switch-1}
spec: {nodeName: node1, containers: [{name: bench, image: fairlead-bench}]}
---
apiVersion: v1
kind: Service
metadata: {name: switch}
spec:
  ports: [{name: named, port: 7005}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: switch, labels: {kubernetes.io/service-name: switch}}
addressType: IPv4
ports: [{name: named, port: 7005, protocol: TCP}]
endpoints: []
"#;

/// The shortest pause before a change.
const PAUSE: Duration = Duration::from_millis(2);
/// The pauses differ by so many microseconds, so that changes meet the agent at all moments of its rounds.
const SCATTER: u64 = 10_000;

/// Creates the objects.
///
/// # Errors
/// When the API server refuses.
pub(crate) fn create(cluster: &Cluster) -> Result<()> {
    cluster.apply(OBJECTS)
}

/// A Service that is switched between two pods.
pub(crate) struct Switch<'a> {
    cluster: &'a Cluster,
    target: SocketAddr,
    client: Worker,
    endpoints: [IpAddr; 2],
    /// They end with this.
    _servers: [Worker; 2],
    /// The number of the pod that is the endpoint.
    current: u8,
    changes: u64,
}

impl<'a> Switch<'a> {
    /// Starts clients and servers in the cluster's pods, on processor `cpu`.
    ///
    /// # Errors
    /// When a pod does not start, or the Service can't be reached.
    pub(crate) fn new(cpu: usize, cluster: &'a Cluster) -> Result<Self> {
        let ips = cluster.cluster_ips("switch")?;
        let target = SocketAddr::new(ipv4(&ips).context("the Service has no IPv4 address")?, named::PORT);
        let pods = [cluster.pod("switch-0")?, cluster.pod("switch-1")?];
        let worker = |pod: &RunningPod| {
            let mut worker = Worker::start(&pod.name, Some(&pod.place))?;
            worker.tell(Request::Pin(cpu))?;
            anyhow::Ok(worker)
        };
        let mut servers = [worker(&pods[0])?, worker(&pods[1])?];
        for (name, server) in (0..).zip(&mut servers) {
            server.tell(Request::ServeNamed(name))?;
        }
        let address =
            |pod: &RunningPod| ipv4(&pod.ips).with_context(|| format!("{} has no IPv4 address", pod.name));
        let mut switch = Self {
            cluster,
            target,
            client: worker(&cluster.pod("switch-client")?)?,
            endpoints: [address(&pods[0])?, address(&pods[1])?],
            _servers: servers,
            current: 0,
            changes: 0,
        };
        switch.write()?;
        switch.client.tell(Request::Reach(target))?;
        Ok(switch)
    }

    /// Makes so many changes; returns how many microseconds each took.
    ///
    /// # Errors
    /// When a change has no effect, or a connection fails in the meantime.
    pub(crate) fn measure(&mut self, changes: usize) -> Result<Vec<u32>> {
        (0..changes).map(|_| self.change()).collect()
    }

    fn change(&mut self) -> Result<u32> {
        self.current = 1 - self.current;
        self.changes += 1;
        self.client.watch(self.target, self.current)?;
        thread::sleep(PAUSE + Duration::from_micros(self.changes * 7919 % SCATTER));
        let written = named::now()?;
        self.write()?;
        let seen = self.client.seen()?;
        u32::try_from(seen.saturating_sub(written).as_micros()).context("it took over an hour")
    }

    /// Makes the current pod the only endpoint.
    fn write(&self) -> Result<()> {
        let address = self.endpoints[usize::from(self.current)];
        let patch = json!({ "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }] });
        self.cluster.api().patch::<EndpointSlice>("switch", &patch).map(drop)
    }
}

fn ipv4(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(IpAddr::is_ipv4)
}
