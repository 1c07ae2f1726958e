//! Whether a pod's pair still is what its plan makes: every step of the plan is looked for in the kernel.
//!
//! What others have added (a chained plugin, the operator) is not looked at; neither is what they may rightly change:
//! an MTU that has become smaller.

use crate::exec::WireError;
use crate::netlink::Kernel;
use crate::netns::Netns;
use crate::observe::{Observed, observe};
use crate::plan::{End, Plan, Step};

/// Compares `plan` with the calling thread's namespace and `pod`. Each difference is a sentence that names the
/// interface and the object; none if all is as planned. Also returns the host side's interface index, if it is there.
///
/// # Errors
/// When the pod can't be entered, or the kernel refuses to tell.
pub fn check(plan: &Plan, pod: &Netns) -> Result<(Vec<String>, Option<u32>), WireError> {
    let host_steps: Vec<Step> = plan.host.steps.iter().chain(&plan.opening).cloned().collect();
    let look = |end: &End, steps: &[Step]| {
        let kernel = Kernel::open().map_err(WireError::step("open rtnetlink"))?;
        observe(&kernel, &end.ifname, steps).map_err(WireError::step(format!("read {}", end.ifname)))
    };
    let outside = look(&plan.host, &host_steps)?;
    let inside = pod.run(|| look(&plan.pod, &plan.pod.steps))??;
    let mut found = differences(&plan.host, &host_steps, plan.mtu, "on the host", outside.as_ref());
    found.extend(differences(&plan.pod, &plan.pod.steps, plan.mtu, "in the pod", inside.as_ref()));
    if let (Some(outside), Some(inside)) = (&outside, &inside)
        && (outside.peer, inside.peer) != (Some(inside.index), Some(outside.index))
    {
        let (host, pod) = (&plan.host.ifname, &plan.pod.ifname);
        found.push(format!("{host} on the host and {pod} in the pod are not one veth pair"));
    }
    Ok((found, outside.map(|seen| seen.index)))
}

/// What of an end's steps is not in what was seen of it.
fn differences(
    end: &End,
    steps: &[Step],
    mtu: Option<u32>,
    place: &str,
    seen: Option<&Observed>,
) -> Vec<String> {
    let ifname = &end.ifname;
    let Some(seen) = seen else {
        return vec![format!("{ifname} is not {place}")];
    };
    let mut found: Vec<String> = steps.iter().filter_map(|step| difference(step, seen)).collect();
    if seen.mac != Some(end.mac) {
        let actual = seen.mac.map_or("none".into(), |mac| mac.to_string());
        found.push(format!("its Ethernet address is {actual}, not {}", end.mac));
    }
    if let (Some(planned), Some(actual)) = (mtu, seen.mtu)
        && actual > planned
    {
        found.push(format!("its MTU is {actual}, more than {planned}"));
    }
    found.iter().map(|difference| format!("{ifname} {place}: {difference}")).collect()
}

fn difference(step: &Step, seen: &Observed) -> Option<String> {
    match step {
        Step::Sysctl { family, key, value } => {
            let actual = seen.sysctls.get(&(*family, *key)).map_or("missing", String::as_str);
            (actual != *value).then(|| format!("{family} {key} is {actual}, not {value}"))
        }
        Step::Alias(alias) => {
            let actual = seen.alias.as_deref().unwrap_or_default();
            (actual != alias).then(|| format!("its alias is {actual:?}, not {alias:?}"))
        }
        Step::Limit(limit) => {
            let planned = limit.token_bucket();
            match seen.limit {
                None => Some(format!("nothing limits what it sends to {planned}")),
                Some(actual) => {
                    (actual != planned).then(|| format!("it is limited to {actual}, not {planned}"))
                }
            }
        }
        Step::Up => (!seen.is_up).then(|| "it is down".into()),
        Step::Address(address) => {
            let missing = !seen.addresses.contains(&(*address).into());
            missing.then(|| format!("address {address} is missing"))
        }
        Step::Neighbour { address, mac } => match seen.neighbours.get(address) {
            None => Some(format!("neighbour {address} is missing")),
            Some(actual) => (actual != mac).then(|| format!("neighbour {address} is at {actual}, not {mac}")),
        },
        Step::Route(route) => (!seen.routes.contains(route)).then(|| format!("route {route} is missing")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::attachment::Attachment;
    use crate::capabilities::Bandwidth;
    use crate::plan::Order;
    use crate::shaping::Limit;

    fn plan() -> Plan {
        let addresses: [IpAddr; 2] = ["10.244.1.2", "fd00::2"].map(|text| text.parse().expect("address"));
        let limit = Limit { rate: 8_000_000, burst: 80_000 };
        Plan::new(&Order {
            network: "pods",
            attachment: &Attachment::new("pod", "eth0").expect("valid"),
            addresses: &addresses,
            mtu: Some(1450),
            mac: None,
            bandwidth: Bandwidth { ingress: None, egress: Some(limit) },
        })
    }

    /// The pod's end as the plan makes it.
    fn made(plan: &Plan) -> Observed {
        let mut seen = Observed { mac: Some(plan.pod.mac), mtu: plan.mtu, ..Observed::default() };
        for step in &plan.pod.steps {
            match step {
                Step::Sysctl { family, key, value } => {
                    seen.sysctls.insert((family, key), (*value).into());
                }
                Step::Alias(alias) => seen.alias = Some(alias.clone()),
                Step::Limit(limit) => seen.limit = Some(limit.token_bucket()),
                Step::Up => seen.is_up = true,
                Step::Address(address) => {
                    seen.addresses.insert((*address).into());
                }
                Step::Neighbour { address, mac } => {
                    seen.neighbours.insert(*address, *mac);
                }
                Step::Route(route) => {
                    seen.routes.insert(route.clone());
                }
            }
        }
        seen
    }

    fn compare(change: impl FnOnce(&mut Observed)) -> Vec<String> {
        let plan = plan();
        let mut seen = made(&plan);
        change(&mut seen);
        differences(&plan.pod, &plan.pod.steps, plan.mtu, "in the pod", Some(&seen))
    }

    #[test]
    fn what_is_as_planned_has_no_difference_whatever_others_have_added() {
        assert_eq!(compare(|_| {}), Vec::<String>::new());
        let added = compare(|seen| {
            seen.addresses.insert("192.0.2.1/24".parse().expect("address"));
            seen.alias = Some("somebody's".into());
            seen.mtu = Some(1400);
        });
        assert_eq!(added, Vec::<String>::new());
    }

    #[test]
    fn everything_that_a_plan_makes_is_missed_by_name() {
        let v6: IpAddr = "fd00::2".parse().expect("address");
        let hop: IpAddr = "fe80::1".parse().expect("address");
        assert_eq!(compare(|seen| seen.is_up = false), ["eth0 in the pod: it is down"]);
        assert_eq!(
            compare(|seen| seen.mtu = Some(9000)),
            ["eth0 in the pod: its MTU is 9000, more than 1450"]
        );
        assert_eq!(
            compare(|seen| {
                seen.addresses.remove(&v6.into());
            }),
            ["eth0 in the pod: address fd00::2 is missing"]
        );
        assert_eq!(
            compare(|seen| {
                seen.neighbours.remove(&hop);
            }),
            ["eth0 in the pod: neighbour fe80::1 is missing"]
        );
        assert_eq!(
            compare(|seen| seen.routes.retain(|route| route.destination.prefix_len() > 0)),
            [
                "eth0 in the pod: route 0.0.0.0/0 via 169.254.1.1 is missing",
                "eth0 in the pod: route ::/0 via fe80::1 is missing"
            ]
        );
        assert_eq!(
            compare(|seen| {
                seen.sysctls.insert(("ipv6", "accept_ra"), "1".into());
            }),
            ["eth0 in the pod: ipv6 accept_ra is 1, not 0"]
        );
        assert_eq!(
            compare(|seen| seen.limit = None),
            ["eth0 in the pod: nothing limits what it sends to 8000000 bit/s and 35000 bytes"]
        );
    }

    #[test]
    fn an_interface_that_is_gone_is_one_difference() {
        let plan = plan();
        let found = differences(&plan.pod, &plan.pod.steps, plan.mtu, "in the pod", None);
        assert_eq!(found, ["eth0 is not in the pod"]);
    }
}
