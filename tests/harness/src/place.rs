//! A place to run things: a network namespace and a control group, as of a node, a pod or the outside client.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_net::netns::Netns;

use crate::netns;
use crate::probe::{Failure, Load, Reply, Report};
use crate::process::binary;
use crate::serve::Protocol;

const PATIENCE: Duration = Duration::from_secs(20);

/// Where a process runs.
#[derive(Clone, Debug)]
pub struct Place {
    netns: Netns,
    cgroup: PathBuf,
}

impl Place {
    /// The place made of the namespace of that name and a control group.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn open(netns: &str, cgroup: &Path) -> Result<Self> {
        Ok(Self::new(Netns::open(netns::path(netns))?, cgroup))
    }

    /// The place made of a namespace and a control group.
    pub fn new(netns: Netns, cgroup: &Path) -> Self {
        Self { netns, cgroup: cgroup.to_owned() }
    }

    /// The place's network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A command whose process will start in this place.
    ///
    /// # Errors
    /// When the control group is gone.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = Command::new(program.as_ref());
        netns::join(&mut command, &self.cgroup)?;
        self.netns.enter(&mut command);
        Ok(command)
    }

    /// One request from here.
    ///
    /// # Errors
    /// When the client can't be started; how the request itself went is the value.
    pub fn request(&self, protocol: Protocol, target: SocketAddr) -> Result<Result<Reply, Failure>> {
        let report = self.requests(&Load::new(protocol, target).times(1))?;
        report.outcomes.into_iter().next().context("the client reported nothing")
    }

    /// Asks again and again until someone answers, as after a change that every node has yet to hear of.
    ///
    /// # Errors
    /// When nobody answers within twenty seconds; with how the last request failed.
    pub fn request_until_answered(&self, protocol: Protocol, target: SocketAddr) -> Result<Reply> {
        let load = Load::new(protocol, target).times(1).giving_up_after(Duration::from_millis(500));
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.requests(&load)?.outcomes.pop() {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(failure)) if Instant::now() > deadline => bail!("{protocol} to {target}: {failure}"),
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A counted number of requests from here.
    ///
    /// # Errors
    /// When the client can't be started or does not report.
    pub fn requests(&self, load: &Load) -> Result<Report> {
        self.traffic(load)?.report()
    }

    /// Starts a client here that goes on until it is [stopped](Traffic::stop).
    ///
    /// # Errors
    /// When the client can't be started.
    pub fn traffic(&self, load: &Load) -> Result<Traffic> {
        let mut command = self.command(binary("fairlead-harness")?)?;
        command.args(load.arguments()).stdin(Stdio::piped()).stdout(Stdio::piped());
        Ok(Traffic { child: command.spawn().context("start a client")? })
    }
}

/// A client at work; dropped without [`stop`](Self::stop), it is killed.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
}

impl Traffic {
    /// Ends the traffic and tells how it went.
    ///
    /// # Errors
    /// When the client does not report.
    pub fn stop(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        self.report()
    }

    fn report(mut self) -> Result<Report> {
        let mut text = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut text).context("read a client's report")?;
        }
        let status = self.child.wait().context("wait for a client")?;
        if !status.success() {
            bail!("a client ended with {status}");
        }
        serde_json::from_str(&text).with_context(|| format!("understand the client's report {text:?}"))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // After the report both are without effect: the client has been waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
