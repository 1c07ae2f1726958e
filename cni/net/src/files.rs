//! Whole files replaced in one step: a reader sees the old content or the new, never a part.
//!
//! A file has one writer at a time: the ledger by its lock, the rest by belonging to the node's one daemon.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What could not be done with which file.
#[derive(Debug, thiserror::Error)]
#[error("{step} {}: {source}", path.display())]
pub struct FileError {
    /// "read", "write", "lock", "decode".
    pub step: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What the system, or the decoder, said.
    pub source: io::Error,
}

impl FileError {
    /// For `.map_err(FileError::at("read", path))`.
    pub(crate) fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl FnOnce(E) -> Self {
        let path = path.to_owned();
        move |source| Self { step, path, source: source.into() }
    }
}

/// Replaces `path` by `content` with the permission bits `mode`: temporary file, fsync, rename. After a
/// crash of the process or the machine the file is the old one or the new one, whole.
///
/// # Errors
/// When its directory can't be made or written; the old file is then untouched.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    put(path, mode, |file| file.write_all(content).and_then(|()| file.sync_data()))
}

/// As [`replace`], without waiting for the disk: for content that means nothing once the machine has stopped. After a
/// crash of the machine, though not of the process, the file may be empty.
///
/// # Errors
/// As [`replace`].
pub fn replace_for_this_boot(path: &Path, content: &[u8], mode: u32) -> Result<(), FileError> {
    put(path, mode, |file| file.write_all(content))
}

/// As [`replace`], with the content of the file at `source`: for binaries, which need not pass through memory.
///
/// # Errors
/// As [`replace`], and when `source` can't be read.
pub fn install(path: &Path, source: &Path, mode: u32) -> Result<(), FileError> {
    let mut from = File::open(source).map_err(FileError::at("read", source))?;
    put(path, mode, |file| io::copy(&mut from, file).and_then(|_| file.sync_data()))
}

fn put(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), FileError> {
    let write = || -> io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // Always the same name: what a killed process left is overwritten by the next, not added to.
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".new");
        let temporary = path.with_file_name(name);
        let filled = || -> io::Result<()> {
            let mut file = File::create(&temporary)?;
            fill(&mut file)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            fs::rename(&temporary, path)
        };
        filled().inspect_err(|_| {
            // The first error is the one to tell; a temporary that can't be removed does no harm.
            let _ = fs::remove_file(&temporary);
        })
    };
    write().map_err(FileError::at("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_and_no_temporary_stays() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("sub/file.json");
        replace(&path, b"one", 0o644).expect("first");
        replace(&path, b"two", 0o600).expect("second");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::metadata(&path).expect("metadata").permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().expect("parent")).expect("list").count(), 1);
    }

    #[test]
    fn a_failed_replacement_keeps_the_old_file_and_names_it() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("file");
        replace(&path, b"old", 0o644).expect("first");
        let error = install(&path, Path::new("/nonexistent"), 0o755).expect_err("no source");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert_eq!(fs::read(&path).expect("read"), b"old");
    }
}
