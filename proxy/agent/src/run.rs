//! `fairlead-proxy run`: puts the parts together, in the order that keeps traffic flowing.
//!
//! Programs are loaded first and swapped into the links that are there; then endpoints and Services are
//! adopted from the maps; only then do watches and the socket open. Until every first list is done nothing
//! but additions happen. When the agent ends, everything stays as it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use axum::Router;
use fairlead_abi::maps;
use fairlead_core::reconcile::{Capacity, Reconciler};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::fcntl::{Flock, FlockArg};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{Agent, Facts};
use crate::cli::Run;
use crate::dataplane::endpoints::Endpoints;
use crate::dataplane::links::Links;
use crate::dataplane::{self, Pins, load};
use crate::sync::{Progress, Sync};
use crate::uplinks::Uplinks;
use crate::watch::{Update, Watches};
use crate::{health, metrics, node, socket, watch};

/// How often the agent looks for interfaces that came or went without a word.
const PATROL: Duration = Duration::from_secs(30);

/// Runs the agent until it is told to end.
///
/// # Errors
/// When something is missing that it can't do without; whatever ran before goes on.
pub async fn run(options: Run) -> Result<()> {
    let _lock = lock(&options.state_dir)?;
    let node_name = node_name(&options)?;
    let client = client(options.kubeconfig.as_deref()).await?;
    let healthz = bind(options.healthz_bind_address).await?;
    let metrics = bind(options.metrics_bind_address).await?;
    let cgroup = match &options.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => cgroup_root()?,
    };

    let (agent, uplinks, services) = program(&options, &node_name, &cgroup)?;
    let listener = socket::listen(&options.socket())
        .with_context(|| format!("listen at {}", options.socket().display()))?;
    let agent = Arc::new(agent);

    let (updates, received) = mpsc::channel();
    let sync = {
        let mut uplinks = uplinks;
        let node = move |addresses: &[std::net::IpAddr]| uplinks.apply(addresses);
        Sync::new(Arc::clone(&agent.reconciler), services, node, Arc::clone(&agent.progress))
    };
    let ended = Arc::new(tokio::sync::Notify::new());
    let notify = Arc::clone(&ended);
    std::thread::Builder::new().name("sync".into()).spawn(move || {
        let _ended = NotifyOnDrop(notify);
        sync.run(&received);
    })?;

    tokio::spawn(socket::serve(listener, Arc::clone(&agent)));
    tokio::spawn(serve(healthz, health::router(Arc::clone(&agent))));
    tokio::spawn(serve(metrics, metrics::router(Arc::clone(&agent))));
    tokio::spawn(patrol(Arc::clone(&agent.endpoints), updates.clone()));
    let watches = Arc::clone(&agent.watches);
    tokio::spawn(async move {
        watch::follow_all(client, &watches, |update| updates.send(update).is_ok()).await;
    });

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = ended.notified() => bail!("the sync thread ended by itself"),
    }
    tracing::info!("ending; programs and maps stay in place");
    let _ = fs::remove_file(options.socket());
    Ok(())
}

/// Brings programs and maps into the kernel, or adopts those that are there, and reads back what they hold.
fn program(options: &Run, node_name: &str, cgroup: &Path) -> Result<(Agent, Uplinks, ServicesMaps)> {
    let pins = Pins::new(&options.bpffs);
    load::mount_bpffs(&options.bpffs)?;
    let loaded = load::load(fairlead_object::OBJECT, &pins, &options.sizes())?;
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
    let load::Loaded { maps, programs, sizes } = loaded;
    let mut links = Links::new(programs, &pins, options.datapath)?;

    node::enable_forwarding().context("switch forwarding on")?;
    node::reserve_ports(options.snat_ports).context("reserve the ports for masquerading")?;
    let host_netns = dataplane::netns_cookie().context("read the network namespace's cookie")?;

    let adopted = links.adopt()?;
    links.attach_sockets(cgroup)?;
    let (attachment, verified) = (links.attachment().to_string(), links.programs().verified());
    let links = Arc::new(Mutex::new(links));
    let directory = options.state_dir.join("endpoints");
    let endpoints = Endpoints::restore(maps.endpoints, maps.marks, Arc::clone(&links), directory)?;
    let mut reconciler = Reconciler::new(node_name, capacity);
    reconciler.adopt(&maps.services)?;
    tracing::info!(
        node = node_name,
        attachment,
        "programs loaded: {adopted} links adopted, {} endpoints restored",
        endpoints.len()
    );

    let uplinks = Uplinks::new(maps.config, links, options.uplink.clone(), options.snat_ports, host_netns);
    let agent = Agent {
        facts: Facts {
            node_name: node_name.to_owned(),
            started: SystemTime::now(),
            attachment,
            pins: pins.maps().display().to_string(),
            cgroup: cgroup.display().to_string(),
            programs: verified,
            sizes,
        },
        reconciler: Arc::new(Mutex::new(reconciler)),
        progress: Arc::new(Mutex::new(Progress::default())),
        node: uplinks.view(),
        watches: Arc::new(Watches::default()),
        endpoints: Arc::new(Mutex::new(endpoints)),
        counters: maps.counters,
        fill: maps.fill,
        answers: health::Answers::default(),
    };
    Ok((agent, uplinks, maps.services))
}

type ServicesMaps = dataplane::services::KernelMaps;

/// Says that its thread ended, also by a panic.
struct NotifyOnDrop(Arc<tokio::sync::Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

/// Removes endpoints of pods that ended without a word, and has the uplinks looked at again.
async fn patrol(endpoints: Arc<Mutex<Endpoints>>, updates: mpsc::Sender<Update>) {
    let mut rounds = tokio::time::interval(PATROL);
    rounds.tick().await;
    loop {
        rounds.tick().await;
        let endpoints = Arc::clone(&endpoints);
        let collect = move || endpoints.lock().unwrap_or_else(std::sync::PoisonError::into_inner).collect();
        match tokio::task::spawn_blocking(collect).await {
            Ok(Ok(0)) => {}
            Ok(Ok(count)) => tracing::info!("{count} endpoints removed whose interface is gone"),
            Ok(Err(e)) => tracing::warn!("look for endpoints whose interface is gone: {e}"),
            Err(e) => tracing::error!("look for endpoints whose interface is gone: {e}"),
        }
        if updates.send(Update::Tick).is_err() {
            return;
        }
    }
}

async fn serve(listener: TcpListener, router: Router) {
    if let Err(e) = axum::serve(listener, router).await {
        tracing::error!("serve HTTP: {e}");
    }
}

async fn bind(address: std::net::SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen at {address}"))
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

async fn client(kubeconfig: Option<&Path>) -> Result<Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let kubeconfig =
                Kubeconfig::read_from(path).with_context(|| format!("read kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("use kubeconfig {}", path.display()))?
        }
        None => Config::incluster().context("use the pod's service account; see --kubeconfig")?,
    };
    // The watches back off by themselves; the client's own retries would hold a request for minutes.
    config.default_retry = false;
    Client::try_from(config).context("make a client of the API")
}

/// Where the root of the cgroup2 hierarchy is mounted.
fn cgroup_root() -> Result<PathBuf> {
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
