//! A worker's own side: a process in one network namespace, on one processor, that does as it is told.
//!
//! The benchmark starts itself again for each end of each path (`fairlead-bench worker`, with a socket as
//! standard input) and speaks to it by lines of JSON, one [`Request`] and one [`Reply`] at a time. Client
//! and server are processes, not threads, so that each has a namespace, a cgroup and a descriptor table
//! of its own, as pods have. A worker ends with its standard input, and a namespace that it made ends
//! with it: nothing stays behind, however the benchmark dies.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Order, Sample};
use crate::{cpu, crr, named, probe, rr, server, throughput, udp};

/// How long a path may take to be ready: a Service has to reach the node first.
const REACHABLE_WITHIN: Duration = Duration::from_secs(10);

/// What a worker is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Leave the benchmark's network namespace for a new one, which lasts as long as the worker.
    Unshare,
    /// Run on this processor only.
    Pin(usize),
    /// Run a batch of `ip` commands in the namespace.
    Ip(String),
    /// Run a batch of `bridge` commands there.
    Bridge(String),
    /// Write a value to a file below /proc/sys.
    Sysctl {
        /// The path below /proc/sys.
        path: String,
        /// The value.
        value: String,
    },
    /// Start the servers.
    Serve,
    /// Start the server that tells its name.
    ServeNamed(u8),
    /// Connect to the target again and again, until the server of that name answers.
    Watch {
        /// The target.
        target: SocketAddr,
        /// The name.
        server: u8,
    },
    /// Send datagrams to the target until they begin to be answered, or cease to be.
    Probe {
        /// The target.
        target: SocketAddr,
        /// Whether they are to be answered.
        answered: bool,
    },
    /// Wait until a TCP server accepts connections.
    Reach(SocketAddr),
    /// Tell the processor time used so far.
    CpuTime,
    /// Be the client of a cell.
    Measure(Order),
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Done.
    Done,
    /// To [`Request::CpuTime`].
    CpuTime(Duration),
    /// To [`Request::Watch`] and [`Request::Probe`]: when it was first so, by the monotonic clock.
    Seen(Duration),
    /// To [`Request::Measure`].
    Measured(Sample),
    /// Not done, and why.
    Failed(String),
}

/// Serves requests from standard input until it ends.
pub(crate) fn run() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("ask to end with the benchmark")?;
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut replies = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let request = serde_json::from_str(&line?)?;
        let reply = perform(request).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        let mut line = serde_json::to_string(&reply)?;
        line.push('\n');
        replies.write_all(line.as_bytes())?;
    }
    Ok(())
}

fn perform(request: Request) -> Result<Reply> {
    match request {
        Request::Unshare => unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?,
        Request::Pin(cpu) => cpu::pin(cpu).with_context(|| format!("pin to processor {cpu}"))?,
        Request::Ip(batch) => run_batch("ip", &batch)?,
        Request::Bridge(batch) => run_batch("bridge", &batch)?,
        Request::Sysctl { path, value } => {
            fs::write(format!("/proc/sys/{path}"), &value)
                .with_context(|| format!("write {value} to {path}"))?;
        }
        Request::Serve => server::start().context("start the servers")?,
        Request::ServeNamed(name) => named::serve(name).context("start the named server")?,
        Request::Watch { target, server } => {
            let seen = named::watch(target, server).with_context(|| format!("watch {target}"))?;
            return Ok(Reply::Seen(seen));
        }
        Request::Probe { target, answered } => {
            let seen = probe::until(target, answered).with_context(|| format!("probe {target}"))?;
            return Ok(Reply::Seen(seen));
        }
        Request::Reach(target) => reach(target).with_context(|| format!("connect to {target}"))?,
        Request::CpuTime => return Ok(Reply::CpuTime(cpu::own_time()?)),
        Request::Measure(order) => {
            let measure = match order.cell {
                Cell::Crr => crr::run(&order, true),
                Cell::CrrClose => crr::run(&order, false),
                Cell::Rr1 => rr::one(&order),
                Cell::Rr => rr::many(&order),
                Cell::Throughput => throughput::run(&order),
                Cell::Udp => udp::run(&order),
            };
            return Ok(Reply::Measured(measure?));
        }
    }
    Ok(Reply::Done)
}

fn reach(target: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match TcpStream::connect_timeout(&target, Duration::from_millis(500)) {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > REACHABLE_WITHIN => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Has a program of iproute2 carry out a batch of its commands.
fn run_batch(program: &str, batch: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    child.stdin.take().context("a program without standard input")?.write_all(batch.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
