//! What the kernel must have, what it has, and how the agent gets on without the rest.
//!
//! Every feature is asked for by trying it, or read where the kernel tells of it; none is derived from the release. The
//! agent asks at start ([`crate::run`]), `fairlead-proxy check` before anything is installed ([`check`]).
//!
//! ```text
//! features ─┐
//!           ├─▶ probe ─▶ Kernel ─▶ refuse what can't work; log what is missing, and its cost
//! helpers ──┘                 └─▶ Offers ─▶ which programs are loaded, and how they are attached
//! ```
//!
//! | missing | instead |
//! |---|---|
//! | tcx | filters of a clsact queue |
//! | a hook of sockets, or cgroup2 | no sockets are translated; packets are, on their way |
//! | `bpf_set_retval` | what a hook refuses fails with EPERM |
//! | keys of maps in any memory | the programs copy them first |

pub mod check;
mod features;
mod helpers;
mod probe;
mod view;

use anyhow::{Result, bail};
use fairlead_daemon::exposition::Page;

pub use features::Part;
pub use probe::{Found, Site};
pub use view::{FeatureView, KernelView};

use features::{FEATURES, NO_SOCKETS, NOTHING_WORKS, ONLY_PACKETS};

use crate::dataplane::load::Offers;
use crate::node;

/// A feature, and whether the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub part: Part,
    /// The release that brought it; empty where that is not known.
    pub since: &'static str,
    /// What is lost without it.
    pub without: &'static str,
    /// The kernel's answer.
    pub found: Found,
}

impl Answered {
    fn is_missing(&self) -> bool {
        matches!(self.found, Found::No(_))
    }
}

/// What a kernel has of what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    release: String,
    features: Vec<Answered>,
}

impl Kernel {
    /// Asks the kernel that this process runs on about everything, the helpers of the object's programs included. Changes
    /// nothing.
    pub fn examine(object: &[u8], site: &Site<'_>) -> Self {
        let mut features: Vec<Answered> = FEATURES
            .iter()
            .map(|feature| Answered {
                name: feature.name.to_owned(),
                part: feature.part,
                since: feature.since,
                without: feature.without,
                found: (feature.probe)(site),
            })
            .collect();
        match helpers::calls(object) {
            Ok(calls) => features.extend(calls.iter().map(|call| {
                let part = call.part();
                let (since, found) = match call.helper() {
                    Some((helper, since)) => (since, probe::helper(call.kind, helper)),
                    None => ("", Found::Unknown("a helper that this agent has no name for".to_owned())),
                };
                let without = match part {
                    Part::Sockets => NO_SOCKETS,
                    Part::Errors => "what a hook of sockets refuses fails with EPERM, whatever the reason",
                    _ => NOTHING_WORKS,
                };
                Answered { name: call.name(), part, since, without, found }
            })),
            // The load will say the same of the programs.
            Err(e) => tracing::debug!("read which helpers the programs call: {e}"),
        }
        for feature in features.iter_mut().filter(|feature| site.without.contains(&feature.name)) {
            feature.found = Found::No("left out by --without-kernel-feature".to_owned());
        }
        Self { release: node::kernel_release(), features }
    }

    /// What the agent may rely on. What could not be asked is relied on: the kernel says no later, then.
    pub fn offers(&self) -> Offers {
        let has = |part| !self.features.iter().any(|feature| feature.part == part && feature.is_missing());
        Offers {
            tcx: has(Part::Tcx),
            sockets: has(Part::Sockets),
            errors: has(Part::Errors),
            any_memory: has(Part::Memory),
        }
    }

    /// What is missing of what can't be done without, each with what the kernel said.
    pub fn lacking(&self) -> Vec<String> {
        let lacking = self.features.iter().filter(|feature| self.is_needed(feature));
        lacking
            .filter_map(|feature| match &feature.found {
                Found::No(why) => Some(format!("{} ({why})", with_release(feature))),
                _ => None,
            })
            .collect()
    }

    fn is_needed(&self, feature: &Answered) -> bool {
        match feature.part {
            Part::Core => true,
            Part::Clsact => !self.offers().tcx,
            Part::Tcx | Part::Sockets | Part::Errors | Part::Memory | Part::Extra => false,
        }
    }

    /// Logs what is missing and what that costs.
    ///
    /// # Errors
    /// When something is missing that can't be done without: all of it is named.
    pub fn accept(&self) -> Result<()> {
        for feature in self.features.iter().filter(|feature| !self.is_needed(feature)) {
            // Asked for only where there is no tcx.
            if let (Found::No(why), false) = (&feature.found, feature.part == Part::Clsact) {
                let without = feature.without;
                tracing::warn!(
                    feature = feature.name,
                    why,
                    "the kernel lacks {}: {without}",
                    with_release(feature)
                );
            }
        }
        if !self.offers().sockets {
            tracing::warn!("{NO_SOCKETS}: {ONLY_PACKETS}");
        }
        let lacking = self.lacking();
        if !lacking.is_empty() {
            bail!("kernel {} lacks what Fairlead needs: {}", self.release, lacking.join(", "));
        }
        Ok(())
    }

    /// For the status and for `check`.
    pub fn view(&self) -> KernelView {
        let features = self.features.iter().map(|feature| {
            let (found, note) = match &feature.found {
                Found::Yes => (Some(true), String::new()),
                Found::No(why) => (Some(false), why.clone()),
                Found::Unknown(why) => (None, why.clone()),
            };
            FeatureView {
                name: feature.name.clone(),
                needed: self.is_needed(feature),
                since: feature.since.to_owned(),
                found,
                note,
                without: feature.without.to_owned(),
            }
        });
        KernelView { release: self.release.clone(), features: features.collect() }
    }
}

/// The feature's name, with the release that brought it.
fn with_release(feature: &Answered) -> String {
    match feature.since {
        "" => feature.name.clone(),
        since => format!("{}, of Linux {since}", feature.name),
    }
}

/// The features as metrics.
pub fn metrics(kernel: &KernelView, page: &mut Page) {
    page.gauge(
        "fairlead_kernel_feature",
        "Whether the kernel has a feature; what could not be found out is left out.",
    );
    for feature in &kernel.features {
        if let Some(found) = feature.found {
            page.sample(&[("feature", &feature.name)], u8::from(found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(features: &[(&str, Part, Found)]) -> Kernel {
        let features = features.iter().map(|(name, part, found)| Answered {
            name: (*name).to_owned(),
            part: *part,
            since: "5.12",
            without: "it is slower",
            found: found.clone(),
        });
        Kernel { release: "5.10.0".into(), features: features.collect() }
    }

    fn no() -> Found {
        Found::No("unknown to the kernel".into())
    }

    #[test]
    fn a_kernel_is_refused_with_everything_that_is_missing() {
        let kernel = kernel(&[
            ("loops", Part::Core, Found::Yes),
            ("fetching-atomics", Part::Core, no()),
            ("tc:redirect_peer", Part::Core, no()),
            ("tcx", Part::Tcx, no()),
        ]);
        let error = kernel.accept().expect_err("accepted").to_string();
        assert_eq!(
            error,
            "kernel 5.10.0 lacks what Fairlead needs: fetching-atomics, of Linux 5.12 (unknown to the kernel), \
             tc:redirect_peer, of Linux 5.12 (unknown to the kernel)"
        );
    }

    #[test]
    fn what_has_a_substitute_is_no_reason_to_refuse() {
        let kernel = kernel(&[
            ("tcx", Part::Tcx, no()),
            ("clsact", Part::Clsact, Found::Yes),
            ("connect4", Part::Sockets, no()),
            ("sockets:set_retval", Part::Errors, no()),
            ("compiler", Part::Extra, no()),
        ]);
        kernel.accept().expect("accepted");
        assert_eq!(kernel.offers(), Offers { tcx: false, sockets: false, errors: false, any_memory: true });
    }

    #[test]
    fn a_clsact_queue_is_needed_only_where_there_is_no_tcx() {
        kernel(&[("tcx", Part::Tcx, Found::Yes), ("clsact", Part::Clsact, no())]).accept().expect("accepted");
        kernel(&[("tcx", Part::Tcx, no()), ("clsact", Part::Clsact, no())]).accept().expect_err("accepted");
    }

    #[test]
    fn what_could_not_be_asked_is_relied_on_and_no_metric() {
        let kernel = kernel(&[
            ("tcx", Part::Tcx, Found::Unknown("may not".into())),
            ("loops", Part::Core, Found::Yes),
        ]);
        assert!(kernel.offers().tcx && kernel.lacking().is_empty());
        let mut page = Page::default();
        metrics(&kernel.view(), &mut page);
        let text = page.finish();
        assert!(text.contains("{feature=\"loops\"} 1") && !text.contains("tcx"), "{text}");
    }
}
