//! What is pinned: everything in the directories of layouts, whatever their version, and in those that a killed `check`
//! or `bench-self` has left.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{MapInfo, MapType};
use nix::net::if_::if_indextoname;

use super::Item;
use crate::dataplane::sys::{self, LinkTarget};

/// What is pinned below `bpffs`, links before maps, and directories last.
pub(super) fn find(bpffs: &Path) -> Result<Vec<Item>> {
    let mut files = Vec::new();
    let mut directories = Vec::new();
    let layouts = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("list {}", bpffs.display())),
    };
    let (mut known, mut others) = (Vec::new(), false);
    for entry in layouts {
        let path = entry.with_context(|| format!("list {}", bpffs.display()))?.path();
        if is_layout(&path) {
            known.push(path);
        } else {
            others |= !is_kernels(&path);
        }
    }
    known.sort();
    for layout in known {
        walk(&layout, &mut files, &mut directories).with_context(|| format!("list {}", layout.display()))?;
    }
    let programs = programs();
    let (mut links, mut rest): (Vec<Item>, Vec<Item>) = files
        .into_iter()
        .map(|pin| examine(&pin, &programs).unwrap_or(Item::Pin { pin }))
        .partition(|item| matches!(item, Item::Link { .. }));
    links.append(&mut rest);
    links.extend(directories.into_iter().map(|path| Item::Directory { path }));
    if !others {
        if is_mounted_here(bpffs) {
            links.push(Item::Mount { path: bpffs.to_owned() });
        }
        links.push(Item::Directory { path: bpffs.to_owned() });
    }
    Ok(links)
}

/// Whether the path is named like a layout's directory, or a trial's.
fn is_layout(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = ["v", "check-", "bench-self-"].iter().find_map(|kind| name.strip_prefix(kind));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Whether the kernel itself has put the path into a new filesystem (CONFIG_BPF_PRELOAD).
fn is_kernels(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ["maps.debug", "progs.debug"].contains(&name)
}

/// All files below the directory, and the directories, those further down first.
fn walk(directory: &Path, files: &mut Vec<PathBuf>, directories: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), files, directories)?;
        } else {
            files.push(entry.path());
        }
    }
    directories.push(directory.to_owned());
    Ok(())
}

/// What is pinned there.
fn examine(pin: &Path, programs: &BTreeMap<u32, String>) -> io::Result<Item> {
    let object = sys::open_pin(pin)?;
    // Of what kind it is, only the descriptor's own name tells.
    let kind = fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    let kind = kind.to_string_lossy().into_owned();
    let pin = pin.to_owned();
    if kind.contains("bpf_link") || kind.contains("bpf-link") {
        let program = sys::link_program(object.as_fd()).ok().and_then(|id| programs.get(&id).cloned());
        let at = match sys::link_target(object.as_fd())? {
            LinkTarget::Interface(index) => match if_indextoname(index) {
                Ok(name) => name.to_string_lossy().into_owned(),
                Err(_) => format!("interface {index}"),
            },
            LinkTarget::Cgroup(id) => format!("cgroup {id}"),
            LinkTarget::Gone => "nothing any more".to_owned(),
        };
        return Ok(Item::Link { pin, program, at });
    }
    if !kind.contains("bpf-map") {
        return Ok(Item::Pin { pin });
    }
    let info = MapInfo::from_pin(&pin).map_err(io::Error::other)?;
    let entries = match info.map_type() {
        Ok(MapType::Hash | MapType::LruHash | MapType::LpmTrie) => {
            Some(sys::count_keys(object.as_fd(), info.key_size() as usize)?)
        }
        _ => None,
    };
    Ok(Item::Map { pin, entries, capacity: info.max_entries() })
}

/// The names of loaded programs by their numbers, where the kernel tells.
fn programs() -> BTreeMap<u32, String> {
    let programs = aya::programs::loaded_programs().flatten();
    programs.filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned()))).collect()
}

/// Whether a filesystem is mounted at exactly this path, which is not where systems mount one at boot.
fn is_mounted_here(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let at = path.display().to_string();
    at != "/sys/fs/bpf" && mounts.lines().any(|line| line.split(' ').nth(4) == Some(&at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_layouts_and_trials_are_looked_into() {
        for (name, expected) in [("v1", true), ("v5", true), ("check-77", true), ("vx", false), ("tc", false)]
        {
            assert_eq!(is_layout(&Path::new("/sys/fs/bpf/fairlead").join(name)), expected, "{name}");
        }
    }

    #[test]
    fn where_nothing_is_nothing_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(find(&directory.path().join("none")).expect("listed"), []);
    }
}
