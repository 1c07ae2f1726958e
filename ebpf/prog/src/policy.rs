//! Policies: whether a client may have a flow to a server ([`judge`]).
//!
//! One rule for every packet of a flow, in either direction: the client's egress policy and the server's ingress policy
//! must both admit it, as far as the two are local pods. The client is whoever began the flow, by its address before
//! masquerading, the server the chosen backend.

use core::mem;
use core::ptr;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap};
use fairlead_abi::{
    Address, Asked, Cell, CellKey, Counter, DropEvent, Endpoint, Flow, FlowKey, Isolation, PeerKey,
    PolicyState, Reason, RowKey, event_flags, flow_flags, identities, policies, rows, state_flags, verdicts,
};
use fairlead_flow::life;

use crate::clock::{self, SECOND};
use crate::packet::{Fragment, Packet};
use crate::verdict::Outcome;
use crate::{endpoint, events, lent, observe, table};

#[map]
static ISOLATION: Array<Isolation> = Array::pinned(1024, 0);

#[map]
static ISOLATED: Array<u64> = Array::pinned(1024, 0);

#[map]
static POLICIES: Array<u32> = Array::pinned(2048, 0);

#[map]
static PEERS: LpmTrie<PeerKey, u32> = LpmTrie::pinned(131_072, 0);

#[map]
static CELLS: HashMap<CellKey, Cell> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

#[map]
static ROWS: LpmTrie<RowKey, u32> = LpmTrie::pinned(65_536, 0);

#[map]
static POLICY_STATE: Array<PolicyState> = Array::pinned(1, 0);

/// What was admitted lately: an [`Admitted`] for each question. Not pinned: the next programs ask anew.
#[map]
static ADMITTED: LruHashMap<Asked, u64> = LruHashMap::with_max_entries(16_384, 0);

/// How long a pod's datagrams may be answers to what came before it was under a policy.
const LATELY: u64 = 2 * SECOND;

const OPEN: Isolation = Isolation { ingress: policies::OPEN, egress: policies::OPEN };
const CLOSED: Isolation = Isolation { ingress: policies::CLOSED, egress: policies::CLOSED };

/// How [`judge`] is to read a tuple.
pub(crate) mod reading {
    /// As it stands.
    pub(crate) const WHOLE: u32 = 0;
    /// The packet does not say its port, or what carries it: only a policy that admits all that there is admits it.
    pub(crate) const OPAQUE: u32 = 1;
    /// Not counted: the packet has been judged by another tuple.
    pub(crate) const AGAIN: u32 = 2;
}

/// What [`judge`] says of a flow that is admitted.
#[derive(Clone, Copy)]
pub(crate) struct Admission(i32);

impl Admission {
    /// No policy was asked, nor would one be about its replies.
    const PLAIN: i32 = 0;
    /// Its replies may need an entry in the flow table: without one they are judged as if they began a flow, and who
    /// answers is under a policy for what it sends, or who is answered under one for what it is sent.
    const GUARDED: i32 = 1;
    /// It is to have entries, so that it stays admitted.
    const KEPT: i32 = 2;
    /// A policy was asked, and none would be about its replies.
    const JUDGED: i32 = 3;

    /// Whether a policy has a say in it, in either direction.
    #[inline(always)]
    pub(crate) fn is_of_policies(self) -> bool {
        self.0 != Self::PLAIN
    }

    /// Whether a policy would be asked about its replies.
    #[inline(always)]
    pub(crate) fn is_guarded(self) -> bool {
        matches!(self.0, Self::GUARDED | Self::KEPT)
    }

    /// Whether it must have entries whatever policies would say.
    #[inline(always)]
    pub(crate) fn is_kept(self) -> bool {
        self.0 == Self::KEPT
    }
}

/// What all policies have in common. To be read before any of their maps: the agent writes it last.
#[inline(always)]
pub(crate) fn state() -> PolicyState {
    POLICY_STATE.get(0).map_or(PolicyState::default(), at_once)
}

/// Whether flows that were admitted stay so.
#[inline(always)]
pub(crate) fn keeps() -> bool {
    state().flags & state_flags::KEEP != 0
}

/// The policies of a local pod.
#[inline(always)]
pub(crate) fn of(endpoint: &Endpoint) -> Isolation {
    ISOLATION.get(endpoint.index).map_or(CLOSED, at_once)
}

/// Whether the pod came under a policy so lately that its flows from before may have no entries yet.
#[inline(always)]
pub(crate) fn is_late(endpoint: &Endpoint) -> bool {
    ISOLATED.get(endpoint.index).is_some_and(|since| clock::now().saturating_sub(*since) < LATELY)
}

/// Whether that may be so, and policies have a say in who the pod's clients are.
#[inline(always)]
pub(crate) fn is_late_server(endpoint: &Endpoint) -> bool {
    of(endpoint).ingress != policies::OPEN && is_late(endpoint)
}

/// Whether no policy selects the pod, in either direction.
#[inline(always)]
pub(crate) fn is_free(endpoint: &Endpoint) -> bool {
    of(endpoint) == OPEN
}

/// Whether policies have no say in what the two exchange plainly, as far as they are local pods.
#[inline(always)]
pub(crate) fn is_idle(sender: Option<&Endpoint>, receiver: Option<&Endpoint>) -> bool {
    sender.is_none_or(is_free) && receiver.is_none_or(is_free) && !(sender.or(receiver).is_some() && keeps())
}

/// Whether the packet goes on with a connection, and the policies that have a say in what its sender sends its receiver,
/// as far as they are local pods, have said yes to that lately: whatever connection it is of, it passes, and begins none.
#[inline(always)]
pub(crate) fn goes_on(sender: Option<&Endpoint>, receiver: Option<&Endpoint>, packet: &Packet) -> bool {
    let is_later = life::is_of_connections(packet.tuple.protocol)
        && !packet.tcp.opens()
        && packet.fragment == Fragment::Whole;
    if !is_later || keeps() {
        return false;
    }
    let egress = sender.map_or(policies::OPEN, |sender| of(sender).egress);
    let ingress = receiver.map_or(policies::OPEN, |receiver| of(receiver).ingress);
    if egress == policies::OPEN && ingress == policies::OPEN {
        return true;
    }
    let goes_on = (egress == policies::OPEN
        || fairlead_admits(&packet.tuple, egress, event_flags::EGRESS) != 0)
        && (ingress == policies::OPEN || fairlead_admits(&packet.tuple, ingress, 0) != 0);
    if goes_on {
        observe::count(Counter::PolicyJudged);
    }
    goes_on
}

/// Whether the policy, the client's with [`event_flags::EGRESS`], has admitted the tuple lately. Out of line as a global
/// function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_admits(tuple: *const FlowKey, policy: u32, side: u32) -> u32 {
    // SAFETY: the caller passes a tuple of its own; the verifier wants to see that it is there.
    let Some(tuple) = (unsafe { tuple.as_ref() }) else {
        return 0;
    };
    // Who claims to be the node is looked at more closely.
    let identity = Admitted::find(&question(tuple, policy, side), state().revision);
    u32::from(identity == Some(identities::UNKNOWN))
}

/// What the policy, the client's with [`event_flags::EGRESS`], is asked about the tuple.
#[inline(always)]
fn question(tuple: &FlowKey, policy: u32, side: u32) -> Asked {
    Asked {
        peer: if side & event_flags::EGRESS != 0 { tuple.destination } else { tuple.source },
        policy,
        port: tuple.destination_port,
        protocol: tuple.protocol,
        reserved: 0,
    }
}

/// Whether the flow needs no look at the policies: they have not changed since it was admitted, or do not matter to it.
#[inline(always)]
pub(crate) fn is_settled(flow: &Flow) -> bool {
    let state = state();
    flow.revision == state.revision
        || state.flags & state_flags::KEEP != 0
        || flow.flags & flow_flags::NODE != 0
}

/// Eight bytes, read in one step, as the agent writes them.
#[inline(always)]
fn at_once<T: Copy>(value: &T) -> T {
    const {
        assert!(size_of::<T>() == size_of::<u64>() && align_of::<T>() == align_of::<u64>());
    }
    // SAFETY: as large and as aligned as a word; only integers are read so.
    unsafe {
        let word = ptr::from_ref(value).cast::<u64>().read_volatile();
        mem::transmute_copy(&word)
    }
}

/// Whether policies admit the flow of `trial`'s tuple, from client to server. If not, `trial` says which does not, and
/// why, for [`events::tell`].
#[inline(always)]
pub(crate) fn judge(trial: &mut DropEvent, reading: u32) -> Result<Admission, Reason> {
    Outcome(fairlead_judge(trial, reading)).number().map(Admission)
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_judge(trial: *mut DropEvent, reading: u32) -> i32 {
    // SAFETY: the caller passes a trial of its own; the verifier wants to see that it is there.
    let Some(trial) = (unsafe { trial.as_mut() }) else {
        return Outcome::from(Reason::PolicyUnknown).0;
    };
    let client = endpoint::find(&trial.tuple.source);
    let server = endpoint::find(&trial.tuple.destination);
    let is_local = client.or(server).is_some();
    let (client, server) = (client.map_or(OPEN, of), server.map_or(OPEN, of));
    let is_guarded = server.egress != policies::OPEN || client.ingress != policies::OPEN;
    let admitted = if is_local && keeps() {
        Admission::KEPT
    } else if is_guarded {
        Admission::GUARDED
    } else {
        Admission::PLAIN
    };
    if client.egress == policies::OPEN && server.ingress == policies::OPEN {
        return admitted;
    }
    let admitted = if admitted == Admission::PLAIN { Admission::JUDGED } else { admitted };
    if reading & reading::AGAIN == 0 {
        observe::count(Counter::PolicyJudged);
    }
    if client.egress != policies::OPEN {
        trial.flags |= event_flags::EGRESS;
        trial.policy = client.egress;
        let asked = fairlead_ask(trial, reading);
        if asked < 0 {
            return asked;
        }
    }
    if server.ingress != policies::OPEN {
        trial.flags &= !event_flags::EGRESS;
        trial.policy = server.ingress;
        let asked = fairlead_ask(trial, reading);
        if asked < 0 {
            return asked;
        }
    }
    admitted
}

/// Asks the policy that `trial` names: the client's, with [`event_flags::EGRESS`], or else the server's. Out of line as
/// a global function.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_ask(trial: *mut DropEvent, reading: u32) -> i32 {
    // SAFETY: as in `fairlead_judge`.
    let Some(trial) = (unsafe { trial.as_mut() }) else {
        return Outcome::from(Reason::PolicyUnknown).0;
    };
    let is_egress = trial.flags & event_flags::EGRESS != 0;
    let asked = question(&trial.tuple, trial.policy, trial.flags);
    let is_opaque = reading & reading::OPAQUE != 0;
    let revision = state().revision;
    if !is_opaque && let Some(identity) = Admitted::find(&asked, revision) {
        trial.identity = identity;
        return Outcome::SOMETHING.0;
    }
    trial.identity = identity_of(&asked.peer);
    let Some(row) = row_of(trial.policy, trial.identity & !identities::OWN_NODE) else {
        return unknown(trial);
    };
    let is_uniform = row < rows::FIRST;
    trial.verdict = if is_uniform {
        row
    } else if is_opaque {
        verdicts::DENY_NETWORK
    } else {
        let key = RowKey::new(row, trial.tuple.protocol, trial.tuple.destination_port);
        let Some(verdict) = ROWS.get(&Key::new(rows::PORT_BITS, key)) else {
            return unknown(trial);
        };
        *verdict
    };
    // What a pod exchanges with itself or with its node no NetworkPolicy forbids. What an opaque packet's row says
    // beside that is not known.
    let is_exempt =
        trial.identity & identities::OWN_NODE != 0 || trial.tuple.source == trial.tuple.destination;
    let is_known = is_uniform || !is_opaque;
    let is_allowed = trial.verdict == verdicts::ALLOW;
    if is_allowed && !is_opaque {
        Admitted::note(&asked, revision, trial.identity);
    }
    if is_allowed || trial.verdict == verdicts::DENY_NETWORK && is_exempt && is_known {
        return Outcome::SOMETHING.0;
    }
    Outcome::from(if is_egress { Reason::PolicyEgress } else { Reason::PolicyIngress }).0
}

/// That a question was answered by "allow", as one word, which is read and written in one step: the revision of the
/// policies then, whether the peer is the node itself, and the question's check, since the kernel may reuse an element
/// while a program reads it.
struct Admitted;

impl Admitted {
    /// In the lower half of the word, above the check.
    const OWN_NODE: u32 = identities::OWN_NODE;

    /// The peer's identity, as far as it is noted: [`identities::OWN_NODE`] or none; if the answer still holds.
    #[inline(always)]
    fn find(asked: &Asked, revision: u32) -> Option<u32> {
        let noted = ADMITTED.get_ptr(lent::asked(asked)?)?;
        // SAFETY: the pointer is to an element's aligned word; another key's shows in the check.
        let noted = unsafe { noted.read_volatile() };
        let (then, rest) = ((noted >> 32) as u32, noted as u32);
        let holds = then == revision && rest & !Self::OWN_NODE == asked.check();
        holds.then_some(rest & Self::OWN_NODE)
    }

    /// `revision` is to have been read before the policies were asked.
    #[inline(always)]
    fn note(asked: &Asked, revision: u32, identity: u32) {
        let noted = u64::from(revision) << 32 | u64::from(identity & Self::OWN_NODE | asked.check());
        let Some(key) = lent::asked(asked) else {
            return;
        };
        match ADMITTED.get_ptr_mut(key) {
            // SAFETY: as in `find`; written over another key's it is not believed.
            Some(place) => unsafe { place.write_volatile(noted) },
            // Refused, it is asked again.
            None => {
                let _ = ADMITTED.insert(key, &noted, 0);
            }
        }
    }
}

/// Nothing is known that would answer, and so nothing passes.
#[inline(always)]
fn unknown(trial: &mut DropEvent) -> i32 {
    trial.policy = policies::CLOSED;
    Outcome::from(Reason::PolicyUnknown).0
}

/// Whom an address belongs to.
#[inline(always)]
fn identity_of(address: &Address) -> u32 {
    PEERS.get(&Key::new(Address::BITS, *address)).map_or(identities::UNKNOWN, |identity| *identity)
}

/// What the policy says to an identity; none if that is not known.
#[inline(always)]
fn row_of(policy: u32, identity: u32) -> Option<u32> {
    if policy == policies::CLOSED {
        return None;
    }
    let key = CellKey { policy, identity };
    // One that was reused while it was read has another place by now, or none.
    for _ in 0..2 {
        // SAFETY: both words are read in one step, and another key's show in the check.
        let Some(cell) = (unsafe { CELLS.get(&key) }).map(at_once) else {
            return POLICIES.get(policy).copied();
        };
        if cell.check == key.check() {
            return Some(cell.row);
        }
    }
    None
}

/// Whether policies, which have changed since, still admit the flow whose entry at `key` is `flow`: then that is noted.
/// Whoever calls has found that it is not [`is_settled`].
#[inline(always)]
pub(crate) fn readmit(key: &FlowKey, flow: &Flow, trial: &mut DropEvent) -> Result<(), Reason> {
    Outcome(fairlead_readmit(key, flow, trial)).is_something().map(drop)
}

/// Out of line as a global function: the verifier walks it once, by itself.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_readmit(key: *const FlowKey, flow: *const Flow, trial: *mut DropEvent) -> i32 {
    // SAFETY: the caller passes all three, its own; the verifier wants to see that they are there.
    let (Some(key), Some(flow), Some(trial)) =
        (unsafe { key.as_ref() }, unsafe { flow.as_ref() }, unsafe { trial.as_mut() })
    else {
        return Outcome::from(Reason::PolicyUnknown).0;
    };
    let revision = state().revision;
    trial.tuple = *key;
    trial.flags = 0;
    if flow.flags & flow_flags::REPLY == 0 {
        trial.tuple.destination = flow.destination;
        trial.tuple.destination_port = flow.destination_port;
    } else {
        trial.tuple.source = flow.destination;
        trial.tuple.source_port = flow.destination_port;
        trial.tuple.destination = key.source;
        trial.tuple.destination_port = key.source_port;
        trial.flags = event_flags::REPLY;
    }
    if let Err(reason) = judge(trial, reading::WHOLE) {
        events::tell(trial, reason);
        return Outcome::from(reason).0;
    }
    if let Some(entry) = table::entry(key) {
        // SAFETY: the pointer is to a live element; an integer is written, to another flow's at worst, if the element
        // is reused in this moment.
        unsafe { (*entry).revision = revision };
    }
    Outcome::SOMETHING.0
}
