//! The address ledger on disk: one JSON file per network, changed under a file lock.
//!
//! Every change is: lock, read, change, write a temporary file, rename, unlock. A plugin killed at any
//! point leaves the old file or the new one, and the kernel drops its lock. Nothing waits for the disk: losing what
//! was written takes a crash of the machine, after which the boot id differs and no address is in use anyway.
//!
//! A ledger that is missing or makes no sense is made anew from what the kernel holds ([`crate::ours`]): each
//! interface of the network's with the addresses that are routed to it is an attachment whose ADD has succeeded. So
//! no address in use is given twice. An ADD that is under way meanwhile finds its reservation gone, and fails. What
//! made no sense is kept beside it under [`CORRUPT`]; the order in which freed addresses were to be used again is
//! lost.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;

use crate::attachment::Attachment;
use crate::files::{self, FileError};
use crate::ipam::{Holding, IpamError, Ledger};
use crate::ours;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const UPTIME: &str = "/proc/uptime";
const LEDGER: &str = "ledger.json";

/// How the name of a ledger begins that made no sense; the seconds since 1970 follow.
pub const CORRUPT: &str = "ledger.json.corrupt-";

/// Why the ledger could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The ledger's files can't be used.
    #[error("addresses in use: {0}")]
    File(#[from] FileError),
    /// The kernel does not tell whose its interfaces are, to make a lost ledger anew.
    #[error("addresses in use: list the pods' interfaces: {0}")]
    Survey(io::Error),
    /// The ledger says no.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The reservation has gone before it was committed: DEL came in between.
    #[error("the addresses of {0} were released while it was being attached")]
    Released(Attachment),
}

/// The ledger of one network.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    network: String,
    boot_id: String,
}

impl Store {
    /// The ledger of `network` under `data_dir`; nothing is made before the first reservation.
    ///
    /// # Errors
    /// When the kernel's boot id can't be read.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let path = Path::new(BOOT_ID);
        let boot_id = fs::read_to_string(path).map_err(FileError::at("read", path))?;
        Ok(Self::for_boot(data_dir, network, boot_id.trim()))
    }

    fn for_boot(data_dir: &Path, network: &str, boot_id: &str) -> Self {
        Self { directory: data_dir.join(network), network: network.into(), boot_id: boot_id.into() }
    }

    /// The ledgers of all networks that there are under `data_dir`.
    ///
    /// # Errors
    /// When the directory can't be read; that it is not there is no error.
    pub fn all(data_dir: &Path) -> Result<Vec<Self>, StoreError> {
        let entries = match fs::read_dir(data_dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(FileError::at("read", data_dir)(e).into()),
        };
        let names = entries.flatten().filter(|entry| entry.path().join(LEDGER).exists());
        names.map(|entry| Self::open(data_dir, &entry.file_name().to_string_lossy())).collect()
    }

    /// The network's name.
    #[must_use]
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Makes sure that addresses can be reserved: the ledger can be locked, read and written.
    ///
    /// # Errors
    /// When they can't.
    pub fn prepare(&self) -> Result<(), StoreError> {
        self.make_directory()?;
        self.change(|_| ())
    }

    fn make_directory(&self) -> Result<(), FileError> {
        let directory = &self.directory;
        fs::create_dir_all(directory)
            .and_then(|()| fs::set_permissions(directory, Permissions::from_mode(0o700)))
            .map_err(FileError::at("write", directory))
    }

    /// Reserves addresses for `attachment`, of each family one of `wanted` or else any; they are released when the
    /// result is dropped uncommitted.
    ///
    /// # Errors
    /// When there is no free address or a wanted one can't be had, the attachment has some already, or the ledger can't
    /// be used.
    pub fn reserve(
        &self,
        attachment: &Attachment,
        ranges: &[IpNet],
        wanted: &[IpAddr],
    ) -> Result<Reserved<'_>, StoreError> {
        self.make_directory()?;
        let now = uptime()?;
        let given = self.change(|ledger| ledger.reserve(attachment, ranges, wanted, now))??;
        Ok(Reserved {
            store: self,
            attachment: attachment.clone(),
            addresses: given.addresses,
            resumed: given.resumed,
            committed: false,
        })
    }

    /// Frees what `attachment` holds; false if that is nothing.
    ///
    /// # Errors
    /// When the ledger can't be used.
    pub fn release(&self, attachment: &Attachment) -> Result<bool, StoreError> {
        if !self.directory.exists() {
            return Ok(false);
        }
        self.change(|ledger| ledger.release(attachment))
    }

    /// The addresses that `attachment` holds.
    ///
    /// # Errors
    /// When the ledger can't be used.
    pub fn addresses(&self, attachment: &Attachment) -> Result<Vec<IpAddr>, StoreError> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        self.change(|ledger| ledger.addresses(attachment).to_vec())
    }

    /// Every attachment that holds something.
    ///
    /// # Errors
    /// When the ledger can't be used.
    pub fn holdings(&self) -> Result<Vec<Holding>, StoreError> {
        if !self.directory.exists() {
            return Ok(Vec::new());
        }
        self.change(|ledger| ledger.holdings().collect())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> Result<T, StoreError> {
        let lock = self.directory.join("lock");
        // Held until the file is closed, at the end of this function.
        let held = File::create(&lock).map_err(FileError::at("lock", &lock))?;
        held.lock().map_err(FileError::at("lock", &lock))?;
        let before = self.read()?;
        let (mut ledger, lost) = match &before {
            Some(ledger) => (ledger.clone(), false),
            None => (self.rebuild()?, true),
        };
        ledger.enter_boot(&self.boot_id);
        let outcome = change(&mut ledger);
        if lost || before.as_ref() != Some(&ledger) {
            let path = self.ledger();
            let json = serde_json::to_vec(&ledger).map_err(FileError::at("write", &path))?;
            files::replace_for_this_boot(&path, &json, 0o600)?;
        }
        Ok(outcome)
    }

    /// The ledger on disk; None if there is none that makes sense.
    fn read(&self) -> Result<Option<Ledger>, StoreError> {
        let path = self.ledger();
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(FileError::at("read", &path)(e).into()),
        };
        match serde_json::from_slice(&json) {
            Ok(ledger) => Ok(Some(ledger)),
            Err(error) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                let aside = self.directory.join(format!("{CORRUPT}{now}"));
                let (ledger, kept) = (path.display(), aside.display());
                tracing::error!(%error, %ledger, %kept, "made anew: it makes no sense");
                // A copy: a ledger that is not there for a moment would be one in which nothing is in use.
                fs::copy(&path, &aside).map_err(FileError::at("write", &aside))?;
                Ok(None)
            }
        }
    }

    fn rebuild(&self) -> Result<Ledger, StoreError> {
        let mut ledger = Ledger::default();
        ledger.enter_boot(&self.boot_id);
        for found in ours::survey().map_err(StoreError::Survey)? {
            if let Some((network, attachment)) = &found.owner
                && *network == self.network
                && !found.addresses.is_empty()
            {
                ledger.adopt(attachment, &found.addresses);
            }
        }
        Ok(ledger)
    }

    fn ledger(&self) -> PathBuf {
        self.directory.join(LEDGER)
    }
}

/// How long the machine has been running, in seconds.
///
/// # Errors
/// When `/proc` is not there.
pub fn uptime() -> Result<u64, StoreError> {
    let path = Path::new(UPTIME);
    let text = fs::read_to_string(path).map_err(FileError::at("read", path))?;
    let seconds = text.split('.').next().and_then(|seconds| seconds.parse().ok());
    seconds.ok_or_else(|| FileError::at("decode", path)(io::Error::other(text)).into())
}

/// Addresses reserved for an ADD under way; dropping it gives them back.
#[derive(Debug)]
pub struct Reserved<'store> {
    store: &'store Store,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    resumed: bool,
    committed: bool,
}

impl Reserved<'_> {
    /// At most one address of each family.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Whether an earlier ADD died half way and may have left its interface.
    #[must_use]
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Keeps the addresses: the ADD has succeeded.
    ///
    /// # Errors
    /// When the ledger can't be used, or the addresses were released meanwhile.
    pub fn commit(&mut self) -> Result<(), StoreError> {
        if !self.store.change(|ledger| ledger.commit(&self.attachment))? {
            return Err(StoreError::Released(self.attachment.clone()));
        }
        self.committed = true;
        Ok(())
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = self.store.release(&self.attachment)
        {
            tracing::warn!(%error, attachment = %self.attachment, "addresses stay reserved until DEL");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;

    fn pod(n: usize) -> Attachment {
        Attachment::new(&format!("pod{n}"), "eth0").expect("valid")
    }

    fn range() -> Vec<IpNet> {
        vec!["10.0.0.0/26".parse().expect("range")]
    }

    #[test]
    fn a_reservation_dropped_uncommitted_leaves_nothing_in_use() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(dir.path(), "pods").expect("open");
        drop(store.reserve(&pod(1), &range(), &[]).expect("reserve"));
        assert!(store.addresses(&pod(1)).expect("read").is_empty());
        let mut kept = store.reserve(&pod(2), &range(), &[]).expect("reserve");
        let addresses = kept.addresses().to_vec();
        kept.commit().expect("commit");
        assert_eq!(store.addresses(&pod(2)).expect("read"), addresses);
        assert!(store.release(&pod(2)).expect("release"));
        assert!(!store.release(&pod(2)).expect("release again"));
    }

    #[test]
    fn releasing_before_the_first_reservation_makes_no_file() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(&dir.path().join("none"), "pods").expect("open");
        assert!(!store.release(&pod(1)).expect("release"));
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn parallel_reservations_get_different_addresses() {
        let dir = tempfile::tempdir().expect("directory");
        let given: BTreeSet<IpAddr> = thread::scope(|scope| {
            let threads: Vec<_> = (0..40)
                .map(|n| {
                    let path = dir.path();
                    scope.spawn(move || {
                        let store = Store::open(path, "pods").expect("open");
                        let mut reserved = store.reserve(&pod(n), &range(), &[]).expect("reserve");
                        let address = reserved.addresses()[0];
                        reserved.commit().expect("commit");
                        address
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().expect("thread")).collect()
        });
        assert_eq!(given.len(), 40);
    }

    #[test]
    fn a_corrupt_ledger_is_moved_aside_and_made_anew() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(dir.path(), "no-such-network").expect("open");
        for garbage in ["", "{", "[]"] {
            store.reserve(&pod(1), &range(), &[]).expect("reserve").commit().expect("commit");
            fs::write(store.ledger(), garbage).expect("write");
            // Nothing of this network is in the kernel.
            assert!(store.addresses(&pod(1)).expect("read").is_empty(), "{garbage}");
        }
        let kept = fs::read_dir(&store.directory).expect("list").flatten();
        let kept = kept.filter(|entry| entry.file_name().to_string_lossy().starts_with(CORRUPT)).count();
        assert!(kept >= 1);
    }

    #[test]
    fn a_ledger_that_can_not_be_kept_aside_is_left_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::open(dir.path(), "pods").expect("open");
        store.reserve(&pod(1), &range(), &[]).expect("reserve").commit().expect("commit");
        fs::remove_file(store.ledger()).expect("remove");
        fs::create_dir(store.ledger()).expect("something else in its place");
        let error = store.reserve(&pod(2), &range(), &[]).expect_err("no ledger");
        assert!(error.to_string().contains("ledger.json"), "{error}");
    }

    #[test]
    fn a_reboot_frees_the_addresses_on_disk() {
        let dir = tempfile::tempdir().expect("directory");
        let before = Store::for_boot(dir.path(), "pods", "one");
        before.reserve(&pod(1), &range(), &[]).expect("reserve").commit().expect("commit");
        let after = Store::for_boot(dir.path(), "pods", "two");
        assert!(after.addresses(&pod(1)).expect("read").is_empty());
        after.reserve(&pod(1), &range(), &[]).expect("the attachment is unknown again");
    }
}
