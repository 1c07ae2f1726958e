//! A place to run things: a network namespace and a control group, as of a node, a pod or the outside client.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fairlead_net::netns::Netns;
use serde::de::DeserializeOwned;

use crate::echo::{self, EchoId, EchoWatch};
use crate::load::Load;
use crate::netns;
use crate::node::output;
use crate::process::binary;
use crate::protocol::Protocol;
use crate::reach::{Outcome, Try};
use crate::report::{Failure, Reply, Report};

const PATIENCE: Duration = Duration::from_secs(20);
/// The protocol of raw sockets that send packets with their headers.
const IPPROTO_RAW: u8 = 255;

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
        self.ask(Load::new(protocol, target))
    }

    /// One request from here, with that source address.
    ///
    /// # Errors
    /// When the client can't be started; how the request itself went is the value.
    pub fn request_from(
        &self,
        source: IpAddr,
        protocol: Protocol,
        target: SocketAddr,
    ) -> Result<Result<Reply, Failure>> {
        self.ask(Load::new(protocol, target).from_source(source))
    }

    /// One request from here, as the load says.
    ///
    /// # Errors
    /// When the client can't be started; how the request itself went is the value.
    pub fn ask(&self, load: Load) -> Result<Result<Reply, Failure>> {
        let report = self.requests(&load.times(1))?;
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

    /// Begins to try from here, all at the same time, each for that long.
    ///
    /// # Errors
    /// When the process can't be started.
    pub fn tries(&self, tries: &[Try], patience: Duration) -> Result<Trying> {
        let mut command = self.command(binary("fairlead-harness")?)?;
        command.args(["reach", "--patience-ms", &patience.as_millis().to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a process that tries")?;
        let mut stdin = child.stdin.take().context("its input")?;
        let begun = Trying(Traffic { child });
        stdin.write_all(&serde_json::to_vec(tries)?).context("tell it the tries")?;
        Ok(begun)
    }

    /// Sends an echo request with its id and `size` more bytes of data from here, and waits that long for the reply.
    ///
    /// # Errors
    /// When the namespace is gone; how the echo itself went is the value.
    pub fn echo(
        &self,
        id: EchoId,
        target: IpAddr,
        size: usize,
        patience: Duration,
    ) -> Result<io::Result<()>> {
        Ok(self.netns.run(|| echo::send(id, None, target, size, patience))?)
    }

    /// Watches whose echo requests of the family of `like` arrive here.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn watch_echoes(&self, like: IpAddr) -> Result<EchoWatch> {
        self.netns.run(|| EchoWatch::begin(like))?.context("watch for echoes")
    }

    /// What a kernel's table of this place counts, as in `snmp` or `snmp6` below `/proc/net`: by names such as
    /// `Udp: InDatagrams` or `Udp6InDatagrams`.
    ///
    /// # Errors
    /// When there is no such table.
    pub fn counters(&self, table: &str) -> Result<BTreeMap<String, u64>> {
        // Of a thread, since the namespace is one's.
        let path = format!("/proc/thread-self/net/{table}");
        let text = self.netns.run(|| fs::read_to_string(&path))?.with_context(|| format!("read {path}"))?;
        Ok(parse_counters(&text))
    }

    /// What `ip` prints here, as in `ip(&["route", "show"])`.
    ///
    /// # Errors
    /// When it fails; with what it says.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("ip");
        self.netns.enter(&mut command);
        output(command.args(arguments)).with_context(|| format!("ip {}", arguments.join(" ")))
    }

    /// Sets the MTU of an interface here; a veth pair wants the same at both ends.
    ///
    /// # Errors
    /// When there is no such interface, or the kernel refuses.
    pub fn set_mtu(&self, interface: &str, mtu: u32) -> Result<()> {
        self.ip(&["link", "set", interface, "mtu", &mtu.to_string()]).map(drop)
    }

    /// The MTU that this place has learned of the path to `address`; none if it has learned nothing.
    ///
    /// # Errors
    /// When there is no way there.
    pub fn path_mtu(&self, address: IpAddr) -> Result<Option<u32>> {
        let route = self.ip(&["route", "get", &address.to_string()])?;
        let mut words = route.split_whitespace().skip_while(|word| *word != "mtu").skip(1);
        let number = words.find(|word| *word != "lock");
        number.map(|mtu| mtu.parse().with_context(|| format!("the MTU of {route:?}"))).transpose()
    }

    /// A setting of the network below `/proc/sys/net`, as in `ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn setting(&self, name: &str) -> Result<String> {
        let text = self.netns.run(|| fs::read_to_string(setting_file(name)))?;
        Ok(text.with_context(|| format!("read net/{name}"))?.trim_end().to_owned())
    }

    /// Changes such a setting.
    ///
    /// # Errors
    /// When there is none of that name, or the kernel refuses the value.
    pub fn set_setting(&self, name: &str, value: &str) -> Result<()> {
        let written = self.netns.run(|| fs::write(setting_file(name), value))?;
        written.with_context(|| format!("write {value} to net/{name}"))
    }

    /// Sends a whole IP packet ([`crate::packet`] makes some), from whatever address it names. The kernel routes it,
    /// and computes the checksum of an IPv4 header, but nothing else.
    ///
    /// # Errors
    /// When it is no IP packet, or there is no way to its destination.
    pub fn inject(&self, packet: &[u8]) -> Result<()> {
        let destination: IpAddr = match packet.first().map(|first| first >> 4) {
            Some(4) => <[u8; 4]>::try_from(packet.get(16..20).context("a short packet")?)?.into(),
            Some(6) => <[u8; 16]>::try_from(packet.get(24..40).context("a short packet")?)?.into(),
            _ => bail!("neither IPv4 nor IPv6"),
        };
        let sent = self.netns.run(|| {
            let socket = netns::raw_socket(IPPROTO_RAW, destination)?.into_unconnected();
            socket.send_to(packet, (destination, 0))
        })?;
        sent.map(drop).with_context(|| format!("inject a packet to {destination}"))
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

/// Reads a table of counters: one a line with its name, or a line of names above each line of numbers.
fn parse_counters(text: &str) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let mut names: Option<Vec<&str>> = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match (names.take(), words.as_slice()) {
            (None, [name, number]) => {
                counters.extend(number.parse().ok().map(|number| ((*name).to_owned(), number)));
            }
            (None, _) => names = Some(words),
            (Some(names), [group, numbers @ ..]) => {
                let named = names.iter().skip(1).zip(numbers);
                counters
                    .extend(named.filter_map(|(name, number)| {
                        Some((format!("{group} {name}"), number.parse().ok()?))
                    }));
            }
            (Some(_), []) => {}
        }
    }
    counters
}

fn setting_file(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
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

    fn report<T: DeserializeOwned>(mut self) -> Result<T> {
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

/// Tries under way.
#[derive(Debug)]
pub struct Trying(Traffic);

impl Trying {
    /// Waits for the outcomes, in the order of the tries.
    ///
    /// # Errors
    /// When the process does not report.
    pub fn outcomes(self) -> Result<Vec<Outcome>> {
        self.0.report()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // After the report both are without effect: the client has been waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_tables_of_counters_are_read() {
        let of_ipv4 = "Udp: InDatagrams NoPorts\nUdp: 3 4\nUdpLite: InDatagrams\nUdpLite: 0\n";
        let counters = parse_counters(of_ipv4);
        assert_eq!((counters["Udp: InDatagrams"], counters["Udp: NoPorts"]), (3, 4));
        let of_ipv6 = "Udp6InDatagrams                 \t7\nUdp6NoPorts\t8\n";
        assert_eq!(parse_counters(of_ipv6)["Udp6NoPorts"], 8);
    }
}
