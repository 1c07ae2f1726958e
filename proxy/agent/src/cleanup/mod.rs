//! `fairlead-proxy cleanup`: takes away all that agents have left on the node, of whatever layout, and says what it was.
//!
//! ```text
//! find (pins, filters, settings, files) ─▶ Vec<Item>, in the order in which they go ─▶ remove each ─▶ Report
//! ```
//!
//! Links and filters go first: no program must run on maps that are half gone. Then maps, then settings, then files. What
//! is not the agent's to take is only named, with how it goes. Removing nothing is no error, so it may run again and
//! again. While an agent runs it is refused, unless it is forced.

mod filters;
mod pins;
pub mod reserved;

use std::fmt::{self, Display};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fairlead_net::ours;
use fairlead_net::tables::Tables;
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::cli::cleanup::Cleanup;
use crate::dataplane::haste;
use crate::run;

/// Something that an agent has left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Item {
    /// A pinned link: a program at a hook.
    Link {
        /// Where it is pinned.
        pin: PathBuf,
        /// The program's name, where the kernel tells.
        program: Option<String>,
        /// The interface or cgroup.
        at: String,
    },
    /// A filter of a clsact queue.
    Filter {
        /// The interface.
        interface: String,
        /// `ingress` or `egress`.
        direction: String,
        /// The program's name.
        program: String,
    },
    /// A clsact queue in which there is nothing but our filters.
    Queue {
        /// The interface.
        interface: String,
    },
    /// A pinned map.
    Map {
        /// Where it is pinned.
        pin: PathBuf,
        /// How many entries it holds; of one that always has all of them, how many these are.
        entries: Option<u64>,
        /// How many it has room for.
        capacity: u32,
    },
    /// Another pin: of a program, or of what can't be examined.
    Pin {
        /// Where it is.
        pin: PathBuf,
    },
    /// Ports withheld from the host's sockets.
    ReservedPorts {
        /// The setting.
        setting: PathBuf,
        /// As it is.
        now: String,
        /// Without what agents have added.
        after: String,
    },
    /// That the kernel hurries, left on by an agent that was killed in that moment.
    ExpeditedGracePeriods,
    /// A bpf filesystem that an agent has mounted.
    Mount {
        /// Where.
        path: PathBuf,
    },
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
    },
    /// A directory; what is found in it comes before it.
    Directory {
        /// Where it is.
        path: PathBuf,
    },
}

impl Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { pin, program, at } => {
                write!(f, "link {} of {} at {at}", pin.display(), program.as_deref().unwrap_or("a program"))
            }
            Self::Filter { interface, direction, program } => {
                write!(f, "filter of {program} at {interface}, {direction}")
            }
            Self::Queue { interface } => write!(f, "clsact queue of {interface}"),
            Self::Map { pin, entries: Some(entries), capacity } => {
                write!(f, "map {}, {entries} entries of {capacity}", pin.display())
            }
            Self::Map { pin, entries: None, capacity } => write!(f, "map {}, of {capacity}", pin.display()),
            Self::Pin { pin } => write!(f, "pin {}", pin.display()),
            Self::ReservedPorts { setting, now, after } => {
                write!(f, "reserved ports: {} is {now:?} and will be {after:?}", setting.display())
            }
            Self::ExpeditedGracePeriods => {
                f.write_str("the switch that has the kernel expedite grace periods")
            }
            Self::Mount { path } => write!(f, "bpf filesystem at {}", path.display()),
            Self::File { path } => write!(f, "file {}", path.display()),
            Self::Directory { path } => write!(f, "directory {}", path.display()),
        }
    }
}

impl Item {
    /// Takes it away; no error if it is gone.
    fn remove(&self) -> Result<()> {
        match self {
            Self::Link { pin: path, .. }
            | Self::Map { pin: path, .. }
            | Self::Pin { pin: path }
            | Self::File { path } => gone(fs::remove_file(path)).context("remove"),
            Self::Directory { path } => gone(fs::remove_dir(path)).context("remove"),
            Self::Filter { interface, direction, program } => filters::remove(interface, direction, program),
            Self::Queue { interface } => filters::remove_queue(interface),
            Self::ReservedPorts { setting, after, .. } => reserved::write(setting, after).context("write"),
            Self::ExpeditedGracePeriods => haste::undo().context("write"),
            Self::Mount { path } => umount2(path, MntFlags::empty()).context("unmount"),
        }
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Something found, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it is.
    #[serde(flatten)]
    pub item: Item,
    /// Whether it is gone.
    pub removed: bool,
    /// Why it could not be removed.
    pub error: Option<String>,
}

/// Something that is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// What it is.
    pub what: String,
    /// How it goes.
    pub how: String,
}

/// What was found, in the order in which it was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether all was left as it is.
    pub dry_run: bool,
    /// What agents have left.
    pub found: Vec<Entry>,
    /// What else there is, and is not the agent's to remove.
    pub left_alone: Vec<Left>,
}

impl Report {
    /// What could not be removed.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let failed = self.found.iter().filter_map(|entry| Some((&entry.item, entry.error.as_ref()?)));
        failed.map(|(item, error)| format!("{item}: {error}"))
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Entry { item, removed, error } in &self.found {
            match (removed, error) {
                (_, Some(error)) => writeln!(f, "failed     {item}: {error}")?,
                (true, None) => writeln!(f, "removed    {item}")?,
                (false, None) => writeln!(f, "found      {item}")?,
            }
        }
        for Left { what, how } in &self.left_alone {
            writeln!(f, "left alone {what}: {how}")?;
        }
        let removed = self.found.iter().filter(|entry| entry.removed).count();
        match (self.dry_run, self.found.len()) {
            (_, 0) => writeln!(f, "nothing of fairlead-proxy's is here"),
            (true, found) => writeln!(f, "{found} found, nothing removed"),
            (false, found) => writeln!(f, "{removed} removed, {} failed", found - removed),
        }
    }
}

/// Finds what agents have left, and removes it unless that is not asked for.
///
/// # Errors
/// When an agent runs, or there is no telling what there is. What can't be removed is in the report.
pub fn cleanup(options: &Cleanup) -> Result<Report> {
    // Held to the end, so that no agent starts meanwhile.
    let lock = match (run::lock_if_there(&options.state_dir), options.force) {
        (Err(e), false) => return Err(e.context("stop the agent first, or use --force")),
        (lock, _) => lock.ok(),
    };
    let mut found = pins::find(&options.bpffs)?;
    found.extend(filters::find().context("list the filters of interfaces")?);
    found.extend(reserved::find(&options.state_dir, &options.proc_sys)?);
    if haste::is_left_on() {
        found.push(Item::ExpeditedGracePeriods);
    }
    found.extend(files(options));
    let mut report =
        Report { dry_run: options.dry_run, left_alone: left_alone(options), ..Report::default() };
    for item in found {
        let outcome = if options.dry_run { None } else { Some(item.remove()) };
        report.found.push(Entry {
            removed: matches!(outcome, Some(Ok(()))),
            error: outcome.and_then(Result::err).map(|e| format!("{e:#}")),
            item,
        });
    }
    drop(lock);
    Ok(report)
}

/// The agent's own files, and the directories that are then empty.
fn files(options: &Cleanup) -> Vec<Item> {
    let state = &options.state_dir;
    let mut items = Vec::new();
    let endpoints = state.join("endpoints");
    if let Ok(entries) = fs::read_dir(&endpoints) {
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        items.extend(paths.into_iter().map(|path| Item::File { path }));
        items.push(Item::Directory { path: endpoints });
    }
    let named = [
        state.join("agent.sock"),
        options.socket.clone(),
        state.join(reserved::FILE),
        state.join("api-servers.json"),
        options.api_servers_file.clone(),
        state.join("agent.lock"),
    ];
    for path in named {
        if fs::symlink_metadata(&path).is_ok() && !items.contains(&Item::File { path: path.clone() }) {
            items.push(Item::File { path });
        }
    }
    for directory in [Some(state.as_path()), options.api_servers_file.parent()].into_iter().flatten() {
        let gone = |path: &Path| {
            items
                .iter()
                .any(|item| matches!(item, Item::File { path: p } | Item::Directory { path: p } if p == path))
        };
        let entries =
            fs::read_dir(directory).map(|entries| entries.flatten().all(|entry| gone(&entry.path())));
        if entries.unwrap_or(false) {
            items.push(Item::Directory { path: directory.to_owned() });
        }
    }
    items
}

/// What there is beside, each with how it goes.
fn left_alone(options: &Cleanup) -> Vec<Left> {
    let mut left = Vec::new();
    let mut name = |what: String, how: &str| left.push(Left { what, how: how.to_owned() });
    for switch in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        let path = options.proc_sys.join(switch);
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            name(format!("{} is 1", path.display()), "others may need it; write 0 to it, or boot");
        }
    }
    match cni() {
        Ok((items, pods)) => {
            if items > 0 {
                name(format!("{items} routes, rules and devices between nodes"), "fairlead-cni cleanup");
            }
            if pods > 0 {
                name(
                    format!("{pods} interfaces of pods"),
                    "fairlead-cni cleanup --pods, or replace the pods",
                );
            }
        }
        Err(e) => name("what the CNI has made".into(), &format!("it can't be listed: {e}")),
    }
    left
}

/// How many things between nodes the CNI has made, and how many interfaces of pods.
fn cni() -> io::Result<(usize, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let items =
        runtime.block_on(async { Tables::open(Path::new(fairlead_net::sysctl::PROC_SYS))?.read().await })?;
    Ok((items.len(), ours::survey()?.len()))
}
