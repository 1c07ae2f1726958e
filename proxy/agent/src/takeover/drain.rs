//! Connections of before, which stay with the kernel's connection tracking until they end: a thread that knows them.
//!
//! ```text
//!   connection tracking ── events: new, gone ──┐
//!            └──────────── its table, each second ──▶ known ──▶ flow table: entries that are the stack's
//!   nftables ───────────── kube-proxy's rules, our table        CONFIG: a bit that says that there may be some
//! ```
//!
//! State, not history: each look at the table puts right what events have missed. It begins before the first frontend is
//! written, when there are rules of kube-proxy's, or connections that are translated, or our table from before; it ends
//! when there are no rules and no such connections, and takes our table away. Otherwise it looks now and then whether
//! rules have come.

use std::collections::{HashMap, HashSet};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fairlead_abi::{Flow, FlowKey, FrontendKey, config_flags, flow_flags, protocol};
use serde::{Deserialize, Serialize};

use super::conntrack::{self, Connection, Event};
use super::entries::{self, Numbered};
use super::netlink::Socket;
use super::rules::{DRAIN_TABLE, Inventory, Ruleset};
use super::ruleset;
use crate::dataplane::tracked::TrackedFlows;
use crate::dataplane::{DataplaneError, Pins};
use crate::errors::chain;

/// How often the table is looked at, unless that takes more than a twentieth of the time.
const PERIOD: Duration = Duration::from_secs(1);
const SHARE: u32 = 20;
/// How often the thread looks whether there is something to do.
const IDLE: Duration = Duration::from_secs(30);
/// How long a command waits for a look.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections of before, for the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrainView {
    /// Whether connection tracking has, or may come to have, connections to Services.
    pub draining: bool,
    /// How many it has.
    pub left: usize,
    /// Whether rules of kube-proxy's are there.
    pub rules: bool,
    /// What failed last.
    pub error: Option<String>,
}

/// Bits of the node's configuration ([`fairlead_abi::Config::flags`]), held while the configuration is written.
pub type Flags = Arc<Mutex<u32>>;

/// Tells who waits that a look is over.
type Done = mpsc::Sender<()>;

/// The running thread.
pub struct Drain {
    view: Arc<Mutex<DrainView>>,
    looks: Mutex<mpsc::Sender<Done>>,
}

impl Drain {
    /// Enters the connections that there are, and starts the thread. `is_programmed` says whether all frontends are written.
    ///
    /// # Errors
    /// When a map can't be opened or the thread not started. That connection tracking can't be read is only told: then
    /// there is none.
    pub fn start(
        pins: &Pins,
        flags: Flags,
        is_programmed: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self, DataplaneError> {
        let view: Arc<Mutex<DrainView>> = Arc::default();
        let (looks, asked) = mpsc::channel();
        let mut watcher = Watcher {
            flows: TrackedFlows::open(pins)?,
            flags,
            view: Arc::clone(&view),
            is_programmed: Box::new(is_programmed),
            events: None,
            known: HashMap::new(),
        };
        watcher.look(true);
        let run = move || watcher.run(&asked);
        let started = std::thread::Builder::new().name("drain".into()).spawn(run);
        started.map_err(|e| DataplaneError::new("start", "the thread that watches connections", e))?;
        Ok(Self { view, looks: Mutex::new(looks) })
    }

    /// How it stands.
    pub fn view(&self) -> DrainView {
        lock(&self.view).clone()
    }

    /// Has the thread look now, and waits for it, though not for long.
    pub fn look(&self) -> DrainView {
        let (done, over) = mpsc::channel();
        // It ends only with the agent.
        if lock(&self.looks).send(done).is_ok() {
            let _ = over.recv_timeout(PATIENCE);
        }
        self.view()
    }
}

/// A connection that has been entered.
#[derive(Clone, Copy, Debug)]
struct Known {
    connection: Connection,
    backend: Numbered,
    /// Whether it was made through a Service.
    is_service: bool,
}

struct Watcher {
    flows: TrackedFlows,
    flags: Flags,
    view: Arc<Mutex<DrainView>>,
    is_programmed: Box<dyn Fn() -> bool + Send>,
    /// There while connections are followed.
    events: Option<Socket>,
    known: HashMap<FlowKey, Known>,
}

impl Watcher {
    fn run(mut self, asked: &mpsc::Receiver<Done>) {
        let mut next = Instant::now() + PERIOD;
        loop {
            if self.events.is_none() {
                let done = match asked.recv_timeout(IDLE) {
                    Ok(done) => Some(done),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                self.look(false);
                tell(done);
                next = Instant::now() + PERIOD;
                continue;
            }
            let done = match asked.try_recv() {
                Ok(done) => Some(done),
                Err(mpsc::TryRecvError::Empty) => None,
                Err(mpsc::TryRecvError::Disconnected) => return,
            };
            self.follow();
            if done.is_some() || Instant::now() >= next {
                let began = Instant::now();
                self.look(false);
                next = Instant::now() + PERIOD.max(SHARE * began.elapsed());
            }
            tell(done);
        }
    }

    /// Takes up what has been told meanwhile.
    fn follow(&mut self) {
        let Some(mut socket) = self.events.take() else { return };
        let mut told = Vec::new();
        let heard = conntrack::next(&mut socket, |event| told.push(event));
        self.events = Some(socket);
        let is_programmed = (self.is_programmed)();
        for event in told {
            let done = match event {
                Event::New(connection) if connection.is_translated => self.take(&connection, is_programmed),
                // A connection to a frontend that nobody has translated goes nowhere: the next packet is ours.
                Event::New(connection) => self.release(&connection.original),
                Event::Gone(connection) => self.forget(&connection.original),
            };
            self.note(done);
        }
        if heard.is_err() {
            // Some were lost: the table says which.
            self.look(true);
        }
    }

    /// Looks at rules and connections, and brings what is entered to that.
    fn look(&mut self, is_first: bool) {
        let looked = self.try_look(is_first);
        self.note(looked);
    }

    fn try_look(&mut self, is_first: bool) -> Result<(), DataplaneError> {
        let rules = ruleset::read().map_err(|e| DataplaneError::new("read", "the rules of nftables", e))?;
        let inventory = Inventory::of(&rules, true);
        lock(&self.view).rules = !inventory.is_nothing();
        let has_table = rules.tables.iter().any(|(_, name)| name == DRAIN_TABLE);
        let was_following = self.events.is_some();
        let has_traces = was_following || !inventory.is_nothing() || has_table;
        if !(has_traces || is_first && conntrack::is_at_work()) {
            return if is_first { self.finish(&rules) } else { Ok(()) };
        }
        if self.events.is_none() {
            // Before the table is read, so that nothing falls between.
            let events = conntrack::subscribe();
            self.events = Some(events.map_err(|e| DataplaneError::new("follow", "connection tracking", e))?);
        }
        let mut translated = Vec::new();
        let listed = conntrack::list(|connection| {
            if connection.is_translated {
                translated.push(connection);
            }
        });
        listed.map_err(|e| DataplaneError::new("read", "the table of connections", e))?;
        if is_first && inventory.is_nothing() && !has_table && translated.is_empty() {
            self.events = None;
            return self.finish(&rules);
        }
        self.set_flag(true)?;
        self.bring(&translated, is_first || !was_following)?;
        let left = self.known.values().filter(|known| known.is_service && !known.connection.is_over).count();
        {
            let mut view = lock(&self.view);
            (view.draining, view.left) = (true, left);
        }
        lock(&self.view).error = None;
        if (self.is_programmed)() && inventory.is_empty() && left == 0 {
            tracing::info!("no connection of before is left with connection tracking");
            self.events = None;
            return self.finish(&rules);
        }
        Ok(())
    }

    /// Enters what is there and forgets what is not. `anew` says that entries may be there which are not known.
    fn bring(&mut self, translated: &[Connection], anew: bool) -> Result<(), DataplaneError> {
        let is_programmed = (self.is_programmed)();
        let there: HashSet<FlowKey> = translated.iter().map(|connection| connection.original).collect();
        let gone: Vec<FlowKey> = self.known.keys().filter(|key| !there.contains(key)).copied().collect();
        gone.iter().try_for_each(|key| self.forget(key))?;
        translated.iter().try_for_each(|connection| self.take(connection, is_programmed))?;
        if anew {
            let keys = translated.iter().flat_map(|connection| [connection.original, connection.reply]);
            let keys: HashSet<FlowKey> = keys.collect();
            for (key, flow) in self.flows.all()? {
                if flow.flags & flow_flags::TRACKED != 0 && !keys.contains(&key) {
                    self.flows.remove(&key)?;
                }
            }
        }
        Ok(())
    }

    /// Enters a connection, or brings its entries up to date.
    fn take(&mut self, connection: &Connection, is_programmed: bool) -> Result<(), DataplaneError> {
        let before = self.known.get(&connection.original).copied();
        let is_service = before.is_some_and(|known| known.is_service)
            || is_programmed && self.is_service(&connection.original);
        let mut backend = before.map_or_else(Numbered::default, |known| known.backend);
        if connection.original.protocol == protocol::UDP && is_programmed && is_service {
            let Some(found) = self.backend(connection, backend) else {
                return self.abandon(&connection.original);
            };
            backend = found;
        }
        // What a connection has left tells of datagrams only.
        let is_datagram = connection.original.protocol == protocol::UDP;
        let is_same = before.is_some_and(|known| {
            known.connection.reply == connection.reply
                && known.connection.is_closing == connection.is_closing
                && !is_datagram
                && known.backend == backend
        });
        self.known.insert(connection.original, Known { connection: *connection, backend, is_service });
        if is_same {
            return Ok(());
        }
        for (key, flow) in entries::of(connection, backend, self.flows.now()) {
            self.enter(&key, &flow)?;
        }
        Ok(())
    }

    /// Enters a flow, unless another has the key that is not connection tracking's. What does not fit is a connection that
    /// is told by the configuration's bit alone.
    fn enter(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), DataplaneError> {
        if self.flows.enter(key, flow)? {
            return Ok(());
        }
        match self.flows.get(key) {
            Some(held) if held.flags & flow_flags::TRACKED != 0 => self.flows.replace(key, flow),
            _ => Ok(()),
        }
    }

    /// The number of the connection's backend; none if its Service has it no more.
    fn backend(&self, connection: &Connection, before: Numbered) -> Option<Numbered> {
        if before.id != 0 {
            return (self.flows.generation(before.id) == before.generation).then_some(before);
        }
        let Connection { original, reply, .. } = connection;
        let backends = self.flows.backends_of(&frontend_of(original)).or_else(|| {
            self.flows.backends_of(&FrontendKey {
                address: self.flows.node_address(original.destination),
                ..frontend_of(original)
            })
        })?;
        let is_it = |(_, backend): &&(u32, fairlead_abi::Backend)| {
            (backend.address, backend.port) == (reply.source, reply.source_port) && backend.has_tenant()
        };
        let (id, backend) = backends.iter().find(is_it)?;
        Some(Numbered { id: *id, generation: backend.generation })
    }

    /// Whether the tuple dials a Service: a frontend, another port of a ClusterIP, or a NodePort at another of the node's
    /// addresses.
    fn is_service(&self, original: &FlowKey) -> bool {
        let key = frontend_of(original);
        let node = self.flows.node_address(original.destination);
        self.flows.backends_of(&key).is_some()
            || self.flows.is_cluster_ip(original.destination)
            || self.flows.backends_of(&FrontendKey { address: node, ..key }).is_some()
    }

    /// Has the next packet of a connection be Fairlead's.
    fn abandon(&mut self, original: &FlowKey) -> Result<(), DataplaneError> {
        let removed = Socket::open().and_then(|mut socket| conntrack::remove(&mut socket, original));
        removed.map_err(|e| DataplaneError::new("remove", "a connection whose backend is gone", e))?;
        self.forget(original)
    }

    /// The same for one that connection tracking has without a translation, if it is to a frontend.
    fn release(&mut self, original: &FlowKey) -> Result<(), DataplaneError> {
        let held = self.flows.get(original);
        if held.is_some_and(|flow| flow.flags & flow_flags::TRACKED != 0) {
            self.abandon(original)
        } else {
            Ok(())
        }
    }

    fn forget(&mut self, original: &FlowKey) -> Result<(), DataplaneError> {
        let known = self.known.remove(original);
        if let Some(known) = known {
            self.flows.remove(&known.connection.reply)?;
        }
        self.flows.remove(original)
    }

    /// There is nothing left to follow, nor to keep for it.
    fn finish(&mut self, rules: &Ruleset) -> Result<(), DataplaneError> {
        let rest = Inventory::of(rules, false);
        let removed = if rest.is_empty() { Ok(()) } else { ruleset::remove(&rest) };
        removed.map_err(|e| DataplaneError::new("remove", "rules that old connections needed", e))?;
        if rules.tables.iter().any(|(_, name)| name == DRAIN_TABLE) {
            let removed = ruleset::remove_drain();
            removed.map_err(|e| DataplaneError::new("remove", format!("table inet {DRAIN_TABLE}"), e))?;
        }
        self.known.clear();
        self.bring(&[], true)?;
        self.set_flag(false)?;
        *lock(&self.view) = DrainView::default();
        Ok(())
    }

    fn set_flag(&mut self, on: bool) -> Result<(), DataplaneError> {
        let flags = Arc::clone(&self.flags);
        let mut flags = lock(&flags);
        let wanted = if on { *flags | config_flags::DRAINING } else { *flags & !config_flags::DRAINING };
        *flags = wanted;
        self.flows.set_flag(config_flags::DRAINING, on)
    }

    fn note(&self, result: Result<(), DataplaneError>) {
        let error = result.err().map(|e| chain(&e));
        let mut view = lock(&self.view);
        if let Some(error) = error.as_ref().filter(|error| view.error.as_ref() != Some(error)) {
            tracing::warn!("connections of before: {error}");
        }
        if error.is_some() {
            view.error = error;
        }
    }
}

fn frontend_of(original: &FlowKey) -> FrontendKey {
    FrontendKey {
        address: original.destination,
        port: original.destination_port,
        protocol: original.protocol,
        reserved: 0,
    }
}

/// Who waits no more has been told by the time.
fn tell(done: Option<Done>) {
    if let Some(done) = done {
        let _ = done.send(());
    }
}

/// A panic elsewhere leaves these as they were between two steps, which is a state like any other.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
