//! `fairlead-proxy run`: puts the parts together, in the order that keeps traffic flowing.
//!
//! Programs are loaded first and swapped into the links that are there; then endpoints and Services are
//! adopted from the maps; only then do watches and the socket open. Until every first list is done nothing
//! but additions happen. When the agent ends, everything stays as it is.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use axum::Router;
use aya::maps::{MapData, RingBuf};
use fairlead_abi::maps;
use fairlead_core::egress::Egress;
use fairlead_core::reconcile::{Capacity, Reconciler};
use fairlead_core::settings::{NodePortAddresses, Settings};
use fairlead_daemon::repeated::Repeated;
use fairlead_net::netns;
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{Adopted, Agent, Facts};
use crate::cleanup::reserved;
use crate::cli::{Established, Run, SocketLb, Tell};
use crate::dataplane::clients::Clients;
use crate::dataplane::endpoints::Endpoints;
use crate::dataplane::events::DropEvents;
use crate::dataplane::generations::Others;
use crate::dataplane::generations::description::Description;
use crate::dataplane::generations::handover::{Handover, Means};
use crate::dataplane::links::{Datapath, Links};
use crate::dataplane::program_log::ProgramLog;
use crate::dataplane::services::KernelMaps;
use crate::dataplane::{Pins, load};
use crate::in_effect::Turns;
use crate::kernel::{Kernel, Site};
use crate::masquerade::Masquerade;
use crate::pods::{PodApi, PodSockets};
use crate::policy::{Policies, PolicyLoop};
use crate::progress::Progress;
use crate::requests::Requests;
use crate::service_health::{CheckViews, Checks};
use crate::sync::Sync;
use crate::takeover::drain::{self, Drain};
use crate::uplinks::{Fixed, Uplinks};
use crate::watch::{PolicyUpdate, Update, Watches};
use crate::{
    drops, events, health, host_ports, in_effect, interfaces, masquerade, metrics, node, pace,
    service_health, socket, sweep, watch,
};

/// How often the agent looks for interfaces that came or went without a word.
const PATROL: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to end.
///
/// # Errors
/// When something is missing that it can't do without; whatever ran before goes on.
pub async fn run(options: Run) -> Result<()> {
    let settings = settings(&options)?;
    let _lock = lock(&options.state_dir)?;
    let node_name = node_name(&options)?;
    let servers = fairlead_api::Api::connect(options.kubeconfig.as_deref(), &options.api_servers()).await?;
    let client = servers.client.clone();
    let healthz = options.healthz_bind_address.bind().await?;
    let metrics = options.metrics_bind_address.bind().await?;
    let cgroup = options.cgroup.clone().or_else(|| cgroup_root().ok());
    let site = Site {
        bpffs: &options.bpffs,
        proc_sys: &options.proc_sys,
        cgroup: cgroup.as_deref(),
        ports: options.snat_ports,
        without: &options.without_kernel_feature,
    };
    let kernel = Kernel::examine(fairlead_object::OBJECT, &site);
    kernel.accept()?;

    let api = PodApi::new(client.clone());
    let (updates, received) = mpsc::channel();
    let Parts { agent, uplinks, services, masquerade, events } = program(
        &options,
        &node_name,
        (&kernel, cgroup.as_deref()),
        settings,
        (api, servers.view()),
        updates.clone(),
    )?;
    let listener = socket::listen(&options.socket())
        .with_context(|| format!("listen at {}", options.socket().display()))?;
    let agent = Arc::new(agent);

    let (checks, checked) = tokio::sync::watch::channel(Checks::default());
    let sync = {
        let mut uplinks = uplinks;
        let node = move |addresses: &[IpAddr]| uplinks.apply(addresses);
        Sync::new(Arc::clone(&agent.reconciler), services, node, Arc::clone(&agent.progress), checks)
            .telling(Arc::clone(&agent.turns))
    };
    let ended = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&ended);
    std::thread::Builder::new().name("sync".into()).spawn(move || {
        let _ended = NotifyOnDrop(notify);
        pace::run(&received, sync);
    })?;
    let (policy_updates, policies_received) = mpsc::channel();
    let policies = PolicyLoop(Arc::clone(&agent.policies));
    let notify = Arc::clone(&ended);
    std::thread::Builder::new().name("policy".into()).spawn(move || {
        let _ended = NotifyOnDrop(notify);
        pace::run(&policies_received, policies);
    })?;
    let (leaving, left) = mpsc::channel();
    let notify = Arc::clone(&ended);
    std::thread::Builder::new().name("masquerade".into()).spawn(move || {
        let _ended = NotifyOnDrop(notify);
        pace::run(&left, masquerade);
    })?;
    tokio::spawn(follow_drops(events, Arc::clone(&agent)));
    let everybody = Everybody { services: updates, policies: policy_updates, masquerade: leaving };
    let changed = everybody.clone();
    interfaces::follow(move |addresses| changed.interfaces(addresses))
        .unwrap_or_else(|e| tracing::warn!("follow the interfaces: {e}; they are looked at now and then"));

    let shaped = Arc::clone(&agent);
    interfaces::follow_queues(move || shaped.follow_queues()).unwrap_or_else(|e| {
        tracing::warn!("follow the interfaces' queues: {e}; they are looked at now and then");
    });

    tokio::spawn(socket::serve(listener, Arc::clone(&agent)));
    if let Some(listener) = healthz {
        tokio::spawn(serve(listener, health::router(Arc::clone(&agent))));
    }
    if let Some(listener) = metrics {
        let pages = metrics::router(Arc::clone(&agent)).merge(in_effect::router(Arc::clone(&agent)));
        tokio::spawn(serve(listener, pages));
    }
    if options.events == Tell::On {
        tokio::spawn(events::follow(Arc::clone(&agent), client.clone()));
    }
    tokio::spawn(service_health::serve(checked, Arc::clone(&agent.progress), agent.checks.clone()));
    tokio::spawn(patrol(Arc::clone(&agent), everybody.clone()));
    tokio::spawn(follow_pods(Arc::clone(&agent)));
    tokio::spawn(servers.follow());
    let watches = Arc::clone(&agent.watches);
    let service_cidrs = options.service_cidr.is_empty();
    tokio::spawn(async move {
        futures::join!(
            watch::follow_all(&client, &watches, service_cidrs, |update| everybody.update(update)),
            watch::follow_policies(&client, &watches, |update| everybody.policies.send(update).is_ok()),
        );
    });

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended.notified() => bail!("a thread that keeps the maps ended by itself"),
    }
    tracing::info!("ending; programs and maps stay in place");
    let _ = fs::remove_file(options.socket());
    Ok(())
}

/// What the reconciler is to know of the options.
fn settings(options: &Run) -> Result<Settings> {
    let ranges = options.nodeport_ranges().map_err(anyhow::Error::msg)?;
    Ok(Settings {
        nodeport_addresses: ranges.map_or(NodePortAddresses::Primary, NodePortAddresses::Within),
        nodeport_loopback: options.nodeport_loopback,
        service_cidrs: (!options.service_cidr.is_empty()).then(|| options.service_cidr.clone()),
        maglev: options.maglev(),
    })
}

/// The agent, and what belongs to its sync loop.
struct Parts {
    agent: Agent,
    uplinks: Uplinks,
    services: KernelMaps,
    masquerade: Masquerade,
    events: RingBuf<MapData>,
}

/// Brings programs and maps into the kernel, or adopts those that are there, and reads back what they hold. The loop of
/// Services takes `updates`.
fn program(
    options: &Run,
    node_name: &str,
    (kernel, cgroup): (&Kernel, Option<&Path>),
    settings: Settings,
    (api, servers): (PodApi, fairlead_api::View),
    updates: mpsc::Sender<Update>,
) -> Result<Parts> {
    let pods = (options.socket_lb == SocketLb::All).then(|| PodSockets::new(api.clone()));
    let pins = Pins::new(&options.bpffs);
    load::mount_bpffs(&options.bpffs)?;
    let offers = kernel.offers();
    let memory = node::memory().context("read how much memory there is")?;
    let others = Others::find(&options.bpffs, &pins)?;
    let object = fairlead_object::OBJECT;
    let loaded = load::load(object, &pins, &options.sizes(memory), &others.sizes(), offers)?;
    for size in loaded.sizes.iter().filter(|size| size.capacity != size.wanted) {
        tracing::warn!(
            map = size.name,
            "keeps its size, {}, though {} is asked for: it takes effect after fairlead-proxy cleanup",
            size.capacity,
            size.wanted
        );
    }
    let capacity =
        Capacity { slots: loaded.capacity(maps::SLOTS), backends: loaded.capacity(maps::BACKENDS) };
    let load::Loaded { maps, programs, sizes, log } = loaded;
    if let Some(log) = log {
        tokio::spawn(follow_log(log));
    }
    let datapath =
        if options.datapath == Datapath::Auto && !offers.tcx { Datapath::Clsact } else { options.datapath };
    let mut links = Links::new(programs, &pins, datapath)?;

    node::enable_forwarding(&options.proc_sys).context("switch forwarding on (see --proc-sys)")?;
    reserved::reserve(&options.proc_sys, options.snat_ports, &options.state_dir)
        .context("reserve the ports for masquerading (see --proc-sys)")?;
    let host_netns = netns::current_cookie().context("read the network namespace's cookie")?;

    Description::own().write(&pins)?;
    let cgroup = cgroup.filter(|_| offers.sockets);
    let ports = options.snat_ports;
    let means = Means { object, pins: &pins, sizes: &sizes, links: &links, cgroup, ports, offers };
    let handover = Handover::begin(others, &means)?;
    let adopted = links.adopt()?;
    match cgroup {
        Some(cgroup) => links.attach_sockets(cgroup)?,
        None => links.detach_sockets()?,
    }
    let attachment = links.attachment().to_string();
    let (links, clients) = (Arc::new(Mutex::new(links)), Arc::new(Mutex::new(maps.clients)));
    let directory = options.state_dir.join("endpoints");
    let keep = options.policy_established == Established::Keep;
    let turns = Arc::new(Turns::default());
    let policies = Policies::new(node_name, maps.policies, maps.drop_counts, keep, Arc::clone(&turns));
    let policies = Arc::new(policies);
    let endpoints = {
        let (links, clients) = (Arc::clone(&links), Arc::clone(&clients));
        let guard = Box::new(Arc::clone(&policies));
        Endpoints::restore(maps.endpoints, maps.marks, clients, links, guard, directory)?
    };
    policies.adopt(interfaces::local_addresses())?;
    forget_clients(&clients, host_netns, pods.is_some().then_some(&endpoints))?;
    let mut reconciler = Reconciler::new(node_name, capacity, settings);
    reconciler.index_mut().set_local_addresses(interfaces::local_addresses());
    reconciler.index_mut().set_former_addresses(node::addresses_in(&maps.config));
    for registration in endpoints.registrations() {
        if let Some((owner, wanted)) = host_ports::asked_by(registration) {
            reconciler.index_mut().set_host_ports(owner, Some(wanted));
        }
    }
    reconciler.adopt(&maps.services)?;
    tracing::info!(
        node = node_name,
        attachment,
        "programs loaded: {adopted} links adopted, {} endpoints restored",
        endpoints.len()
    );

    let fixed = Fixed {
        uplinks: options.uplink.clone(),
        pod_interfaces: options.pod_interface.clone(),
        ports: options.snat_ports,
        places: maps.flows.places(),
        host_netns,
    };
    let progress: Arc<Mutex<Progress>> = Arc::default();
    let programmed = Arc::clone(&progress);
    let is_programmed =
        move || programmed.lock().unwrap_or_else(PoisonError::into_inner).first_programmed.is_some();
    let flags = drain::Flags::default();
    // Before any frontend is written: what connection tracking has stays there.
    let drain = Drain::start(&pins, Arc::clone(&flags), is_programmed)?;
    let former = node::addresses_in(&maps.config);
    let mut uplinks = Uplinks::new(maps.config, Arc::clone(&clients), Arc::clone(&links), fixed, flags);
    if handover.is_in_place() {
        // The API may be a while, and until then others' programs would go on there, with maps of their own.
        uplinks.apply(&former);
    }
    handover.finish(&pins, options.snat_ports)?;
    let masquerade = Masquerade::new(Egress::new(node_name, options.kept_sources()), maps.egress);
    let reconciler = Arc::new(Mutex::new(reconciler));
    let host_ports = host_ports::Asker::new(updates, Arc::clone(&reconciler), pins.clone());
    let agent = Agent {
        facts: Facts {
            node_name: node_name.to_owned(),
            started: SystemTime::now(),
            attachment,
            pins: pins.maps().display().to_string(),
            cgroup: cgroup
                .map_or("none: no sockets are translated".to_owned(), |path| path.display().to_string()),
            sizes,
            kernel: kernel.view(),
            adopted: Adopted { links: adopted, endpoints: endpoints.len() },
        },
        pins,
        links: Arc::clone(&links),
        reconciler,
        progress,
        node: uplinks.view(),
        masquerade: masquerade.view(),
        watches: Arc::new(Watches::default()),
        endpoints: Arc::new(Mutex::new(endpoints)),
        host_ports,
        policies,
        drops: Arc::default(),
        api,
        pods,
        clients,
        checks: CheckViews::default(),
        counters: maps.counters,
        sweeps: sweep::start(maps.flows).context("start to sweep the flow table")?,
        drain,
        answers: health::Answers::default(),
        requests: Requests::default(),
        turns,
        servers,
        telling: Arc::default(),
        repeated: Repeated::default(),
    };
    Ok(Parts { agent, uplinks, services: maps.services, masquerade, events: maps.events })
}

/// Removes socket clients that an earlier agent left and nobody asks for: all but the host, and the pods' where pods
/// are clients. Which of these stay, the API will tell.
fn forget_clients(clients: &Mutex<Clients>, host: u64, pods: Option<&Endpoints>) -> Result<()> {
    let mut keep = pods.map_or_else(BTreeSet::new, Endpoints::cookies);
    keep.insert(host);
    Ok(clients.lock().unwrap_or_else(PoisonError::into_inner).retain(&keep)?)
}

/// The loops that hear of changes.
#[derive(Clone)]
struct Everybody {
    services: mpsc::Sender<Update>,
    policies: mpsc::Sender<PolicyUpdate>,
    masquerade: mpsc::Sender<masquerade::Update>,
}

impl Everybody {
    /// Tells of the addresses of the node's interfaces; false when nobody hears.
    fn interfaces(&self, addresses: Vec<IpAddr>) -> bool {
        let heard = self.policies.send(PolicyUpdate::Interfaces(addresses.clone())).is_ok()
            && self.masquerade.send(masquerade::Update::Interfaces(addresses.clone())).is_ok();
        heard && self.services.send(Update::Interfaces(addresses)).is_ok()
    }

    /// Tells of a change of what Services are made of; Nodes matter to all.
    fn update(&self, update: Update) -> bool {
        let heard = match &update {
            Update::Node(change) => {
                self.policies.send(PolicyUpdate::Node(change.clone())).is_ok()
                    && self.masquerade.send(masquerade::Update::Node(change.clone())).is_ok()
            }
            _ => true,
        };
        heard && self.services.send(update).is_ok()
    }
}

/// Takes up what the programs tell of drops, for ever.
async fn follow_drops(events: RingBuf<MapData>, agent: Arc<Agent>) {
    let followed = match DropEvents::new(events) {
        Ok(events) => drops::follow(events, agent).await,
        Err(e) => Err(e),
    };
    if let Err(e) = followed {
        tracing::error!("follow what is dropped: {e}; drops are only counted");
    }
}

/// Hands on what the programs say, for ever.
async fn follow_log(log: ProgramLog) {
    if let Err(e) = log.follow().await {
        tracing::error!("follow what the programs say: {e}");
    }
}

/// Follows the node's Pods, where their sockets are translated.
async fn follow_pods(agent: Arc<Agent>) {
    if let Some(pods) = &agent.pods {
        pods.follow(&agent.facts.node_name, &agent.watches, &agent.endpoints).await;
    }
}

/// Says that its thread ended, also by a panic.
struct NotifyOnDrop(Arc<tokio::sync::Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Removes endpoints of pods that ended without a word, and has the interfaces looked at again.
async fn patrol(agent: Arc<Agent>, everybody: Everybody) {
    let repeated = Repeated::default();
    let mut rounds = tokio::time::interval(PATROL);
    rounds.tick().await;
    loop {
        rounds.tick().await;
        let agent = Arc::clone(&agent);
        let look = move || {
            agent.follow_queues();
            (agent.collect(), interfaces::local_addresses())
        };
        match tokio::task::spawn_blocking(look).await {
            Ok((collected, addresses)) => {
                match collected {
                    Ok(0) => {}
                    Ok(count) => tracing::info!("{count} endpoints removed whose interface is gone"),
                    Err(e) => repeated.warn(&format!("look for endpoints whose interface is gone: {e}")),
                }
                if !everybody.interfaces(addresses) {
                    return;
                }
            }
            Err(e) => tracing::error!("look for endpoints whose interface is gone: {e}"),
        }
    }
}

async fn serve(listener: TcpListener, router: Router) {
    if let Err(e) = axum::serve(listener, router).await {
        tracing::error!("serve HTTP: {e}");
    }
}

/// The same where there is such a directory, and nothing otherwise.
///
/// # Errors
/// When an agent runs here.
pub(crate) fn lock_if_there(state_dir: &Path) -> Result<Option<Flock<File>>> {
    state_dir.exists().then(|| lock(state_dir)).transpose()
}

/// Makes sure that no other agent has this state directory, for as long as the result lives.
fn lock(state_dir: &Path) -> Result<Flock<File>> {
    fs::create_dir_all(state_dir).with_context(|| format!("create {}", state_dir.display()))?;
    let path = state_dir.join("agent.lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, e)) => bail!("lock {}: {e}: is another fairlead-proxy running here?", path.display()),
    }
}

fn node_name(options: &Run) -> Result<String> {
    if let Some(name) = &options.hostname_override {
        return Ok(name.clone());
    }
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("read the host name")?;
    Ok(name.trim().to_lowercase())
}

/// Where the root of the cgroup2 hierarchy is mounted.
///
/// # Errors
/// When none is.
pub(crate) fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the mounts")?;
    find_cgroup2(&mounts).context("no cgroup2 hierarchy is mounted; see --cgroup")
}

/// The mount point of the first cgroup2 filesystem in the text of a mountinfo file (proc_pid_mountinfo(5)).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let is_cgroup2 = filesystem.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_root_is_found_wherever_it_is_mounted() {
        let hybrid = "30 29 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(find_cgroup2("30 29 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n"), None);
    }

    #[test]
    fn two_agents_do_not_share_a_state_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let held = lock(directory.path()).expect("locked");
        let error = lock(directory.path()).expect_err("locked twice").to_string();
        assert!(error.contains("another fairlead-proxy"), "{error}");
        drop(held);
        lock(directory.path()).expect("free again");
    }
}
