//! Nodes that join, leave, reboot and move.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1;
use kube::api::DeleteParams;

use super::{Cluster, make_node, teardown};
use crate::layout::NodeLayout;
use crate::node::Node;
use crate::place::Place;
use crate::{boot, cgroup, netns};

impl Cluster {
    /// Brings a node of [`Options::with_late`](super::Options::with_late) into the cluster, and waits until it can run
    /// pods.
    ///
    /// # Errors
    /// When there is no such node, or it does not come up.
    pub fn join(&mut self, name: &str) -> Result<()> {
        let layout = self.layout.nodes().find(|node| node.name == name);
        let layout = layout.with_context(|| format!("the cluster was not made for a node {name}"))?;
        if self.node(name).is_ok() {
            bail!("{name} has joined already");
        }
        make_node(self.fabric()?.netns(), &layout)?;
        let mut node = Node::start(&self.layout, layout, &self.api, &self.options)?;
        node.wait_until_ready()?;
        self.nodes.push(node);
        Ok(())
    }

    /// Takes a node out of the cluster for good: the machine is gone, and its Node object. Its pods must be gone before.
    ///
    /// # Errors
    /// When there is no such node, or something of it is left behind.
    pub fn leave(&mut self, name: &str) -> Result<()> {
        let position = self.nodes.iter().position(|node| node.name() == name);
        let mut node = self.nodes.remove(position.with_context(|| format!("no node {name}"))?);
        self.halt(&mut node)?;
        let nodes = kube::Api::<v1::Node>::all(self.api.client());
        self.api.block_on(nodes.delete(name, &DeleteParams::default()))?;
        Ok(())
    }

    /// Reboots a node, and waits until it can run pods again. All that was in its memory is gone: processes, interfaces,
    /// routes, programs, maps, what lay under `/run`, and the containers of its pods, whose objects remain. Its disk
    /// keeps the plugin, its configuration and its data; the boot id is another.
    ///
    /// # Errors
    /// When there is no such node, or it does not come back.
    pub fn reboot(&mut self, name: &str) -> Result<()> {
        let position = self.nodes.iter().position(|node| node.name() == name);
        let mut node = self.nodes.remove(position.with_context(|| format!("no node {name}"))?);
        let rebooted = self.halt(&mut node).and_then(|()| {
            let layout = node.layout();
            boot::renew(layout)?;
            make_node(self.fabric()?.netns(), layout)?;
            node.boot()?;
            node.wait_until_ready()
        });
        self.nodes.insert(position.unwrap_or_default(), node);
        rebooted.with_context(|| format!("reboot {name}"))
    }

    /// Gives a node the addresses of host `host` on its subnet instead of its own, and says so in its Node object.
    ///
    /// # Errors
    /// When there is no such node, or the kernel or the API server refuses.
    pub fn readdress(&mut self, name: &str, host: u8) -> Result<()> {
        let api = &self.api;
        let node = self.nodes.iter_mut().find(|node| node.name() == name);
        node.with_context(|| format!("no node {name}"))?.readdress(api, host)
    }

    /// Ends the machine that a node is.
    fn halt(&self, node: &mut Node) -> Result<()> {
        let layout = node.layout();
        cgroup::remove(&layout.cgroup)?;
        teardown::unmount_below(&layout.dir)?;
        remove_interfaces(node.place())?;
        netns::delete(&layout.netns)?;
        remove_volatile(layout)?;
        node.reap();
        Ok(())
    }
}

/// Removes every interface but loopback: the namespace may live on in someone's hands.
fn remove_interfaces(place: &Place) -> Result<()> {
    let listed = place.ip(&["-o", "link", "show"])?;
    let names = listed.lines().filter_map(|line| line.split_whitespace().nth(1));
    for name in names.filter_map(|name| name.trim_end_matches(':').split('@').next()) {
        // A pair goes as one.
        let is_there = || place.ip(&["link", "show", name]).is_ok();
        if name != "lo" && is_there() {
            place.ip(&["link", "delete", name]).with_context(|| format!("remove {name}"))?;
        }
    }
    Ok(())
}

/// Removes what lies under `/run` on a real node.
fn remove_volatile(layout: &NodeLayout) -> Result<()> {
    let gone = |removed: std::io::Result<()>| match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    };
    gone(fs::remove_dir_all(layout.state_dir())).context("remove the agent's state")?;
    gone(fs::remove_dir_all(layout.bpffs())).context("remove the agent's bpffs directory")?;
    gone(fs::remove_file(layout.node_file())).context("remove the node file")
}
