//! The daemon under test, and the network around its host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use fairlead_net::attachment::Mac;
use fairlead_net::exec::{self, Wiring};
use fairlead_net::netns::Netns;
use fairlead_net::plan::{End, Plan, Step};
use fairlead_net::routes::Route;
use fairlead_net::sysctl::PROC_SYS;
use fairlead_net::tables::Tables;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::FakeApi;
use crate::host::{BINARY, Host, Pod};

/// The daemon, killed if the test fails.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts the daemon of the node "a".
    pub(crate) fn start(host: &Host, api: &FakeApi) -> Self {
        Self::start_as("a", host, api, &[])
    }

    /// Starts the daemon of the node "a" with this kubeconfig.
    pub(crate) fn start_with(host: &Host, kubeconfig: &str) -> Self {
        Self::spawn(Command::new(BINARY), "a", host, kubeconfig, &[])
    }

    /// Starts the daemon of the node "a" where the kernel's settings can't be changed.
    pub(crate) fn start_confined(host: &Host, api: &FakeApi) -> Self {
        let confine =
            r#"mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0" "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", confine, BINARY]);
        Self::spawn(command, "a", host, &api.kubeconfig(), &[])
    }

    /// Starts the daemon of a node, with further arguments.
    pub(crate) fn start_as(node: &str, host: &Host, api: &FakeApi, arguments: &[&str]) -> Self {
        Self::spawn(Command::new(BINARY), node, host, &api.kubeconfig(), arguments)
    }

    fn spawn(mut command: Command, node: &str, host: &Host, config: &str, arguments: &[&str]) -> Self {
        let dir = host.dir.path();
        let kubeconfig = dir.join("kubeconfig");
        fs::write(&kubeconfig, config).expect("write the kubeconfig");
        command.args(["node", "--hostname-override", node]);
        if !arguments.contains(&"--agent-socket") {
            command.args(["--agent-socket", ""]);
        }
        command.arg("--kubeconfig").arg(kubeconfig).arg("--cni-bin-dir").arg(dir.join("bin"));
        command.arg("--cni-conf-dir").arg(dir.join("conf")).arg("--data-dir").arg(dir.join("data"));
        command.arg("--node-file").arg(host.node_file()).args(arguments);
        let log = fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        command.stderr(Stdio::from(log));
        Self(host.netns.enter(&mut command).spawn().expect("start the daemon"))
    }

    /// Ends it as a service manager does.
    pub(crate) fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
        assert!(self.0.wait().expect("wait").success(), "the daemon ends well");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail after stop(), which has waited for the child.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Makes a veth pair `up0` between two namespaces, each end with its addresses in these subnets and, at the near end,
/// the far end as the next hop for everything else.
pub(crate) fn wire(near: &Netns, far: &Netns, name: &str, subnets: &[(&str, &str, &str)]) -> Wiring {
    let route = |destination: &str, gateway: Option<&str>| {
        let gateway = gateway.map(|gateway| gateway.parse().expect("gateway"));
        Step::Route(Route { destination: destination.parse().expect("destination"), gateway })
    };
    let address = |text: &str| Step::Address(text.parse().expect("address"));
    let (mut opening, mut steps) = (vec![Step::Up], vec![Step::Up]);
    for (subnet, here, there) in subnets {
        opening.extend([address(here), route(subnet, None)]);
        let all = if here.contains(':') { "::/0" } else { "0.0.0.0/0" };
        opening.push(route(all, Some(there)));
        steps.extend([address(there), route(subnet, None)]);
    }
    let host = End { ifname: "up0".into(), mac: Mac([2, 0, 0, 0, 0, 1]), steps: Vec::new() };
    let pod = End { ifname: name.into(), mac: Mac([2, 0, 0, 0, 0, 2]), steps };
    let plan = Plan { host, pod, opening, mtu: Some(1400) };
    near.run(|| exec::wire(&plan, far)?.open(&plan)).expect("enter").expect("wire the uplink")
}

/// Gives the host an uplink with 192.0.2.1 and 2001:db8::1, on whose subnets the other nodes are.
pub(crate) fn uplink(host: &Host, outside: &Pod) -> Wiring {
    let subnets =
        [("192.0.2.0/24", "192.0.2.1", "192.0.2.254"), ("2001:db8::/64", "2001:db8::1", "2001:db8::fe")];
    wire(&host.netns, &outside.netns, "up1", &subnets)
}

/// What the host's kernel holds for the ways to other nodes.
pub(crate) fn items(host: &Host) -> BTreeSet<String> {
    let read = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime
            .block_on(async { Tables::open(Path::new(PROC_SYS)).expect("open").read().await.expect("read") })
    };
    host.netns.run(read).expect("enter").iter().map(ToString::to_string).collect()
}

/// Makes a request of the kernel inside a namespace; `index` finds an interface there.
pub(crate) fn netlink(
    netns: &Netns,
    request: impl AsyncFnOnce(&rtnetlink::Handle, fn(&str) -> u32) -> Result<(), rtnetlink::Error> + Send,
) {
    let index = |ifname: &str| nix::net::if_::if_nametoindex(ifname).expect("an interface");
    let ask = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().expect("open");
            tokio::spawn(connection);
            request(&handle, index).await
        })
    };
    netns.run(ask).expect("enter").expect("the kernel agrees");
}

/// What the daemon has said.
pub(crate) fn log(host: &Host) -> String {
    fs::read_to_string(host.dir.path().join("log")).unwrap_or_default()
}

pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    eventually_within(Duration::from_secs(15), what, holds);
}

pub(crate) fn eventually_within(patience: Duration, what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// Waits until the host has exactly these routes to other nodes, and nothing else for them.
pub(crate) fn eventually_routes(host: &Host, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|route| format!("route {route}")).collect();
    eventually(&format!("{expected:?}"), || items(host) == expected);
}
