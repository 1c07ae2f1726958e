//! The node daemon's pieces: what it installs on the node.
//!
//! `fairlead-cni node` decides when; each function here is idempotent and writes only what differs.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::capabilities;
use crate::config::{NodeFile, PLUGIN, Version};
use crate::files::{self, FileError};

pub use crate::sysctl::enable_forwarding;

/// The conflist's file name: early in the order, so that runtimes which take the first one take ours.
pub const CONFLIST: &str = "10-fairlead.conflist";

/// The network's name in the conflist.
const NETWORK: &str = "fairlead";

/// What the conflist tells the plugin.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// Where the node file is.
    pub node_file: PathBuf,
    /// Where addresses in use are recorded.
    pub data_dir: PathBuf,
    /// The agent's socket; None where only the kernel routes.
    pub agent_socket: Option<PathBuf>,
}

impl Conflist {
    /// The conflist's JSON text.
    ///
    /// Runtimes that know of `cniVersions` (libcni 1.2) take the newest of them that they speak, 1.1.0 with STATUS
    /// and GC; older ones go by `cniVersion`, and would refuse the answers of 1.1.0.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Without an agent nobody here maps ports: a plugin chained after this one may, and declares it.
        let has = |name: &&str| *name != "portMappings" || self.agent_socket.is_some();
        let capabilities: Map<String, Value> =
            capabilities::NAMES.into_iter().filter(has).map(|name| (name.into(), true.into())).collect();
        let conflist = json!({
            "cniVersion": Version::V1_0_0.as_str(),
            "cniVersions": Version::ALL.map(Version::as_str),
            "name": NETWORK,
            "plugins": [{
                "type": PLUGIN,
                "capabilities": capabilities,
                "nodeFile": self.node_file,
                "dataDir": self.data_dir,
                "agentSocket": self.agent_socket.as_deref().unwrap_or(Path::new("")),
            }],
        });
        format!("{conflist:#}\n")
    }

    /// Puts the conflist into `directory`; true if it was not there like this.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn install(&self, directory: &Path) -> Result<bool, FileError> {
        replace_if_different(&directory.join(CONFLIST), self.to_json().as_bytes(), 0o644)
    }
}

/// Writes the node file; true if it was not there like this.
///
/// # Errors
/// When it can't be written.
pub fn write_node_file(path: &Path, content: &NodeFile) -> Result<bool, FileError> {
    let json = serde_json::to_vec(content).map_err(FileError::at("write", path))?;
    replace_if_different(path, &json, 0o644)
}

/// Puts the binary at `source` into `directory` under the plugin's name; true if it was not there like this.
///
/// # Errors
/// When it can't be read or written.
pub fn install_binary(source: &Path, directory: &Path) -> Result<bool, FileError> {
    let path = directory.join(PLUGIN);
    let from = fs::metadata(source).map_err(FileError::at("read", source))?;
    if let Ok(there) = fs::metadata(&path) {
        let itself = (there.dev(), there.ino()) == (from.dev(), from.ino());
        let alike = || -> io::Result<bool> {
            Ok(there.len() == from.len()
                && there.permissions().mode() & 0o111 != 0
                && fs::read(&path)? == fs::read(source)?)
        };
        if itself || alike().map_err(FileError::at("read", &path))? {
            return Ok(false);
        }
    }
    files::install(&path, source, 0o755)?;
    Ok(true)
}

/// The network configurations in `directory` that a runtime takes before ours: it takes the first by name, whichever
/// is there.
#[must_use]
pub fn others_before(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let is_configuration = |name: &str| {
        Path::new(name)
            .extension()
            .is_some_and(|e| ["conflist", "conf", "json"].iter().any(|kind| e == *kind))
    };
    let mut before: Vec<String> =
        names.filter(|name| name.as_str() < CONFLIST && is_configuration(name)).collect();
    before.sort();
    before
}

fn replace_if_different(path: &Path, content: &[u8], mode: u32) -> Result<bool, FileError> {
    if fs::read(path).is_ok_and(|now| now == content) {
        return Ok(false);
    }
    files::replace(path, content, mode)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetConf;

    fn conflist() -> Conflist {
        Conflist { node_file: "/run/x/node.json".into(), data_dir: "/var/lib/x".into(), agent_socket: None }
    }

    #[test]
    fn the_plugin_takes_what_the_conflist_says() {
        let list: Value = serde_json::from_str(&conflist().to_json()).expect("JSON");
        // As a runtime does: the plugin's entry with the list's name and version.
        let mut entry = list["plugins"][0].clone();
        entry["name"] = list["name"].clone();
        entry["cniVersion"] = list["cniVersion"].clone();
        let conf = NetConf::parse(entry.to_string().as_bytes()).expect("valid");
        assert_eq!(conf.node_file, Path::new("/run/x/node.json"));
        assert_eq!(conf.data_dir, Path::new("/var/lib/x"));
        assert_eq!(conf.agent_socket, None);
    }

    #[test]
    fn runtimes_are_told_every_version_and_what_may_be_asked_for() {
        let read =
            |conflist: &Conflist| -> Value { serde_json::from_str(&conflist.to_json()).expect("JSON") };
        let alone = read(&conflist());
        assert_eq!(alone["cniVersion"], "1.0.0");
        assert_eq!(alone["cniVersions"], json!(["0.4.0", "1.0.0", "1.1.0"]));
        assert_eq!(alone.get("disableCheck"), None);
        let entry = &alone["plugins"][0];
        assert_eq!(entry["capabilities"], json!({"bandwidth": true, "ips": true, "mac": true}));
        let with_agent = read(&Conflist { agent_socket: Some("/run/x/agent.sock".into()), ..conflist() });
        assert_eq!(with_agent["plugins"][0]["capabilities"]["portMappings"], true);
    }

    #[test]
    fn installing_twice_writes_once() {
        let dir = tempfile::tempdir().expect("directory");
        let source = dir.path().join("source");
        fs::write(&source, "one").expect("write");
        let target = dir.path().join("bin");
        assert!(install_binary(&source, &target).expect("first"));
        assert!(!install_binary(&source, &target).expect("second"));
        assert!(!install_binary(&target.join(PLUGIN), &target).expect("the installed one itself"));
        fs::write(&source, "two").expect("write");
        assert!(install_binary(&source, &target).expect("upgrade"));
        assert_eq!(fs::read(target.join(PLUGIN)).expect("read"), b"two");
        assert!(conflist().install(dir.path()).expect("first"));
        assert!(!conflist().install(dir.path()).expect("second"));
    }

    #[test]
    fn what_a_runtime_takes_before_ours_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        for name in
            ["05-other.conflist", "10-a.conf", "00-notes.txt", "87-podman.conflist", ".05-x.conflist.new"]
        {
            fs::write(dir.path().join(name), "").expect("write");
        }
        conflist().install(dir.path()).expect("installed");
        assert_eq!(others_before(dir.path()), ["05-other.conflist", "10-a.conf"]);
        assert!(others_before(&dir.path().join("none")).is_empty());
    }

    #[test]
    fn the_plugin_reads_the_node_file_that_the_daemon_writes() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("run/node.json");
        let content = NodeFile { pod_cidrs: vec!["10.244.1.0/24".parse().expect("range")], mtu: Some(1450) };
        assert!(write_node_file(&path, &content).expect("first"));
        assert!(!write_node_file(&path, &content).expect("second"));
        assert_eq!(NodeFile::read(&path).expect("read"), content);
    }
}
