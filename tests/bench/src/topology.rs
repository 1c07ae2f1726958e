//! The ends and the paths between them, whoever built them.

use anyhow::{Context, Result};
use fairlead_harness::Place;

use crate::cell::{Cell, Target};
use crate::orders::Request;
use crate::worker::Worker;

/// A worker of a [`Topology`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct End(usize);

/// A way from a client to a server: a variant of every cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// Its name, which begins the names of its results.
    pub(crate) name: &'static str,
    /// The path that it is compared with: of plain kernel routing, or without policies; `None` for a baseline.
    pub(crate) direct: Option<&'static str>,
    /// The client's worker.
    pub(crate) client: End,
    /// The server's worker.
    pub(crate) server: End,
    /// What the client dials.
    pub(crate) target: Target,
}

/// Workers and the paths between them. Everything lives as long as this does.
#[derive(Debug)]
pub(crate) struct Topology {
    /// The processor of all clients and servers.
    cpu: usize,
    workers: Vec<Worker>,
    paths: Vec<Path>,
}

impl Topology {
    /// Nothing yet; clients and servers will share a processor.
    pub(crate) const fn new(cpu: usize) -> Self {
        Self { cpu, workers: Vec::new(), paths: Vec::new() }
    }

    /// Adds a worker that is no end of any path and only keeps a namespace, whose links and routes it can change.
    pub(crate) fn add_node(&mut self, name: &str) -> Result<End> {
        Ok(self.push(Worker::start(name, None)?))
    }

    /// Adds a client, in a place or in a namespace of its own. Its namespace lends out ports that are in TIME_WAIT again after a second: only so
    /// can connections be opened for long without resetting them.
    pub(crate) fn add_client(&mut self, name: &str, place: Option<&Place>) -> Result<End> {
        let mut worker = Worker::start(name, place)?;
        worker.tell(Request::Pin(self.cpu))?;
        for (path, value) in [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")] {
            worker.tell(Request::Sysctl { path: format!("net/ipv4/{path}"), value: value.into() })?;
        }
        Ok(self.push(worker))
    }

    /// Adds a server, in a place or in a namespace of its own.
    pub(crate) fn add_server(&mut self, name: &str, place: Option<&Place>) -> Result<End> {
        let mut worker = Worker::start(name, place)?;
        worker.tell(Request::Pin(self.cpu))?;
        worker.tell(Request::Serve)?;
        Ok(self.push(worker))
    }

    /// Adds a path between two of the workers, once each of the server's TCP ports can be reached by it.
    ///
    /// # Errors
    /// When one can't; the error names the path.
    pub(crate) fn add_path(&mut self, path: Path) -> Result<()> {
        for cell in [Cell::Crr, Cell::Rr1, Cell::Throughput] {
            self.worker(path.client)
                .tell(Request::Reach(path.target.of(cell)))
                .with_context(|| format!("path {}", path.name))?;
        }
        self.paths.push(path);
        Ok(())
    }

    /// The processor of all clients and servers.
    pub(crate) const fn cpu(&self) -> usize {
        self.cpu
    }

    /// The paths, in the order in which they were added.
    pub(crate) fn paths(&self) -> &[Path] {
        &self.paths
    }

    /// A worker.
    pub(crate) fn worker(&mut self, end: End) -> &mut Worker {
        &mut self.workers[end.0]
    }

    fn push(&mut self, worker: Worker) -> End {
        self.workers.push(worker);
        End(self.workers.len() - 1)
    }
}
