//! What the plugins before this one in a chain have answered: `prevResult`, checked and kept.
//!
//! ADD passes it on with its own entries behind it, so that an entry's place in `interfaces` stays what the others'
//! `ips` say. CHECK gets what the whole chain answered, and finds its own entries in it by name and namespace.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

use crate::config::{ConfigError, NetConf, Version};
use crate::plan::{End, Plan};

/// A result of the chain so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrevResult {
    /// As it came, but in the format of the configuration's version.
    fields: Map<String, Value>,
}

impl PrevResult {
    /// The result in `conf`; None if it has none.
    ///
    /// # Errors
    /// When it is no result of a version that is spoken; the error has the path of the field.
    pub fn parse(conf: &NetConf) -> Result<Option<Self>, ConfigError> {
        let Some(value) = conf.field("prevResult") else { return Ok(None) };
        let mut fields = value.as_object().cloned().ok_or_else(|| wrong("", "is no object"))?;
        if let Some(version) = fields.get("cniVersion")
            && !Version::ALL.iter().any(|known| version == known.as_str())
        {
            let known = Version::ALL.map(Version::as_str).join(", ");
            return Err(wrong(".cniVersion", format!("{version} is none of {known}")));
        }
        for list in ["interfaces", "ips", "routes"] {
            match fields.get(list) {
                None => {}
                Some(Value::Null) => drop(fields.remove(list)),
                Some(Value::Array(entries)) => {
                    if let Some(n) = entries.iter().position(|entry| !entry.is_object()) {
                        return Err(wrong(format!(".{list}[{n}]"), "is no object"));
                    }
                }
                Some(_) => return Err(wrong(format!(".{list}"), "is no list")),
            }
        }
        let mut result = Self { fields };
        result.check()?;
        result.adapt(conf.version);
        Ok(Some(result))
    }

    fn check(&self) -> Result<(), ConfigError> {
        let interfaces = self.list("interfaces");
        for (n, interface) in interfaces.iter().enumerate() {
            if !interface["name"].is_string() {
                return Err(wrong(format!(".interfaces[{n}].name"), "is no text"));
            }
        }
        for (n, ip) in self.list("ips").iter().enumerate() {
            if ip["address"].as_str().and_then(|text| text.parse::<IpNet>().ok()).is_none() {
                let problem = format!("{} is no address with its prefix", ip["address"]);
                return Err(wrong(format!(".ips[{n}].address"), problem));
            }
            let at = ip.get("interface").filter(|at| !at.is_null());
            let points = |at: &Value| at.as_u64().is_some_and(|at| at < interfaces.len() as u64);
            if let Some(at) = at.filter(|at| !points(at)) {
                let problem = format!("{at} is no place in a list of {} interfaces", interfaces.len());
                return Err(wrong(format!(".ips[{n}].interface"), problem));
            }
        }
        for (n, route) in self.list("routes").iter().enumerate() {
            if route["dst"].as_str().and_then(|text| text.parse::<IpNet>().ok()).is_none() {
                return Err(wrong(format!(".routes[{n}].dst"), format!("{} is no range", route["dst"])));
            }
        }
        Ok(())
    }

    /// Before 1.0.0 each address carries its family, since then none may.
    fn adapt(&mut self, version: Version) {
        for ip in self.fields.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            let family =
                if ip["address"].as_str().is_some_and(|text| text.contains(':')) { "6" } else { "4" };
            if let Some(ip) = ip.as_object_mut() {
                ip.remove("version");
                if version < Version::V1_0_0 {
                    ip.insert("version".into(), family.into());
                }
            }
        }
    }

    /// The result with `own`'s interfaces, addresses and routes behind what is there, in `version`'s name.
    #[must_use]
    pub fn with(mut self, own: Value, version: Version) -> Value {
        let before = self.list("interfaces").len();
        for list in ["interfaces", "ips", "routes"] {
            let mut entries = own[list].as_array().cloned().unwrap_or_default();
            for entry in entries.iter_mut().filter(|_| list == "ips") {
                if let Some(at) = entry["interface"].as_u64() {
                    entry["interface"] = json!(before as u64 + at);
                }
            }
            if let Value::Array(all) = self.fields.entry(list).or_insert_with(|| json!([])) {
                all.append(&mut entries);
            }
        }
        self.fields.entry("dns").or_insert_with(|| own["dns"].clone());
        self.fields.insert("cniVersion".into(), version.as_str().into());
        Value::Object(self.fields)
    }

    /// What of the attachment that `plan` makes, with `addresses` in the namespace at `sandbox`, the result does not
    /// say, each as a sentence.
    #[must_use]
    pub fn differences(&self, plan: &Plan, addresses: &[IpAddr], sandbox: &str) -> Vec<String> {
        let mut found = Vec::new();
        let find = |end: &End, sandbox: &str| {
            let is_it = |interface: &Value| {
                interface["name"] == end.ifname.as_str()
                    && interface["sandbox"].as_str().unwrap_or_default() == sandbox
            };
            self.list("interfaces").iter().position(is_it)
        };
        let mut look = |end: &End, sandbox: &str, place: &str| {
            let at = find(end, sandbox);
            let Some(at) = at else {
                found.push(format!("prevResult.interfaces: {} {place} is missing", end.ifname));
                return None;
            };
            let said = &self.list("interfaces")[at];
            let mac = said["mac"].as_str().unwrap_or_default();
            if !mac.is_empty() && !mac.eq_ignore_ascii_case(&end.mac.to_string()) {
                let problem = format!("{} {place} has {mac}, not {}", end.ifname, end.mac);
                found.push(format!("prevResult.interfaces[{at}].mac: {problem}"));
            }
            Some(at)
        };
        look(&plan.host, "", "on the host");
        if let Some(at) = look(&plan.pod, sandbox, "in the pod") {
            let said: BTreeSet<IpAddr> = self
                .list("ips")
                .iter()
                .filter(|ip| ip["interface"].as_u64() == Some(at as u64))
                .filter_map(|ip| ip["address"].as_str()?.parse::<IpNet>().ok())
                .map(|net| net.addr())
                .collect();
            let recorded: BTreeSet<IpAddr> = addresses.iter().copied().collect();
            found.extend(recorded.difference(&said).map(|a| format!("prevResult.ips: {a} is missing")));
            found.extend(said.difference(&recorded).map(|a| format!("prevResult.ips: {a} is not on record")));
        }
        found
    }

    fn list(&self, name: &str) -> &[Value] {
        self.fields.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

fn wrong(path: impl AsRef<str>, problem: impl Into<String>) -> ConfigError {
    ConfigError::field(format!("prevResult{}", path.as_ref()), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(version: &str, previous: &Value) -> Result<Option<PrevResult>, String> {
        let conf =
            json!({"cniVersion": version, "name": "a", "type": "fairlead-cni", "prevResult": previous});
        let conf = NetConf::parse(conf.to_string().as_bytes()).expect("a configuration");
        PrevResult::parse(&conf).map_err(|error| error.to_string())
    }

    fn own() -> Value {
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "flx"}, {"name": "eth0", "sandbox": "/run/netns/pod"}],
            "ips": [{"address": "10.0.0.1/32", "interface": 1}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        })
    }

    #[test]
    fn what_came_before_is_kept_and_ours_comes_after_it_with_its_places_moved() {
        let previous = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net0", "sandbox": "/run/netns/pod", "mac": "02:00:00:00:00:01"}],
            "ips": [{"address": "192.0.2.9/24", "interface": 0, "gateway": "192.0.2.1"}],
            "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "another": {"plugin's": "field"},
        });
        let whole = parse("1.1.0", &previous).expect("valid").expect("a result").with(own(), Version::V1_1_0);
        assert_eq!(whole["interfaces"][0], previous["interfaces"][0]);
        assert_eq!(whole["interfaces"][2]["name"], "eth0");
        assert_eq!(whole["ips"][0], previous["ips"][0]);
        assert_eq!(whole["ips"][1], json!({"address": "10.0.0.1/32", "interface": 2}));
        assert_eq!(whole["routes"].as_array().expect("routes").len(), 2);
        assert_eq!(whole["dns"], previous["dns"]);
        assert_eq!(whole["another"], previous["another"]);
    }

    #[test]
    fn a_result_that_says_nothing_leaves_ours_as_it_is() {
        for previous in [json!({}), json!({"ips": null, "cniVersion": "0.4.0"})] {
            let whole = parse("1.1.0", &previous).expect("valid").expect("a result");
            assert_eq!(whole.with(own(), Version::V1_1_0), own());
        }
        assert_eq!(parse("1.1.0", &Value::Null), Ok(None));
    }

    #[test]
    fn addresses_carry_their_family_before_1_0_0_only() {
        let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::9/64"}]});
        let newer = json!({"cniVersion": "1.0.0", "ips": [{"address": "fd00::9/64"}]});
        for previous in [old, newer] {
            let result = |version: &str| parse(version, &previous).expect("valid").expect("a result");
            assert_eq!(result("0.4.0").list("ips")[0]["version"], "6");
            assert_eq!(result("1.0.0").list("ips")[0].get("version"), None);
        }
    }

    #[test]
    fn a_result_that_makes_no_sense_is_named_by_its_path() {
        for (bad, expected) in [
            (json!([]), "prevResult: is no object"),
            (
                json!({"cniVersion": "0.2.0"}),
                "prevResult.cniVersion: \"0.2.0\" is none of 0.4.0, 1.0.0, 1.1.0",
            ),
            (json!({"interfaces": {}}), "prevResult.interfaces: is no list"),
            (json!({"interfaces": ["eth0"]}), "prevResult.interfaces[0]: is no object"),
            (json!({"interfaces": [{"mac": "x"}]}), "prevResult.interfaces[0].name: is no text"),
            (
                json!({"ips": [{"address": "10.0.0.1"}]}),
                "prevResult.ips[0].address: \"10.0.0.1\" is no address with its prefix",
            ),
            (
                json!({"ips": [{"address": "10.0.0.1/24", "interface": 0}]}),
                "prevResult.ips[0].interface: 0 is no place in a list of 0 interfaces",
            ),
            (json!({"routes": [{"gw": "10.0.0.1"}]}), "prevResult.routes[0].dst: null is no range"),
        ] {
            assert_eq!(parse("1.0.0", &bad).expect_err("refused"), expected);
        }
    }
}
