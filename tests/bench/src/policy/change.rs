//! How soon a change takes effect: from the write to the API until datagrams on the wire meet the new rules.
//!
//! The client and the server are isolated pods of one team; one rule, of the server's ingress, is changed so that it
//! names another port, or the client is so that the rule does not name it. Both are undone then, which is a change
//! too. The clock starts before the write is sent, so that the API server's own time counts.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fairlead_harness::Cluster;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::json;

use super::objects::{self, ISOLATED, MIDDLE, TRAFFIC};
use super::traffic::CLIENT;
use crate::cell::{Cell, Target};
use crate::named;
use crate::worker::Worker;

/// The shortest pause before a change.
const PAUSE: Duration = Duration::from_millis(20);
/// The pauses differ by so many microseconds, so that changes meet the agent at all moments of its rounds.
const SCATTER: u64 = 10_000;

/// What is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// The port that a rule names.
    Rule,
    /// A label of the client that a rule names.
    Label,
}

/// Changes that a client notices.
pub(crate) struct Changes<'a> {
    cluster: &'a Cluster,
    client: &'a mut Worker,
    target: SocketAddr,
    count: u64,
}

impl<'a> Changes<'a> {
    /// Changes of what `client` may send to `server`.
    pub(crate) fn new(cluster: &'a Cluster, client: &'a mut Worker, server: Target) -> Self {
        Self { cluster, client, target: server.of(Cell::Udp), count: 0 }
    }

    /// Makes a change and undoes it; returns how many microseconds each took.
    ///
    /// # Errors
    /// When one has no effect.
    pub(crate) fn make(&mut self, kind: Kind) -> Result<[u32; 2]> {
        Ok([self.change(kind, false)?, self.change(kind, true)?])
    }

    fn change(&mut self, kind: Kind, allowed: bool) -> Result<u32> {
        self.count += 1;
        self.client.probe(self.target, allowed)?;
        thread::sleep(PAUSE + Duration::from_micros(self.count * 7919 % SCATTER));
        let written = named::now()?;
        self.write(kind, allowed)?;
        let seen = self.client.seen().with_context(|| format!("{kind:?}, allowed: {allowed}"))?;
        ensure!(seen >= written, "{kind:?}, allowed: {allowed}: it was so before it was written");
        u32::try_from((seen - written).as_micros()).context("it took over an hour")
    }

    fn write(&self, kind: Kind, allowed: bool) -> Result<()> {
        let (api, namespace) = (self.cluster.api(), objects::name_of(ISOLATED));
        match kind {
            Kind::Rule => {
                let ingress = &objects::policy(ISOLATED, MIDDLE, allowed)["spec"]["ingress"];
                let patch = json!({ "spec": { "ingress": ingress } });
                api.patch_in::<NetworkPolicy>(&namespace, &objects::policy_name(MIDDLE), &patch).map(drop)
            }
            Kind::Label => {
                let role = if allowed { TRAFFIC } else { "idle" };
                let patch = json!({ "metadata": { "labels": { "role": role } } });
                api.patch_in::<Pod>(&namespace, &objects::local(CLIENT), &patch).map(drop)
            }
        }
    }
}
