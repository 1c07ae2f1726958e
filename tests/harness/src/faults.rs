//! Faults of the API server, on demand: only the stand-in has them. Their documentation is `fairlead-apiserver`'s.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::probe::http;

/// The faults that a cluster's API server can be made to show.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    server: SocketAddr,
}

impl Faults {
    /// Those of the stand-in that is reached there.
    pub(crate) fn of(server: SocketAddr) -> Self {
        Self { server }
    }

    /// Ends all watches and refuses all requests, until the guard returned is dropped.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn outage(&self) -> Result<Outage> {
        self.order("POST", "outage")?;
        Ok(Outage { faults: *self, over: false })
    }

    /// Forgets the history, so that running watches end with 410 Gone and their clients list again.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn compact(&self) -> Result<()> {
        self.order("POST", "compact")
    }

    /// Ends all watches, which their clients continue where they were.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn break_watches(&self) -> Result<()> {
        self.order("POST", "break")
    }

    /// Whether each watch tells every change twice, the second time after what happened to other objects meanwhile,
    /// as a client sees that resumes from an earlier revision.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn duplicate(&self, on: bool) -> Result<()> {
        self.order(if on { "POST" } else { "DELETE" }, "duplicate")
    }

    /// How late watches tell of changes; zero is at once.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn delay(&self, by: Duration) -> Result<()> {
        self.order("POST", &format!("delay?ms={}", by.as_millis()))
    }

    /// How late watches of one kind are, by its plural name, as in `services`: their changes are told after later
    /// ones of other kinds.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn delay_kind(&self, kind: &str, by: Duration) -> Result<()> {
        self.order("POST", &format!("delay?ms={}&kind={kind}", by.as_millis()))
    }

    /// Whether the kinds of custom resources are known; when not, they are as in a cluster where nobody installed their
    /// definitions. All watches end.
    ///
    /// # Errors
    /// When the server does not do so.
    pub fn define(&self, on: bool) -> Result<()> {
        self.order(if on { "DELETE" } else { "POST" }, "undefine")
    }

    /// Lets that daemon of the nodes do no more than these ClusterRoles and Roles allow.
    ///
    /// # Errors
    /// When the server does not do so, or does not understand the roles.
    pub fn restrict(&self, daemon: &str, roles: &[Value]) -> Result<()> {
        let body = serde_json::to_string(roles)?;
        self.tell("PUT", &format!("rights?user={daemon}"), &body).map(drop)
    }

    /// What that daemon was refused since it was restricted, and what it was allowed and has not done.
    ///
    /// # Errors
    /// When it was not, or the server does not answer.
    pub fn rights(&self, daemon: &str) -> Result<Rights> {
        Ok(serde_json::from_str(&self.tell("GET", &format!("rights?user={daemon}"), "")?)?)
    }

    fn order(&self, method: &str, fault: &str) -> Result<()> {
        self.tell(method, fault, "").map(drop)
    }

    fn tell(&self, method: &str, fault: &str, body: &str) -> Result<String> {
        let answer = http(method, self.server, &format!("/-/{fault}"), body);
        let (status, body) = answer.with_context(|| format!("order the fault {fault}"))?;
        ensure!(status == 200, "order the fault {fault}: {status} {body}");
        Ok(body)
    }
}

/// How a daemon came by with what it may do.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Rights {
    /// What it was refused, as in `list pods`.
    pub refused: Vec<String>,
    /// What it was allowed and has not done.
    pub unused: Vec<String>,
}

/// An outage; dropped, it is over.
#[derive(Debug)]
pub struct Outage {
    faults: Faults,
    over: bool,
}

impl Outage {
    /// Ends the outage and says whether that worked.
    ///
    /// # Errors
    /// When the server can't be told.
    pub fn end(mut self) -> Result<()> {
        self.over = true;
        self.faults.order("DELETE", "outage")
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if !self.over
            && let Err(error) = self.faults.order("DELETE", "outage")
        {
            eprintln!("{error:#}");
        }
    }
}
