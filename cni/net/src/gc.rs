//! Taking an attachment away, and finding those that nobody knows any more.
//!
//! [`detach`] is what DEL does. GC does it for every attachment that its runtime no longer lists ([`collect`]), and
//! the node daemon for what no runtime will ever name again ([`Sweeper`]): a pod whose namespace went without a DEL,
//! an ADD that was killed. The daemon is told nothing by the runtime, so it goes by what it sees, and only by what it
//! sees twice:
//!
//! | found | removed |
//! |---|---|
//! | addresses in use, but no interface of the host's, in two sweeps | the agent's endpoint, the addresses |
//! | addresses reserved by an ADD that began [`ADD_PATIENCE`] ago | the pair, the agent's endpoint, the addresses |
//! | an interface of ours without addresses in any ledger, in two sweeps | the pair, the agent's endpoint |
//!
//! An ADD reserves before it makes the pair, and DEL and an ADD that fails remove the pair before they release.
//! Interfaces are listed before the ledgers are read, so the pair of an ADD under way is never seen without its
//! reservation.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::net::if_::if_nametoindex;

use crate::agent::{AgentError, Request, ask};
use crate::attachment::Attachment;
use crate::exec::{self, WireError};
use crate::ipam::Holding;
use crate::ours::{Ours, survey};
use crate::store::{Store, StoreError, uptime};

/// After how many seconds an ADD that has not succeeded is taken for dead. It takes 15 s if the agent is slow.
pub const ADD_PATIENCE: u64 = 600;

/// How long the agent may take to forget a pod: removal goes on without it.
const FORGET_TIMEOUT: Duration = Duration::from_secs(2);

/// Why something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The pair.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The addresses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What there is can't be listed.
    #[error("list the pods' interfaces: {0}")]
    Survey(io::Error),
}

/// The agent, as those see it who take pods away: it is told, and nothing waits for it.
#[derive(Debug)]
pub struct Agent<'a> {
    socket: Option<&'a Path>,
    /// It did not answer: the next pod does not wait for it again.
    lost: bool,
}

impl<'a> Agent<'a> {
    /// The agent at `socket`; none where only the kernel routes.
    #[must_use]
    pub fn at(socket: Option<&'a Path>) -> Self {
        Self { socket, lost: false }
    }

    /// Has the agent forget `attachment`. An agent that is not there finds the interface gone, and forgets by itself.
    fn forget(&mut self, attachment: &Attachment) {
        if let Some(socket) = self.socket.filter(|_| !self.lost)
            && let Err(error) = forget(socket, attachment)
        {
            self.lost = !matches!(error, AgentError::Refused(_));
            tracing::warn!(%error, %attachment, "the agent was not told");
        }
    }
}

/// Asks the agent at `socket` to forget `attachment`.
///
/// # Errors
/// When it does not answer, or refuses.
pub fn forget(socket: &Path, attachment: &Attachment) -> Result<(), AgentError> {
    let request = Request::DeleteEndpoint {
        container_id: attachment.container_id().into(),
        ifname: attachment.ifname().into(),
    };
    ask(socket, &request, FORGET_TIMEOUT).map(drop)
}

/// Removes whatever there is of `attachment`, from a record or without one. The pair goes before the agent forgets the
/// pod, so that the pod's rules hold to the end; the addresses are released last, so that no other pod gets one while
/// something of this one still answers to it.
///
/// # Errors
/// When the kernel does not remove the pair, or the ledger can't be used; what comes after that is left.
pub fn detach(store: &Store, agent: &mut Agent<'_>, attachment: &Attachment) -> Result<(), DetachError> {
    exec::unwire(&attachment.host_ifname())?;
    agent.forget(attachment);
    store.release(attachment)?;
    Ok(())
}

/// What became of what a runtime no longer lists.
#[derive(Debug, Default)]
pub struct Collected {
    /// What was taken away.
    pub removed: Vec<Attachment>,
    /// What could not be, and why.
    pub failed: Vec<(Attachment, DetachError)>,
}

/// Detaches everything of the store's network but `valid`; one failure holds up no other.
///
/// # Errors
/// When there is no telling what there is.
pub fn collect(
    store: &Store,
    agent: &mut Agent<'_>,
    valid: &BTreeSet<Attachment>,
) -> Result<Collected, DetachError> {
    let held = store.holdings()?.into_iter().map(|holding| holding.attachment);
    let wired = survey().map_err(DetachError::Survey)?.into_iter().filter_map(|ours| ours.owner);
    let wired = wired.filter(|(network, _)| network == store.network()).map(|(_, attachment)| attachment);
    let stale: BTreeSet<Attachment> = held.chain(wired).filter(|known| !valid.contains(known)).collect();
    let mut collected = Collected::default();
    for attachment in stale {
        match detach(store, agent, &attachment) {
            Ok(()) => collected.removed.push(attachment),
            Err(error) => collected.failed.push((attachment, error)),
        }
    }
    Ok(collected)
}

/// Something that nobody knows any more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stale {
    /// An attachment of a network, with its addresses on record.
    Lease { network: String, attachment: Attachment, committed: bool },
    /// An interface of the host's, without any record.
    Interface { index: u32, ifname: String, owner: Option<Attachment> },
}

/// Finds and removes what nobody knows any more, in all networks that are recorded in one place.
#[derive(Debug)]
pub struct Sweeper {
    data_dir: PathBuf,
    agent: Option<PathBuf>,
    /// What the sweep before this one found for the first time.
    suspects: BTreeSet<Stale>,
}

impl Sweeper {
    /// For the ledgers under `data_dir`; the agent at `agent` is told, if there is one.
    #[must_use]
    pub fn new(data_dir: PathBuf, agent: Option<PathBuf>) -> Self {
        Self { data_dir, agent, suspects: BTreeSet::new() }
    }

    /// One sweep in the calling thread's namespace. Returns a sentence for each removal and for each failure; what
    /// failed is tried again by the next sweep.
    ///
    /// # Errors
    /// When there is no telling what there is.
    pub fn sweep(&mut self) -> Result<Vec<Result<String, String>>, DetachError> {
        // In this order: see above.
        let links = survey().map_err(DetachError::Survey)?;
        let mut stores = Store::all(&self.data_dir)?;
        for (network, _) in links.iter().filter_map(|link| link.owner.as_ref()) {
            if !stores.iter().any(|store| store.network() == network) {
                // Its ledger is lost: made anew, it has the pods that are there.
                let store = Store::open(&self.data_dir, network)?;
                store.prepare()?;
                stores.push(store);
            }
        }
        let mut ledgers = Vec::new();
        for store in &stores {
            ledgers.push((store.network(), store.holdings()?));
        }
        let (dead, suspects) = judge(&links, &ledgers, uptime()?, &self.suspects);
        self.suspects = suspects;
        let mut agent = Agent::at(self.agent.as_deref());
        let mut outcomes = Vec::new();
        for stale in dead {
            let (what, outcome) = match &stale {
                Stale::Lease { network, attachment, committed } => {
                    let came_back = *committed && if_nametoindex(attachment.host_ifname().as_str()).is_ok();
                    let Some(store) = stores.iter().find(|s| s.network() == network && !came_back) else {
                        continue;
                    };
                    (attachment.to_string(), detach(store, &mut agent, attachment))
                }
                Stale::Interface { index, ifname, owner } => {
                    let removed = exec::remove(*index, ifname);
                    owner.iter().for_each(|attachment| agent.forget(attachment));
                    (format!("interface {ifname}"), removed.map(drop).map_err(DetachError::from))
                }
            };
            outcomes.push(match outcome {
                Ok(()) => Ok(format!("removed {what}: nobody knows it any more")),
                Err(error) => {
                    self.suspects.insert(stale);
                    Err(format!("remove {what}, which nobody knows any more: {error}"))
                }
            });
        }
        Ok(outcomes)
    }
}

/// What is to be removed now, and what if the next sweep finds it too.
fn judge(
    links: &[Ours],
    ledgers: &[(&str, Vec<Holding>)],
    now: u64,
    suspects: &BTreeSet<Stale>,
) -> (BTreeSet<Stale>, BTreeSet<Stale>) {
    let names: BTreeSet<&str> = links.iter().map(|link| link.ifname.as_str()).collect();
    let (mut dead, mut found, mut recorded) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (network, holding) in
        ledgers.iter().flat_map(|(network, held)| held.iter().map(move |h| (network, h)))
    {
        let Holding { attachment, committed, since } = holding;
        let ifname = attachment.host_ifname();
        let stale = Stale::Lease {
            network: (*network).into(),
            attachment: attachment.clone(),
            committed: *committed,
        };
        if !committed && now.saturating_sub(*since) >= ADD_PATIENCE {
            dead.insert(stale);
        } else if *committed && !names.contains(ifname.as_str()) {
            found.insert(stale);
        }
        recorded.insert(ifname);
    }
    // One without an alias that has addresses was made by a release that wrote none: a pod, whose record is lost.
    let pods = |link: &&Ours| link.owner.is_none() && !link.addresses.is_empty();
    for link in links.iter().filter(|link| !recorded.contains(&link.ifname) && !pods(link)) {
        let owner = link.owner.as_ref().map(|(_, attachment)| attachment.clone());
        found.insert(Stale::Interface { index: link.index, ifname: link.ifname.clone(), owner });
    }
    let (seen_twice, seen_once) = found.into_iter().partition(|stale| suspects.contains(stale));
    dead.extend::<BTreeSet<Stale>>(seen_twice);
    (dead, seen_once)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Attachment {
        Attachment::new(name, "eth0").expect("valid")
    }

    fn link(name: &str, index: u32) -> Ours {
        let owner = Some(("pods".into(), pod(name)));
        Ours { index, ifname: pod(name).host_ifname(), owner, addresses: Vec::new() }
    }

    fn held(name: &str, committed: bool, since: u64) -> Holding {
        Holding { attachment: pod(name), committed, since }
    }

    /// Who is removed by a sweep at `now`, and by the next if it finds the same.
    fn sweeps(links: &[Ours], held: Vec<Holding>, now: u64) -> [Vec<String>; 2] {
        let ledgers = [("pods", held)];
        let name = |stale: &Stale| match stale {
            Stale::Lease { attachment, .. } => attachment.container_id().to_owned(),
            Stale::Interface { index, .. } => index.to_string(),
        };
        let (first, suspects) = judge(links, &ledgers, now, &BTreeSet::new());
        let (second, _) = judge(links, &ledgers, now, &suspects);
        [first, second].map(|dead| dead.iter().map(name).collect())
    }

    #[test]
    fn a_pod_that_is_there_and_an_add_under_way_are_left_alone() {
        let nobody = [Vec::new(), Vec::new()] as [Vec<String>; 2];
        assert_eq!(sweeps(&[link("a", 7)], vec![held("a", true, 0)], 9999), nobody);
        // Reserved, with and without its pair yet.
        assert_eq!(sweeps(&[link("a", 7)], vec![held("a", false, 9990)], 9999), nobody);
        assert_eq!(sweeps(&[], vec![held("a", false, 9990)], 9999), nobody);
    }

    #[test]
    fn addresses_without_an_interface_are_freed_by_the_second_sweep_that_finds_them_so() {
        let [first, second] = sweeps(&[link("b", 8)], vec![held("a", true, 0), held("b", true, 0)], 9999);
        assert!(first.is_empty());
        assert_eq!(second, ["a"]);
    }

    #[test]
    fn an_add_that_began_long_ago_is_dead_at_once() {
        let [first, _] = sweeps(&[link("a", 7)], vec![held("a", false, 0)], ADD_PATIENCE);
        assert_eq!(first, ["a"]);
    }

    #[test]
    fn a_pod_of_a_release_that_wrote_no_aliases_is_left_alone_without_its_record() {
        let addresses = vec!["10.0.0.1".parse().expect("address")];
        let old = Ours { owner: None, addresses, ..link("a", 7) };
        assert_eq!(sweeps(std::slice::from_ref(&old), Vec::new(), 9999), [Vec::<String>::new(), Vec::new()]);
        let half_made = Ours { addresses: Vec::new(), ..old };
        assert_eq!(sweeps(&[half_made], Vec::new(), 9999)[1], ["7"]);
    }

    #[test]
    fn an_interface_without_a_record_is_removed_by_the_second_sweep_that_finds_that_very_one() {
        let [first, second] = sweeps(&[link("a", 7)], Vec::new(), 9999);
        assert!(first.is_empty());
        assert_eq!(second, ["7"]);
        let (_, suspects) = judge(&[link("a", 7)], &[], 9999, &BTreeSet::new());
        let (dead, _) = judge(&[link("a", 9)], &[], 9999, &suspects);
        assert!(dead.is_empty(), "another one of that name: {dead:?}");
    }
}
