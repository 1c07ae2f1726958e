//! Generations: the maps and links of agents of one layout, which another agent finds.
//!
//! An agent of another layout starts with maps of its own, and carries over into them what the others' hold
//! ([`plan`], `carry`); then its programs take the place of theirs without a gap ([`handover`]). All that it must know of
//! another generation is in that one's directory: a description of the maps, and links named for what they are for.
//!
//! | what a directory has | what it is |
//! |---|---|
//! | links | the generation in charge |
//! | links in `handover`, and none else | one that is to be in charge, and begins flows already, perhaps |
//! | both | one that is taking over at this moment |
//! | no links | leftovers: removed |
//!
//! So an agent that is killed in the middle of it leaves what the next one, of whatever layout, goes on with: flows are
//! carried over from wherever there are any, and nothing that has links is thrown away before that.

mod carry;
pub mod description;
pub mod handover;
pub mod plan;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;

use self::description::Description;
use super::links::failed;
use super::{DataplaneError, Pins};
use crate::errors::chain;

/// What an agent finds of another layout.
#[derive(Debug)]
pub struct Generation {
    /// Where it is.
    pub pins: Pins,
    /// What its maps look like, or why that is not known.
    pub description: Result<Description, String>,
    /// The pins of its links.
    pub links: Vec<PathBuf>,
    /// The pins of its links that stand before others'.
    pub fronts: Vec<PathBuf>,
}

impl Generation {
    fn is_left_over(&self) -> bool {
        self.links.is_empty() && self.fronts.is_empty()
    }

    /// How people name it.
    pub fn name(&self) -> String {
        self.pins.maps().display().to_string()
    }

    /// Removes its maps and directories, and links that are left.
    fn remove(&self) -> Result<(), DataplaneError> {
        for directory in [self.pins.fronts(), self.pins.links(), self.pins.maps().to_owned()] {
            match fs::remove_dir_all(&directory) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed("remove", &directory, e)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// What is there of other layouts, and what that means for the own maps.
#[derive(Debug, Default)]
pub struct Others {
    /// Those with links, the one with most of them first.
    in_charge: Vec<Generation>,
    /// Those without.
    left_over: Vec<Generation>,
    /// Whether the own maps are new: the other's state is theirs.
    is_new: bool,
}

impl Others {
    /// Looks for other layouts below `bpffs`. Where there is one in charge, own maps without links are removed: they are
    /// left of an agent that came to nothing, and out of date.
    ///
    /// # Errors
    /// When a directory can't be read, or own maps can't be removed.
    pub fn find(bpffs: &Path, own: &Pins) -> Result<Self, DataplaneError> {
        let mut others = Self::default();
        let mut is_new = true;
        for path in listed(bpffs).map_err(|e| failed("list", bpffs, e))? {
            let Some(pins) = Pins::at(&path) else { continue };
            let is_own = pins == *own;
            let generation = look(pins)?;
            if is_own {
                is_new = generation.is_left_over();
            } else if generation.is_left_over() {
                others.left_over.push(generation);
            } else {
                others.in_charge.push(generation);
            }
        }
        others.in_charge.sort_by_key(|generation| std::cmp::Reverse(generation.links.len()));
        others.is_new = is_new && !others.in_charge.is_empty();
        if others.is_new {
            look(own.clone())?.remove()?;
        }
        Ok(others)
    }

    /// The sizes that new maps are to have: those of the maps that are carried over into them, by name.
    pub fn sizes(&self) -> BTreeMap<String, u32> {
        let mut sizes = BTreeMap::new();
        if self.is_new
            && let Some(Generation { pins, description: Ok(description), .. }) = self.in_charge.first()
        {
            for name in plan::plan(description, &Description::own()).maps.keys() {
                if let Ok(info) = MapInfo::from_pin(pins.map(name)) {
                    sizes.insert(name.clone(), info.max_entries());
                }
            }
        }
        sizes
    }

    /// Removes what is left over of other layouts; what can't be removed is a warning.
    fn clear(&self) {
        for generation in &self.left_over {
            match generation.remove() {
                Ok(()) => tracing::info!("removed {}, which nobody used any more", generation.name()),
                Err(e) => tracing::warn!("{}", chain(&e)),
            }
        }
    }
}

/// What is pinned there.
fn look(pins: Pins) -> Result<Generation, DataplaneError> {
    let pinned = |directory: PathBuf| match listed(&directory) {
        Ok(paths) => Ok(paths),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(failed("list", &directory, e)),
    };
    let (links, fronts) = (pinned(pins.links())?, pinned(pins.fronts())?);
    let description = Description::read(&pins).map_err(|e| chain(&e));
    Ok(Generation { pins, description, links, fronts })
}

fn listed(directory: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}
