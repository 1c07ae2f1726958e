//! The benchmark's handle on a worker process (see [`crate::orders`] for the other side).

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::Place;

use crate::cell::{Order, Sample};
use crate::orders::{Reply, Request};

/// Longest answer to anything but a measurement, and what a measurement may take beyond its own time.
const PATIENCE: Duration = Duration::from_secs(15);

/// A worker process; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    name: String,
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Worker {
    /// Starts a worker in a pod's or the outside client's place, or else in a network namespace of its own;
    /// `name` is for messages.
    ///
    /// # Errors
    /// When the process cannot be started there.
    pub(crate) fn start(name: &str, place: Option<&Place>) -> Result<Self> {
        let (stream, theirs) = UnixStream::pair()?;
        let program = std::env::current_exe()?;
        let mut command = match place {
            Some(place) => place.command(program)?,
            None => Command::new(program),
        };
        let child = command
            .arg("worker")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .with_context(|| format!("start worker {name}"))?;
        // The command still holds the worker's end of the socket: without it, the end of the worker shows.
        drop(command);
        let mut worker = Self { name: name.to_owned(), child, stream: BufReader::new(stream) };
        if place.is_none() {
            worker.tell(Request::Unshare)?;
        }
        Ok(worker)
    }

    /// The process's id, by which others find its namespace.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something that has no result.
    ///
    /// # Errors
    /// When the worker could not do it; the error names the worker.
    pub(crate) fn tell(&mut self, request: Request) -> Result<()> {
        match self.ask(&request, PATIENCE)? {
            Reply::Done => Ok(()),
            other => bail!("worker {} answered {request:?} by {other:?}", self.name),
        }
    }

    /// Processor time that it has used so far.
    ///
    /// # Errors
    /// When the worker is gone.
    pub(crate) fn cpu_time(&mut self) -> Result<Duration> {
        match self.ask(&Request::CpuTime, PATIENCE)? {
            Reply::CpuTime(time) => Ok(time),
            other => bail!("worker {} answered {other:?} when asked for its processor time", self.name),
        }
    }

    /// Has it be the client of a cell.
    ///
    /// # Errors
    /// When the target cannot be reached, stops answering, or the worker is gone.
    pub(crate) fn measure(&mut self, order: Order) -> Result<Sample> {
        match self.ask(&Request::Measure(order), PATIENCE + order.warm_up + order.measured)? {
            Reply::Measured(sample) => Ok(sample),
            other => bail!("worker {} answered {other:?} to a measurement", self.name),
        }
    }

    /// Has it connect again and again, until the server of that name answers: [`Worker::seen`] tells when.
    ///
    /// # Errors
    /// When the worker is gone.
    pub(crate) fn watch(&mut self, target: SocketAddr, server: u8) -> Result<()> {
        self.send(&Request::Watch { target, server }, PATIENCE)
    }

    /// Has it send datagrams until they begin to be answered, or cease to be: [`Worker::seen`] tells when.
    ///
    /// # Errors
    /// When the worker is gone.
    pub(crate) fn probe(&mut self, target: SocketAddr, answered: bool) -> Result<()> {
        self.send(&Request::Probe { target, answered }, PATIENCE)
    }

    /// When that was first so that [`Worker::watch`] or [`Worker::probe`] waits for, by the monotonic clock.
    ///
    /// # Errors
    /// When it was not so within some seconds, or a connection failed.
    pub(crate) fn seen(&mut self) -> Result<Duration> {
        match self.receive("a watch or probe")? {
            Reply::Seen(at) => Ok(at),
            other => bail!("worker {} answered {other:?} to a watch or probe", self.name),
        }
    }

    fn ask(&mut self, request: &Request, patience: Duration) -> Result<Reply> {
        self.send(request, patience)?;
        self.receive(&format!("{request:?}"))
    }

    fn send(&mut self, request: &Request, patience: Duration) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(line.as_bytes()).with_context(|| format!("write to worker {}", self.name))
    }

    fn receive(&mut self, request: &str) -> Result<Reply> {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .with_context(|| format!("no answer from worker {} to {request}", self.name))?;
        ensure!(!line.is_empty(), "worker {} ended before it answered {request}", self.name);
        match serde_json::from_str(&line)? {
            Reply::Failed(why) => bail!("worker {}: {why}", self.name),
            reply => Ok(reply),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It holds nothing that needs an orderly end, and may be in the middle of a blocking call.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
