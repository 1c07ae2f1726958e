//! The loaded programs and their maps.

use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::{CgroupSockAddr, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use fairlead_abi::programs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// The programs, loaded, with a bpffs of their own that goes when this goes.
pub struct Node {
    /// The loaded object.
    pub ebpf: Ebpf,
    mounted: Mounted,
}

/// A bpffs mounted on a temporary directory.
struct Mounted(TempDir);

impl Mounted {
    fn new() -> Result<Self> {
        let directory = TempDir::with_prefix("fairlead-prog-").context("create a directory for bpffs")?;
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount bpffs (root is needed)")?;
        Ok(Self(directory))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.path(), MntFlags::MNT_DETACH) {
            eprintln!("unmount {}: {error}", self.path().display());
        }
    }
}

impl Node {
    /// Loads every program of the object.
    ///
    /// # Errors
    /// When the object is missing from the build, or the kernel refuses a program; the error holds the
    /// verifier's log.
    pub fn load() -> Result<Self> {
        let mounted = Mounted::new()?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(mounted.path())
            .load(fairlead_object::OBJECT)
            .context("load the object (built without eBPF programs? make setup)")?;
        for name in [programs::FROM_POD, programs::TO_POD, programs::FROM_WIRE, programs::TO_WIRE] {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let sockets = [
            programs::CONNECT4,
            programs::CONNECT6,
            programs::SENDMSG4,
            programs::SENDMSG6,
            programs::RECVMSG4,
            programs::RECVMSG6,
            programs::GETPEERNAME4,
            programs::GETPEERNAME6,
        ];
        for name in sockets {
            let program: &mut CgroupSockAddr = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        Ok(Self { ebpf, mounted })
    }

    /// Where its maps are pinned.
    pub fn pins(&self) -> &Path {
        self.mounted.path()
    }
}
