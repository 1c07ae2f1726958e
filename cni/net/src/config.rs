//! The network configuration that the runtime passes on stdin, and the node file beside it.
//!
//! Parsed field by field, so that an error names the field. Fields that are not ours are ignored, as the CNI
//! specification asks (runtimes and chained plugins add their own).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::agent::DEFAULT_SOCKET;
use crate::attachment::{Attachment, is_identifier};

/// The plugin's name, in configurations and as a file.
pub const PLUGIN: &str = "fairlead-cni";

/// Where the node file is unless told otherwise.
pub const DEFAULT_NODE_FILE: &str = "/run/fairlead/node.json";

/// Where addresses in use are recorded unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/fairlead";

/// The smallest MTU that can carry IPv6 (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;

/// The largest packet that IP itself allows.
const MTU_MAX: u32 = 65_535;

/// A version of the CNI specification that this plugin speaks, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.4.0: results carry each address's version.
    V0_4_0,
    /// 1.0.0: results without it.
    V1_0_0,
    /// 1.1.0: interfaces with their MTU; GC and STATUS.
    V1_1_0,
}

impl Version {
    /// Every version spoken.
    pub const ALL: [Self; 3] = [Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];

    /// The newest version spoken.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written in `cniVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not a JSON object.
    #[error("decode the network configuration: {0}")]
    NotJson(serde_json::Error),
    /// Its `cniVersion` is none of [`Version::ALL`].
    #[error("cniVersion {0:?} is not supported: use one of 0.4.0, 1.0.0, 1.1.0")]
    Version(String),
    /// A field is missing or has a value that makes no sense.
    #[error("{field}: {problem}")]
    Field {
        /// The field's name, or its path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    /// A field that is missing or makes no sense.
    pub fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// One network's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// The specification's version that the runtime speaks.
    pub version: Version,
    /// The network's name: addresses are kept per network.
    pub name: String,
    /// The node's podCIDRs and MTU, written by the node daemon.
    pub node_file: PathBuf,
    /// Where addresses in use are recorded.
    pub data_dir: PathBuf,
    /// The agent's socket; None where only the kernel routes.
    pub agent_socket: Option<PathBuf>,
    /// The pods' MTU in bytes, over the node file's.
    pub mtu: Option<u32>,
    /// Everything that the configuration holds, for what only some verbs ask for.
    fields: Map<String, Value>,
}

impl NetConf {
    /// Reads a configuration from JSON.
    ///
    /// # Errors
    /// When it is no JSON object, of a version not spoken, or a field is missing or makes no sense.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let object: Map<String, Value> = serde_json::from_slice(json).map_err(ConfigError::NotJson)?;
        let version = parse_version(&object)?.unwrap_or_else(|| "0.1.0".into());
        let version = Version::parse(&version).ok_or(ConfigError::Version(version))?;
        let name: String = required(&object, "name")?;
        if !is_identifier(&name) {
            let problem =
                format!("{name:?} must start with a letter or digit and hold only those, '_', '.' and '-'");
            return Err(ConfigError::field("name", problem));
        }
        let kind: String = required(&object, "type")?;
        if kind != PLUGIN {
            return Err(ConfigError::field("type", format!("{kind:?} is not {PLUGIN:?}")));
        }
        let mtu: Option<u32> = optional(&object, "mtu")?.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu {
            check_mtu(mtu).map_err(|problem| ConfigError::field("mtu", problem))?;
        }
        let socket: Option<PathBuf> = optional(&object, "agentSocket")?;
        Ok(Self {
            version,
            name,
            node_file: path(&object, "nodeFile", DEFAULT_NODE_FILE)?,
            data_dir: path(&object, "dataDir", DEFAULT_DATA_DIR)?,
            agent_socket: match socket {
                Some(empty) if empty.as_os_str().is_empty() => None,
                _ => Some(path(&object, "agentSocket", DEFAULT_SOCKET)?),
            },
            mtu,
            fields: object,
        })
    }

    /// What the configuration says at `name`; None if nothing or null.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// The attachments that the runtime still knows (`cni.dev/valid-attachments`), which GC must leave alone.
    ///
    /// Runtimes give the list also as `cni.dev/attachments`, because the specification named it so for a while.
    ///
    /// # Errors
    /// When it is missing, and not merely empty: everything would be removed; or when an entry makes no sense.
    pub fn valid_attachments(&self) -> Result<BTreeSet<Attachment>, ConfigError> {
        const FIELD: &str = "cni.dev/valid-attachments";
        #[derive(Deserialize)]
        struct Entry {
            #[serde(rename = "containerID")]
            container_id: String,
            ifname: String,
        }
        let list = self.field(FIELD).or_else(|| self.field("cni.dev/attachments"));
        let list = list.ok_or_else(|| ConfigError::field(FIELD, "is missing"))?;
        let entries = list.as_array().ok_or_else(|| ConfigError::field(FIELD, "is no list"))?;
        let read = |(n, entry): (usize, &Value)| {
            let wrong = |problem: String| ConfigError::field(format!("{FIELD}[{n}]"), problem);
            let entry =
                Entry::deserialize(entry).map_err(|error: serde_json::Error| wrong(error.to_string()))?;
            Attachment::new(&entry.container_id, &entry.ifname).map_err(|error| wrong(error.to_string()))
        };
        entries.iter().enumerate().map(read).collect()
    }
}

/// The `cniVersion` of a VERSION request's input, which holds nothing else; None if absent.
///
/// # Errors
/// When the input is no JSON object or the field no string.
pub fn requested_version(json: &[u8]) -> Result<Option<String>, ConfigError> {
    parse_version(&serde_json::from_slice(json).map_err(ConfigError::NotJson)?)
}

/// The node's own part of the configuration: what the node daemon learned from the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFile {
    /// The address ranges for this node's pods, of either family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The pods' MTU in bytes; the kernel's default (1500) where the uplink's is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Why the node file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    /// It is not there: the node daemon has not yet learned the node's podCIDRs.
    #[error("nodeFile {} is not there yet: is `fairlead-cni node` running, and has the Node podCIDRs?", .0.display())]
    Absent(PathBuf),
    /// It can't be read.
    #[error("read nodeFile {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It makes no sense.
    #[error("decode nodeFile {}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl NodeFile {
    /// Reads the node file at `path`.
    ///
    /// # Errors
    /// When it is absent, unreadable, no such JSON, without any podCIDR, or with an impossible MTU.
    pub fn read(path: &Path) -> Result<Self, NodeFileError> {
        let json = fs::read(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => NodeFileError::Absent(path.into()),
            _ => NodeFileError::Unreadable { path: path.into(), source },
        })?;
        let malformed = |problem: String| NodeFileError::Malformed { path: path.into(), problem };
        let file: Self = serde_json::from_slice(&json).map_err(|e| malformed(e.to_string()))?;
        if file.pod_cidrs.is_empty() {
            return Err(malformed("podCIDRs is empty".into()));
        }
        for (n, cidr) in file.pod_cidrs.iter().enumerate() {
            let overlaps = |other: &&IpNet| other.contains(cidr) || cidr.contains(*other);
            if let Some(other) = file.pod_cidrs[..n].iter().find(overlaps) {
                return Err(malformed(format!("podCIDRs: {cidr} overlaps {other}")));
            }
        }
        file.mtu.map_or(Ok(()), check_mtu).map_err(|problem| malformed(format!("mtu: {problem}")))?;
        Ok(file)
    }
}

fn check_mtu(mtu: u32) -> Result<(), String> {
    if (MTU_MIN..=MTU_MAX).contains(&mtu) {
        Ok(())
    } else {
        Err(format!("{mtu} is not between {MTU_MIN} and {MTU_MAX}"))
    }
}

fn parse_version(object: &Map<String, Value>) -> Result<Option<String>, ConfigError> {
    optional(object, "cniVersion")
}

fn path(object: &Map<String, Value>, field: &str, default: &str) -> Result<PathBuf, ConfigError> {
    let path = optional(object, field)?.unwrap_or_else(|| PathBuf::from(default));
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ConfigError::field(field, format!("{path:?} is not an absolute path")))
    }
}

fn required<T: DeserializeOwned>(object: &Map<String, Value>, field: &str) -> Result<T, ConfigError> {
    optional(object, field)?.ok_or_else(|| ConfigError::field(field, "is missing"))
}

fn optional<T: DeserializeOwned>(object: &Map<String, Value>, field: &str) -> Result<Option<T>, ConfigError> {
    object
        .get(field)
        .map_or(Ok(None), Option::<T>::deserialize)
        .map_err(|e| ConfigError::field(field, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        NetConf::parse(json.as_bytes()).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_short_configuration_gets_the_defaults() {
        let json = br#"{"cniVersion":"1.0.0","name":"pods","type":"fairlead-cni"}"#;
        let conf = NetConf::parse(json);
        let expected = NetConf {
            version: Version::V1_0_0,
            name: "pods".into(),
            node_file: DEFAULT_NODE_FILE.into(),
            data_dir: DEFAULT_DATA_DIR.into(),
            agent_socket: Some(DEFAULT_SOCKET.into()),
            mtu: None,
            fields: serde_json::from_slice(json).expect("JSON"),
        };
        assert_eq!(conf.expect("valid"), expected);
    }

    #[test]
    fn an_empty_agent_socket_means_no_agent() {
        let conf = NetConf::parse(
            br#"{"cniVersion":"1.1.0","name":"pods","type":"fairlead-cni","agentSocket":"","mtu":9000}"#,
        )
        .expect("valid");
        assert_eq!(conf.agent_socket, None);
        assert_eq!(conf.mtu, Some(9000));
    }

    #[test]
    fn a_refusal_names_the_field() {
        let cases = [
            (r#"{"cniVersion":"1.0.0","type":"fairlead-cni"}"#, "name: is missing"),
            (r#"{"cniVersion":"1.0.0","name":"../x","type":"fairlead-cni"}"#, "name: "),
            (r#"{"cniVersion":"1.0.0","name":"a"}"#, "type: is missing"),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"bridge"}"#, "type: \"bridge\""),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"fairlead-cni","mtu":"big"}"#, "mtu: "),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"fairlead-cni","mtu":576}"#, "mtu: 576"),
            (r#"{"cniVersion":"1.0.0","name":"a","type":"fairlead-cni","dataDir":"x"}"#, "dataDir: "),
            (r#"{"cniVersion":7,"name":"a","type":"fairlead-cni"}"#, "cniVersion: "),
        ];
        for (json, expected) in cases {
            let message = refused(json);
            assert!(message.starts_with(expected), "{json}: {message}");
        }
    }

    #[test]
    fn an_absent_or_unknown_version_is_refused_as_such() {
        for json in [r#"{"name":"a","type":"fairlead-cni"}"#, r#"{"cniVersion":"0.3.1","name":"a"}"#] {
            assert!(matches!(NetConf::parse(json.as_bytes()), Err(ConfigError::Version(_))), "{json}");
        }
    }

    #[test]
    fn what_is_no_json_object_is_refused_as_such() {
        for json in ["", "{", "[]", "null"] {
            assert!(matches!(NetConf::parse(json.as_bytes()), Err(ConfigError::NotJson(_))), "{json}");
        }
    }

    #[test]
    fn the_attachments_to_keep_may_be_none_but_must_be_said() {
        let parse = |list: &str| {
            let json = format!(r#"{{"cniVersion":"1.1.0","name":"a","type":"fairlead-cni"{list}}}"#);
            let valid = NetConf::parse(json.as_bytes()).expect("valid").valid_attachments();
            valid.map_err(|error| error.to_string())
        };
        assert_eq!(parse(r#","cni.dev/valid-attachments":[]"#), Ok(BTreeSet::new()));
        let one = r#"[{"containerID":"a","ifname":"eth0"}]"#;
        let expected = BTreeSet::from(["a/eth0".parse().expect("valid")]);
        assert_eq!(parse(&format!(r#","cni.dev/valid-attachments":{one}"#)), Ok(expected.clone()));
        assert_eq!(parse(&format!(r#","cni.dev/attachments":{one}"#)), Ok(expected));
        for (list, problem) in [
            ("", ": is missing"),
            (r#","cni.dev/valid-attachments":null"#, ": is missing"),
            (r#","cni.dev/valid-attachments":{}"#, ": is no list"),
            (r#","cni.dev/valid-attachments":[{"containerID":"a"}]"#, "[0]: missing field `ifname`"),
            (
                r#","cni.dev/valid-attachments":[{"containerID":"../a","ifname":"eth0"}]"#,
                "[0]: container id \"../a\" ",
            ),
        ] {
            let error = parse(list).expect_err("refused");
            assert!(error.starts_with(&format!("cni.dev/valid-attachments{problem}")), "{list}: {error}");
        }
    }

    #[test]
    fn a_node_file_without_ranges_or_with_bad_ones_is_malformed() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("node.json");
        assert!(matches!(NodeFile::read(&path), Err(NodeFileError::Absent(_))));
        for json in [r#"{"podCIDRs":[]}"#, r#"{"podCIDRs":["10.0.0.0/33"]}"#, "{}", "{"] {
            fs::write(&path, json).expect("write");
            assert!(matches!(NodeFile::read(&path), Err(NodeFileError::Malformed { .. })), "{json}");
        }
        fs::write(&path, r#"{"podCIDRs":["10.0.0.0/24","fd00::/64","10.0.0.128/25"]}"#).expect("write");
        let error = NodeFile::read(&path).expect_err("overlapping").to_string();
        assert!(error.ends_with("podCIDRs: 10.0.0.128/25 overlaps 10.0.0.0/24"), "{error}");
        fs::write(&path, r#"{"podCIDRs":["10.244.1.0/24","fd00:1::/64"],"mtu":1450}"#).expect("write");
        let file = NodeFile::read(&path).expect("valid");
        assert_eq!((file.pod_cidrs.len(), file.mtu), (2, Some(1450)));
    }
}
