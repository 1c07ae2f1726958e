//! Cases as files: those that once failed, and where the next one goes.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Every case in the directory, in the order of their names.
///
/// # Panics
/// When one can't be read.
#[must_use]
pub fn all<C: DeserializeOwned>(directory: &Path) -> Vec<(PathBuf, C)> {
    let entries = fs::read_dir(directory).expect("list the cases");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("read a case");
        let case = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path, case)
    };
    paths.into_iter().map(read).collect()
}

/// Writes a case to where it is tried again at every run, under a name that follows from what it holds.
///
/// # Panics
/// When it can't be written.
pub fn keep<C: Serialize>(directory: &Path, case: &C) -> PathBuf {
    let text = serde_json::to_string_pretty(case).expect("JSON");
    let name = text.bytes().fold(0_u32, |name, byte| name.wrapping_mul(31).wrapping_add(byte.into()));
    let path = directory.join(format!("found-{name:08x}.json"));
    fs::write(&path, text + "\n").expect("write the case");
    path
}
