//! `fairlead-proxy check`: whether Fairlead can run here, before anything is installed and without an agent.
//!
//! What the agent would ask at start is asked, and all programs are given to the verifier, with maps of a few entries.
//! Maps must be pinned to be shared among programs: that is done on a bpf filesystem in a mount namespace of a thread's
//! own, and where none can be made, in a directory that is removed again.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::Path;

use fairlead_net::sysctl::PROC_SYS;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::{Kernel, KernelView, Site, probe};
use crate::cli::check::Check;
use crate::dataplane::Pins;
use crate::dataplane::load::{self, Offers};
use crate::dataplane::sizes::Sizes;
use crate::errors::chain;
use crate::run::cgroup_root;

/// Room for next to nothing.
const SIZES: Sizes = Sizes {
    frontends: 1,
    slots: 1,
    backends: 2,
    endpoints: 1,
    places: 1,
    affinities: 1,
    source_ranges: 1,
    policies: 2,
    cells: 1,
    rows: 1,
    peers: 1,
};

/// What is found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// The kernel's features.
    pub kernel: KernelView,
    /// How programs would be attached to interfaces.
    pub attachment: String,
    /// How many instructions the verifier walked for each program that would be loaded.
    pub programs: BTreeMap<String, u32>,
    /// Why the agent could not run; empty if it could.
    pub problems: Vec<String>,
}

/// Asks, and has the programs verified.
pub fn check(options: &Check) -> Findings {
    let cgroup = options.cgroup.clone().or_else(|| cgroup_root().ok());
    let site = Site {
        bpffs: &options.bpffs,
        proc_sys: options.proc_sys.as_deref().unwrap_or(Path::new(PROC_SYS)),
        cgroup: cgroup.as_deref(),
        ports: options.snat_ports,
        without: &options.without_kernel_feature,
    };
    let kernel = Kernel::examine(fairlead_object::OBJECT, &site);
    let offers = kernel.offers();
    let mut problems: Vec<String> =
        kernel.lacking().into_iter().map(|lacking| format!("the kernel lacks {lacking}")).collect();
    let programs = verify(&options.bpffs, offers).unwrap_or_else(|why| {
        problems.push(why);
        BTreeMap::new()
    });
    let attachment = if offers.tcx { "tcx" } else { "clsact" }.to_owned();
    Findings { kernel: kernel.view(), attachment, programs, problems }
}

/// Loads every program that the kernel has what it needs for, and tells what the verifier walked.
fn verify(bpffs: &Path, offers: Offers) -> Result<BTreeMap<String, u32>, String> {
    std::thread::scope(|scope| {
        let trial = scope.spawn(|| match private_bpffs(bpffs) {
            Ok(place) => verify_at(place, offers),
            Err(_) => {
                let place = bpffs.join(format!("check-{}", std::process::id()));
                let verified = verify_at(&place, offers);
                // There is nothing if the first step failed.
                let _ = fs::remove_dir_all(&place);
                verified
            }
        });
        trial.join().unwrap_or_else(|_| Err("the trial load ended by a panic".to_owned()))
    })
}

/// Mounts a bpf filesystem that only the calling thread sees, over the part of the path that there is.
fn private_bpffs(bpffs: &Path) -> nix::Result<&Path> {
    // What is mounted over the root itself is not seen by paths.
    let place = Some(probe::existing(bpffs)).filter(|place| place.parent().is_some()).ok_or(Errno::EINVAL)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    mount(Some("bpf"), place, Some("bpf"), MsFlags::empty(), None::<&str>)?;
    Ok(place)
}

fn verify_at(place: &Path, offers: Offers) -> Result<BTreeMap<String, u32>, String> {
    let loaded = load::load(fairlead_object::OBJECT, &Pins::new(place), &SIZES, &BTreeMap::new(), offers);
    let facts = loaded.map_err(|e| chain(&e))?.programs.facts();
    Ok(facts.into_iter().filter_map(|(name, facts)| Some((name, facts.verified?))).collect())
}

impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kernel, attachment, programs, problems } = self;
        write!(f, "{kernel}")?;
        writeln!(f, "programs are attached by {attachment}")?;
        if !programs.is_empty() {
            writeln!(f, "{:16} VERIFIED INSTRUCTIONS", "PROGRAM")?;
        }
        for (name, verified) in programs {
            writeln!(f, "{name:16} {verified}")?;
        }
        for problem in problems {
            writeln!(f, "problem: {problem}")?;
        }
        writeln!(
            f,
            "{}",
            if problems.is_empty() { "Fairlead can run here" } else { "Fairlead can't run here" }
        )
    }
}
