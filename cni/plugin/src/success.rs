//! What ADD answers, in the format of each version of the specification.

use std::net::IpAddr;

use fairlead_net::config::Version;
use fairlead_net::plan::{End, Plan, default_of, next_hop};
use ipnet::IpNet;
use serde_json::{Value, json};

/// A pod as ADD has made it.
pub(crate) struct Attached<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) addresses: &'a [IpAddr],
    /// CNI_NETNS.
    pub(crate) sandbox: &'a str,
}

/// Where the pod's interface stands in `interfaces`.
const POD_INTERFACE: usize = 1;

impl Attached<'_> {
    pub(crate) fn to_json(&self, version: Version) -> Value {
        let ips: Vec<Value> = self.addresses.iter().map(|address| ip(*address, version)).collect();
        let routes: Vec<Value> = self
            .addresses
            .iter()
            .map(|address| json!({ "dst": default_of(*address), "gw": next_hop(*address) }))
            .collect();
        json!({
            "cniVersion": version.as_str(),
            "interfaces": [
                self.interface(&self.plan.host, None, version),
                self.interface(&self.plan.pod, Some(self.sandbox), version),
            ],
            "ips": ips,
            "routes": routes,
            "dns": {},
        })
    }

    fn interface(&self, end: &End, sandbox: Option<&str>, version: Version) -> Value {
        let mut interface = json!({ "name": end.ifname, "mac": end.mac.to_string() });
        if let Some(sandbox) = sandbox {
            interface["sandbox"] = sandbox.into();
        }
        if let Some(mtu) = self.plan.mtu
            && version >= Version::V1_1_0
        {
            interface["mtu"] = mtu.into();
        }
        interface
    }
}

fn ip(address: IpAddr, version: Version) -> Value {
    let mut ip = json!({ "address": IpNet::from(address), "interface": POD_INTERFACE });
    if version < Version::V1_0_0 {
        ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
    }
    ip
}

#[cfg(test)]
mod tests {
    use fairlead_net::attachment::Attachment;
    use fairlead_net::capabilities::Bandwidth;
    use fairlead_net::plan::Order;

    use super::*;

    fn result(version: Version) -> Value {
        let addresses = ["10.244.1.2".parse().expect("v4"), "fd00::2".parse().expect("v6")];
        let attachment = Attachment::new("pod", "eth0").expect("valid");
        let plan = Plan::new(&Order {
            network: "pods",
            attachment: &attachment,
            addresses: &addresses,
            mtu: Some(1450),
            mac: None,
            bandwidth: Bandwidth::default(),
        });
        Attached { plan: &plan, addresses: &addresses, sandbox: "/run/netns/pod" }.to_json(version)
    }

    #[test]
    fn addresses_carry_their_version_only_before_1_0_0() {
        let old = result(Version::V0_4_0);
        assert_eq!(old["ips"][0], json!({"version": "4", "address": "10.244.1.2/32", "interface": 1}));
        assert_eq!(old["ips"][1], json!({"version": "6", "address": "fd00::2/128", "interface": 1}));
        let new = result(Version::V1_0_0);
        assert_eq!(new["ips"][0], json!({"address": "10.244.1.2/32", "interface": 1}));
    }

    #[test]
    fn interfaces_carry_their_mtu_from_1_1_0_on() {
        assert_eq!(result(Version::V1_0_0)["interfaces"][1].get("mtu"), None);
        assert_eq!(result(Version::V1_1_0)["interfaces"][1]["mtu"], 1450);
    }

    #[test]
    fn only_the_pods_interface_is_in_the_sandbox_and_the_addresses_are_on_it() {
        let result = result(Version::LATEST);
        assert_eq!(result["interfaces"][0].get("sandbox"), None);
        assert_eq!(result["interfaces"][1]["sandbox"], "/run/netns/pod");
        assert_eq!(result["interfaces"][1]["name"], "eth0");
        assert_eq!(result["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
        assert_eq!(result["routes"][1], json!({"dst": "::/0", "gw": "fe80::1"}));
    }
}
