//! Random Nodes one after another, with others meddling in between: the kernel's tables come to what is planned.

use std::collections::BTreeMap;
use std::env;
use std::net::IpAddr;
use std::path::Path;
use std::process::{self, Command};
use std::time::{SystemTime, UNIX_EPOCH};

use fairlead_net::netns::NamedNetns;
use fairlead_net::network::diff;
use fairlead_net::routing::{Mode, NodeNetwork, Settings, plan};
use fairlead_net::sysctl::PROC_SYS;
use fairlead_net::tables::Tables;
use ipnet::IpNet;

/// The environment's variable that gives the seed of a run to repeat.
const SEED: &str = "FAIRLEAD_SEED";
/// How many sets of Nodes.
const STEPS: u32 = 60;
/// After how many rounds nothing is left to do: what one makes takes things along that the next puts back.
const ROUNDS: u32 = 3;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn announced() -> Self {
        let seed = match env::var(SEED) {
            Ok(text) => text.parse().expect("a number"),
            Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_nanos() as u64),
        };
        println!("repeat with {SEED}={seed}");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }

    fn is(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Nodes on this one's subnet and elsewhere, which swap podCIDRs and addresses from one call to the next.
fn nodes(random: &mut Random) -> BTreeMap<String, NodeNetwork> {
    let parse = |text: String| text.parse::<IpNet>().expect("a range");
    let mut nodes = BTreeMap::new();
    let mut own = NodeNetwork { pod_cidrs: vec![parse("10.244.1.0/24".into())], ..NodeNetwork::default() };
    own.pod_cidrs.extend(random.is(80).then(|| parse("fd00:10:1::/64".into())));
    own.addresses.push([192, 0, 2, 1].into());
    own.addresses.extend(random.is(80).then(|| "2001:db8::1".parse::<IpAddr>().expect("an address")));
    nodes.insert("a".to_owned(), own);
    let mut numbers: Vec<u64> = (2..9).collect();
    for name in ["b", "c", "d", "e", "f"] {
        if !random.is(70) {
            continue;
        }
        let number = numbers.swap_remove(random.below(numbers.len() as u64) as usize);
        let host = 2 + random.below(7);
        let (v4, v6) = if random.is(50) {
            (format!("192.0.2.{host}"), format!("2001:db8::{host}"))
        } else {
            (format!("198.51.100.{host}"), format!("2001:db8:9::{host}"))
        };
        let mut network = NodeNetwork::default();
        for (cidr, address) in [(format!("10.244.{number}.0/24"), v4), (format!("fd00:10:{number}::/64"), v6)]
        {
            network.pod_cidrs.extend(random.is(90).then(|| parse(cidr)));
            network.addresses.extend(random.is(90).then(|| address.parse::<IpAddr>().expect("an address")));
        }
        nodes.insert(name.to_owned(), network);
    }
    nodes
}

/// Does what an operator might do who should not; it may find nothing to do it to.
fn meddle(random: &mut Random) {
    let number = 2 + random.below(7);
    let command = match random.below(6) {
        0 => "link del fairlead-vxlan".to_owned(),
        1 => format!("route del 10.244.{number}.0/24"),
        2 => format!("-6 route del fd00:10:{number}::/64"),
        3 => format!("route add 10.244.{number}.0/24 via 192.0.2.99 proto 250"),
        4 => format!("-6 route add fd00:10:{number}::/64 via 2001:db8::99 proto 250"),
        _ => "neigh flush dev fairlead-vxlan nud permanent".to_owned(),
    };
    Command::new("ip").args(command.split(' ')).output().expect("run ip");
}

fn ip(command: &str) {
    let output = Command::new("ip").args(command.split(' ')).output().expect("run ip");
    assert!(output.status.success(), "ip {command}: {}", String::from_utf8_lossy(&output.stderr));
}

async fn converge(random: &mut Random) {
    let tables = Tables::open(Path::new(PROC_SYS)).expect("open the tables");
    for step in 0..STEPS {
        let (nodes, here) = (nodes(random), tables.here().await.expect("read the addresses"));
        let mode = [Mode::Auto, Mode::Native, Mode::Vxlan][random.below(3) as usize];
        let planned = plan("a", &nodes, &here, &Settings { mode, vni: 7, port: 4789 });
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let actual = tables.read().await.expect("read the tables");
            for change in diff(&planned.items, &actual) {
                if let Err(error) = tables.apply(&change).await {
                    refused.push(format!("{change}: {error}"));
                }
            }
        }
        let actual = tables.read().await.expect("read the tables");
        let left: Vec<String> = diff(&planned.items, &actual).iter().map(ToString::to_string).collect();
        assert!(
            left.is_empty(),
            "step {step}, {mode:?}, {nodes:#?}: left are {left:#?}, refused {refused:#?}"
        );
        if random.is(40) {
            meddle(random);
        }
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn whatever_the_nodes_were_and_others_did_the_tables_come_to_what_is_planned() {
    let mut random = Random::announced();
    let netns = NamedNetns::create(&format!("fl-converge-{}", process::id())).expect("a namespace");
    netns
        .run(|| {
            for command in [
                "link add eth0 type veth peer name wire",
                "link set eth0 up",
                "link set wire up",
                "address add 192.0.2.1/24 dev eth0",
                "address add 2001:db8::1/64 dev eth0 nodad",
            ] {
                ip(command);
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(converge(&mut random));
        })
        .expect("enter the namespace");
}
