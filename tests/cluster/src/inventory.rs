//! What a node has of Fairlead in the kernel: programs, maps, links, pins, routes, interfaces; and what is left of what it
//! had.
//!
//! Other clusters may be at work on the machine, so nothing is counted that can't be told to be this node's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{MapInfo, loaded_maps};
use aya::programs::loaded_programs;
use fairlead_harness::{Node, wait_for};

/// How often a takeover is looked for before it is asked whether the agent is healthy.
const LOOKS: usize = 100;

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// How many programs are over its maps, by name.
    pub programs: BTreeMap<String, usize>,
    /// How many maps these have, and it has pinned.
    pub maps: usize,
    /// Its pins, below the directory of a layout; those of links by what they are for.
    pub pins: BTreeSet<String>,
    /// How many directories of layouts.
    pub layouts: usize,
    /// Its interfaces.
    pub interfaces: BTreeSet<String>,
    /// Its routes and rules.
    pub routes: BTreeSet<String>,
}

/// The kernel's numbers of programs and maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Inventory {
    /// What that node has now.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn of(node: &Node) -> Result<Self> {
        let numbers = Numbers::of(node)?;
        let mut programs = BTreeMap::new();
        for program in loaded_programs().flatten().filter(|info| numbers.programs.contains(&info.id())) {
            *programs.entry(program.name_as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        let (mut pins, mut layouts) = (BTreeSet::new(), 0);
        for layout in directories(node)? {
            layouts += 1;
            list(&layout, "", &mut pins)?;
        }
        let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect::<BTreeSet<_>>();
        let mut routes = BTreeSet::new();
        for family in ["-4", "-6"] {
            routes.extend(lines(node.place().ip(&[family, "route", "show", "table", "all"])?));
            routes.extend(lines(node.place().ip(&[family, "rule", "show"])?));
        }
        // What has been learnt comes and goes, and the kernel counts down.
        routes.retain(|route| !route.contains("cache") && !route.contains("expires"));
        let links = node.place().ip(&["-br", "link"])?;
        let interfaces = links.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned);
        Ok(Self {
            programs,
            maps: numbers.maps.len(),
            pins,
            layouts,
            interfaces: interfaces.collect(),
            routes,
        })
    }

    /// Checks that this is what there was.
    ///
    /// # Errors
    /// When it is not: what is more, and what is less.
    pub fn is_as(&self, before: &Self) -> Result<()> {
        ensure!(self.layouts == 1, "there are {} directories of layouts", self.layouts);
        let differ = |what: &str, now: &BTreeSet<String>, then: &BTreeSet<String>| {
            let (more, less) = (now.difference(then), then.difference(now));
            let (more, less): (Vec<_>, Vec<_>) = (more.collect(), less.collect());
            ensure!(more.is_empty() && less.is_empty(), "{what}: more {more:?}, less {less:?}");
            Ok(())
        };
        differ("pins", &self.pins, &before.pins)?;
        differ("interfaces", &self.interfaces, &before.interfaces)?;
        differ("routes", &self.routes, &before.routes)?;
        ensure!(self.programs == before.programs, "programs: {:?}, not {:?}", self.programs, before.programs);
        ensure!(self.maps == before.maps, "{} maps, not {}", self.maps, before.maps);
        Ok(())
    }
}

impl Numbers {
    /// Those of the programs and maps that the node has now, of any layout.
    ///
    /// # Errors
    /// When they can't be read.
    pub fn of(node: &Node) -> Result<Self> {
        let mut pinned = BTreeSet::new();
        for layout in directories(node)? {
            for entry in fs::read_dir(layout)?.flatten() {
                if entry.file_type()?.is_file() {
                    pinned.insert(MapInfo::from_pin(entry.path()).context("open a pinned map")?.id());
                }
            }
        }
        let (mut programs, mut maps) = (BTreeSet::new(), pinned.clone());
        // Others' programs may come and go meanwhile.
        for program in loaded_programs().flatten() {
            let used = program.map_ids().ok().flatten().unwrap_or_default();
            if used.iter().any(|id| pinned.contains(id)) {
                programs.insert(program.id());
                maps.extend(used);
            }
        }
        Ok(Self { programs, maps })
    }

    /// Adds others.
    pub fn add(&mut self, others: &Self) {
        self.programs.extend(&others.programs);
        self.maps.extend(&others.maps);
    }

    /// Checks that of all these the kernel has none any more but those that are in use now.
    ///
    /// # Errors
    /// When it has.
    pub fn are_gone_but(&self, now: &Self) -> Result<()> {
        let loaded: BTreeSet<u32> = loaded_programs().flatten().map(|info| info.id()).collect();
        let left: Vec<_> = self.programs.difference(&now.programs).filter(|id| loaded.contains(id)).collect();
        ensure!(left.is_empty(), "programs are left: {left:?}");
        let loaded: BTreeSet<u32> = loaded_maps().flatten().map(|info| info.id()).collect();
        let left: Vec<_> = self.maps.difference(&now.maps).filter(|id| loaded.contains(id)).collect();
        ensure!(left.is_empty(), "maps are left: {left:?}");
        Ok(())
    }
}

/// Waits until the node's agent, which has just been started, has begun to stand before another layout's programs; or is
/// healthy, if there are none.
///
/// # Errors
/// When neither happens.
pub fn until_it_takes_over(node: &Node) -> Result<()> {
    wait_for("a takeover", Duration::from_secs(60), || {
        // A moment that is soon over.
        for _ in 0..LOOKS {
            if directories(node)?.iter().any(|layout| layout.join("handover").exists()) {
                return Ok(Some(()));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(node.healthz().is_ok_and(|(status, _)| status == 200).then_some(()))
    })
}

/// The directories of layouts; beside them the kernel may have files of its own.
fn directories(node: &Node) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(node.layout().bpffs())?.flatten().map(|entry| entry.path());
    Ok(all.filter(|path| path.is_dir()).collect())
}

fn list(directory: &Path, prefix: &str, into: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), into)?;
        } else {
            into.insert(name);
        }
    }
    Ok(())
}
