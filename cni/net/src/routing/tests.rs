use super::*;
use crate::here::LocalAddress;

fn nodes(list: &[(&str, &[&str], &[&str])]) -> BTreeMap<String, NodeNetwork> {
    let network = |cidrs: &[&str], addresses: &[&str]| NodeNetwork {
        pod_cidrs: cidrs.iter().map(|c| c.parse().expect("podCIDR")).collect(),
        addresses: addresses.iter().map(|a| a.parse().expect("address")).collect(),
    };
    list.iter().map(|(name, cidrs, addresses)| ((*name).into(), network(cidrs, addresses))).collect()
}

fn here(addresses: &[&str], mtu: u32) -> Here {
    let parse = |text: &&str| text.parse::<IpNet>().expect("address and subnet");
    let local = |subnet: IpNet| LocalAddress { address: subnet.addr(), ifname: "eth0".into(), mtu };
    Here {
        addresses: addresses.iter().map(parse).map(local).collect(),
        subnets: addresses.iter().map(parse).map(|subnet| subnet.trunc()).collect(),
    }
}

fn settings(mode: Mode) -> Settings {
    Settings { mode, vni: 7, port: 4789 }
}

/// What the node a is to hold, as text.
fn planned(mode: Mode, list: &[(&str, &[&str], &[&str])], at: &[&str]) -> (Vec<String>, Vec<String>) {
    let planned = plan("a", &nodes(list), &here(at, 1500), &settings(mode));
    let problems = planned.problems.iter().map(ToString::to_string).collect();
    (planned.items.iter().map(ToString::to_string).collect(), problems)
}

const A: (&str, &[&str], &[&str]) = ("a", &["10.244.1.0/24", "fd00:1::/64"], &["192.0.2.1", "2001:db8::1"]);
const AT: &[&str] = &["192.0.2.1/24", "2001:db8::1/64"];
const FAR: (&str, &[&str], &[&str]) =
    ("far", &["10.244.9.0/24", "fd00:9::/64"], &["198.51.100.9", "2001:db8:9::9"]);

#[test]
fn nodes_on_a_connected_subnet_go_by_their_address_of_the_same_family() {
    let near: &[(&str, &[&str], &[&str])] = &[
        A,
        ("b", &["10.244.2.0/24", "fd00:2::/64"], &["2001:db8::2", "192.0.2.2"]),
        ("c", &["10.244.3.0/24"], &["192.0.2.3"]),
    ];
    for mode in [Mode::Auto, Mode::Native] {
        let (items, problems) = planned(mode, near, AT);
        assert_eq!(
            items,
            [
                "route 10.244.2.0/24 via 192.0.2.2 src 192.0.2.1",
                "route 10.244.3.0/24 via 192.0.2.3 src 192.0.2.1",
                "route fd00:2::/64 via 2001:db8::2 src 2001:db8::1",
            ]
        );
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn a_node_elsewhere_goes_by_the_overlay_and_so_do_our_pods_packets_to_itself() {
    let (items, problems) = planned(Mode::Auto, &[A, FAR], AT);
    let (own, far) = (vxlan::mac_of("a"), vxlan::mac_of("far"));
    let hop = vxlan::next_hop_v6(far);
    let device = "dev fairlead-vxlan";
    assert_eq!(
        items,
        [
            format!("device fairlead-vxlan vni 7 port 4789 source 192.0.2.1 mac {own} mtu 1450"),
            format!("forwarding of {far} to 198.51.100.9 {device}"),
            format!("neighbour 10.244.9.0 at {far} {device}"),
            format!("neighbour {hop} at {far} {device}"),
            format!("route 10.244.9.0/24 via 10.244.9.0 {device} src 192.0.2.1"),
            format!("route fd00:9::/64 via {hop} {device} src 2001:db8::1"),
            format!("route 198.51.100.9/32 via 10.244.9.0 {device} for pods"),
            format!("route 2001:db8:9::9/128 via {hop} {device} for pods"),
            "rule for packets from 10.244.1.0/24".into(),
            "rule for packets from fd00:1::/64".into(),
        ]
    );
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn in_native_mode_what_is_not_connected_is_the_networks() {
    let (items, problems) = planned(Mode::Native, &[A, FAR], AT);
    assert!(items.is_empty() && problems.is_empty(), "{items:?} {problems:?}");
}

#[test]
fn in_vxlan_mode_neighbours_too_go_by_the_overlay() {
    let near = ("b", &["10.244.2.0/24"][..], &["192.0.2.2"][..]);
    let (items, _) = planned(Mode::Vxlan, &[A, near], AT);
    let route = "route 10.244.2.0/24 via 10.244.2.0 dev fairlead-vxlan src 192.0.2.1";
    assert!(items.iter().any(|item| item == route), "{items:?}");
    assert!(!items.iter().any(|item| item.contains("via 192.0.2.2")), "{items:?}");
}

#[test]
fn the_network_under_the_overlay_is_of_the_family_that_both_nodes_have() {
    let six = ("six", &["10.244.6.0/24"][..], &["2001:db8:6::6"][..]);
    let (items, problems) = planned(Mode::Auto, &[A, FAR, six], AT);
    let devices: Vec<&String> = items.iter().filter(|item| item.starts_with("device")).collect();
    assert!(devices[0].contains("source 192.0.2.1") && devices[1].contains("fairlead-vxlan6"), "{devices:?}");
    assert!(devices[1].ends_with("mtu 1430"), "{devices:?}");
    let route = "route 10.244.6.0/24 via 10.244.6.0 dev fairlead-vxlan6 src 192.0.2.1";
    assert!(items.iter().any(|item| item == route), "{items:?}");
    assert!(problems.is_empty(), "{problems:?}");

    let four = ("a", &["10.244.1.0/24"][..], &["192.0.2.1"][..]);
    let (items, problems) = planned(Mode::Auto, &[four, six], &["192.0.2.1/24"]);
    assert!(items.is_empty(), "{items:?}");
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("node six: no InternalIP of a family"), "{problems:?}");
}

#[test]
fn a_range_without_an_address_of_its_family_is_a_problem_only_without_an_overlay() {
    let list: &[(&str, &[&str], &[&str])] = &[A, ("b", &["10.244.2.0/24", "fd00:2::/64"], &["192.0.2.2"])];
    let (items, problems) = planned(Mode::Native, list, AT);
    assert_eq!(items, ["route 10.244.2.0/24 via 192.0.2.2 src 192.0.2.1"]);
    assert_eq!(problems, ["node b: no InternalIP of the family of podCIDR fd00:2::/64"]);
    let (items, problems) = planned(Mode::Auto, list, AT);
    let hop = vxlan::next_hop_v6(vxlan::mac_of("b"));
    let route = format!("route fd00:2::/64 via {hop} dev fairlead-vxlan src 2001:db8::1");
    assert!(items.contains(&route), "{items:?}");
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn an_overlapping_range_never_takes_a_neighbours_or_our_own_traffic() {
    let list: &[(&str, &[&str], &[&str])] = &[
        ("a", &["10.244.1.0/24"], &["192.0.2.1"]),
        ("b", &["10.244.2.0/24"], &["192.0.2.2"]),
        ("c", &["10.244.2.128/25"], &["192.0.2.3"]),
        ("d", &["10.244.0.0/16"], &["192.0.2.4"]),
    ];
    let (items, problems) = planned(Mode::Auto, list, AT);
    assert_eq!(items, ["route 10.244.2.0/24 via 192.0.2.2 src 192.0.2.1"]);
    assert_eq!(
        problems,
        [
            "node c: podCIDR 10.244.2.128/25 overlaps that of node b",
            "node d: podCIDR 10.244.0.0/16 overlaps that of node a",
        ]
    );
}

#[test]
fn the_overlay_leads_to_an_address_by_one_way_only() {
    let first = ("first", &["10.244.8.0/24", "10.244.9.0/24"][..], &["198.51.100.9"][..]);
    let second = ("second", &["10.244.7.0/24"][..], &["198.51.100.9"][..]);
    let (items, problems) = planned(Mode::Auto, &[A, first, second], AT);
    let ways: Vec<&String> = items.iter().filter(|item| item.starts_with("route 198.51.100.9/32")).collect();
    assert_eq!(ways, ["route 198.51.100.9/32 via 10.244.8.0 dev fairlead-vxlan for pods"]);
    assert_eq!(problems, ["node second: InternalIP 198.51.100.9 is that of node first"]);
}

#[test]
fn pods_get_the_uplinks_mtu_less_the_header_of_an_overlay_that_they_may_meet() {
    let mtu = |mode, list: &[(&str, &[&str], &[&str])]| {
        plan("a", &nodes(list), &here(AT, 9000), &settings(mode)).mtu
    };
    let near = ("b", &["10.244.2.0/24"][..], &["192.0.2.2"][..]);
    let six = ("six", &["10.244.6.0/24"][..], &["2001:db8:6::6"][..]);
    assert_eq!(mtu(Mode::Auto, &[A, near]), Some(9000));
    assert_eq!(mtu(Mode::Auto, &[A, near, FAR]), Some(8950));
    assert_eq!(mtu(Mode::Auto, &[A, FAR, six]), Some(8930));
    assert_eq!(mtu(Mode::Native, &[A, FAR]), Some(9000));
    assert_eq!(mtu(Mode::Vxlan, &[A]), Some(8950));
    assert_eq!(mtu(Mode::Vxlan, &[("a", &["fd00:1::/64"], &["2001:db8::1"])]), Some(8930));
    assert_eq!(mtu(Mode::Auto, &[("a", &[], &["203.0.113.1"])]), None);
}

#[test]
fn a_thousand_nodes_are_planned_in_no_time() {
    let mut all = nodes(&[A]);
    for number in 0..1000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let network = NodeNetwork {
            pod_cidrs: vec![format!("10.{}.{low}.0/24", 100 + high).parse().expect("range")],
            addresses: vec![format!("198.51.{high}.{low}").parse().expect("address")],
        };
        all.insert(format!("node-{number}"), network);
    }
    let started = std::time::Instant::now();
    let planned = plan("a", &all, &here(AT, 1500), &settings(Mode::Auto));
    assert_eq!(planned.items.len(), 1 + 4 * 1000 + 1);
    assert!(started.elapsed().as_secs() < 2, "{:?}", started.elapsed());
}
