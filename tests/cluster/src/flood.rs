//! Floods of datagrams from the first moment on, and whether a single one has come through.
//!
//! A flood is sent from a thread of the test, in the namespace of a place; what arrives is counted by the kernel of the
//! place that is flooded, whether a socket takes it or not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use fairlead_harness::{Place, netns};
use fairlead_net::netns::Netns;

use crate::POD_PORT;

/// The pause after a datagram to each of the targets.
const PAUSE: Duration = Duration::from_millis(2);
/// How long to wait for a namespace that is about to be made.
const PATIENCE: Duration = Duration::from_secs(20);

/// A flood that goes on; dropped, it ends.
pub struct Flood {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<u64>>>,
}

impl Flood {
    /// Begins to send from there to [`POD_PORT`] of each of these addresses.
    pub fn from(place: &Place, targets: &[IpAddr]) -> Self {
        let netns = place.netns().clone();
        Self::begin(targets, move || Ok(netns))
    }

    /// The same from the network namespace of that name, from the moment at which it is made: before anything is
    /// in it.
    pub fn from_birth(name: &str, targets: &[IpAddr]) -> Self {
        let path = netns::path(name);
        Self::begin(targets, move || await_netns(path))
    }

    fn begin(targets: &[IpAddr], open: impl FnOnce() -> Result<Netns> + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let targets: Vec<SocketAddr> = targets.iter().map(|&ip| (ip, POD_PORT).into()).collect();
        let told = Arc::clone(&over);
        let flood = move || {
            let netns = open()?;
            netns.run(|| send(&targets, &told))?
        };
        Self { over, thread: Some(thread::spawn(flood)) }
    }

    /// Ends it; how many datagrams the system took.
    ///
    /// # Errors
    /// When it could not begin.
    pub fn end(mut self) -> Result<u64> {
        self.over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("the flood has ended")?;
        thread.join().map_err(|_| anyhow!("the flood panicked"))?
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Sends until it is over. What the system refuses, for want of a route or an address, is tried again.
fn send(targets: &[SocketAddr], over: &AtomicBool) -> Result<u64> {
    let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")?;
    let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).context("open a socket")?;
    let mut sent = 0;
    while !over.load(Ordering::Relaxed) {
        for target in targets {
            let socket = if target.is_ipv4() { &v4 } else { &v6 };
            sent += u64::from(socket.send_to(b"flood", target).is_ok());
        }
        thread::sleep(PAUSE);
    }
    Ok(sent)
}

fn await_netns(path: PathBuf) -> Result<Netns> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Netns::open(&path) {
            Ok(netns) => return Ok(netns),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_micros(200)),
        }
    }
}

/// How many datagrams have come to this place, to a socket or to none.
///
/// # Errors
/// When the kernel does not say.
pub fn datagrams(place: &Place) -> Result<u64> {
    let (v4, v6) = (place.counters("snmp")?, place.counters("snmp6")?);
    let of_v4 = ["InDatagrams", "NoPorts", "InErrors"].map(|name| v4.get(&format!("Udp: {name}")));
    let of_v6 = ["InDatagrams", "NoPorts", "InErrors"].map(|name| v6.get(&format!("Udp6{name}")));
    let all =
        of_v4.into_iter().chain(of_v6).map(|counter| counter.copied().context("a counter of datagrams"));
    all.sum()
}
