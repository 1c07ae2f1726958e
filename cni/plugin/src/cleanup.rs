//! `fairlead-cni cleanup`: takes away what the plugin and the daemon have made on this node, and says what it was.
//!
//! The configuration goes first, so that no runtime wires another pod with it; then the ways to other nodes, pods if that
//! is asked for, and the files. A daemon that still runs puts it all back. Running it again finds nothing, and is no error.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use fairlead_net::agent::DEFAULT_SOCKET;
use fairlead_net::config::{DEFAULT_DATA_DIR, DEFAULT_NODE_FILE, PLUGIN};
use fairlead_net::exec;
use fairlead_net::gc::{self, Agent};
use fairlead_net::network::{Change, diff};
use fairlead_net::node::CONFLIST;
use fairlead_net::ours::{self, Ours};
use fairlead_net::store::Store;
use fairlead_net::sysctl::PROC_SYS;
use fairlead_net::tables::Tables;
use serde_json::json;

/// The command line of `cleanup`.
#[derive(Args)]
pub(crate) struct Options {
    /// Where runtimes look for CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Where runtimes look for network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf_dir: PathBuf,
    /// Where the plugin is told about this node
    #[arg(long, value_name = "FILE", default_value = DEFAULT_NODE_FILE)]
    node_file: PathBuf,
    /// Where the plugin records addresses in use
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// The agent's socket, which is told of pods that go
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SOCKET)]
    agent_socket: PathBuf,
    /// Take the network away from pods that are still there
    #[arg(long)]
    pods: bool,
    /// Say what there is, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// How it is printed
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Something of ours on the node.
enum Item {
    File(PathBuf),
    Directory(PathBuf),
    Network(Change),
    Pod(Ours),
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Directory(path) => write!(f, "directory {} and what is in it", path.display()),
            Self::Network(Change::Remove(item) | Change::Set(item)) => write!(f, "{item}"),
            Self::Pod(Ours { ifname, owner, addresses, .. }) => {
                write!(f, "interface {ifname}")?;
                owner.as_ref().map_or(Ok(()), |(_, attachment)| write!(f, " of {attachment}"))?;
                addresses.iter().try_for_each(|address| write!(f, " {address}"))
            }
        }
    }
}

/// Finds what there is, and removes it unless that is not asked for.
pub(crate) fn run(options: &Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (tables, network) = runtime.block_on(async {
        let tables = Tables::open(Path::new(PROC_SYS)).context("open rtnetlink")?;
        let actual = tables.read().await.context("read the routes")?;
        anyhow::Ok((tables, diff(&BTreeSet::new(), &actual)))
    })?;
    let pods = ours::survey().context("list the pods' interfaces")?;

    let mut items: Vec<Item> = there([options.cni_conf_dir.join(CONFLIST), options.cni_bin_dir.join(PLUGIN)]);
    items.extend(network.into_iter().map(Item::Network));
    let mut left = Vec::new();
    let keeps = !pods.is_empty() && !options.pods;
    if keeps {
        for pod in &pods {
            left.push((Item::Pod(pod.clone()).to_string(), "goes with its pod, or with --pods"));
        }
    } else {
        items.extend(pods.into_iter().map(Item::Pod));
    }
    items.extend(there([options.node_file.clone()]));
    if options.data_dir.is_dir() {
        if keeps {
            left.push((
                format!("directory {}", options.data_dir.display()),
                "knows the addresses of those pods",
            ));
        } else {
            items.push(Item::Directory(options.data_dir.clone()));
        }
    }
    left.push(("settings, such as net.ipv4.ip_forward".to_owned(), "stay until the next boot"));
    left.push((
        "the Node's condition NetworkUnavailable".to_owned(),
        "is False until somebody else writes it",
    ));

    let mut outcomes = Vec::new();
    for item in &items {
        let outcome = if options.dry_run {
            None
        } else {
            Some(match item {
                Item::Network(change) => runtime.block_on(tables.apply(change)).map_err(anyhow::Error::from),
                Item::Pod(pod) => detach(pod, options),
                Item::File(path) => gone(fs::remove_file(path)),
                Item::Directory(path) => gone(fs::remove_dir_all(path)),
            })
        };
        outcomes.push((item.to_string(), outcome));
    }
    if let (false, Some(parent)) = (options.dry_run, options.node_file.parent()) {
        // With the agent's files in it, it is not empty.
        let _ = fs::remove_dir(parent);
    }
    tell(options, &outcomes, &left)
}

fn there<const N: usize>(paths: [PathBuf; N]) -> Vec<Item> {
    paths.into_iter().filter(|path| fs::symlink_metadata(path).is_ok()).map(Item::File).collect()
}

/// Removes the pair and what is recorded of it.
fn detach(pod: &Ours, options: &Options) -> Result<()> {
    let Some((network, attachment)) = &pod.owner else {
        exec::unwire(&pod.ifname)?;
        return Ok(());
    };
    let store = Store::open(&options.data_dir, network)?;
    let socket = options.agent_socket.exists().then_some(options.agent_socket.as_path());
    Ok(gc::detach(&store, &mut Agent::at(socket), attachment)?)
}

fn gone(result: io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn tell(options: &Options, outcomes: &[(String, Option<Result<()>>)], left: &[(String, &str)]) -> Result<()> {
    let failed = outcomes.iter().filter(|(_, outcome)| matches!(outcome, Some(Err(_)))).count();
    if options.output == Output::Json {
        let found: Vec<_> = outcomes
            .iter()
            .map(|(what, outcome)| {
                let error =
                    outcome.as_ref().and_then(|outcome| Some(format!("{:#}", outcome.as_ref().err()?)));
                json!({ "what": what, "removed": matches!(outcome, Some(Ok(()))), "error": error })
            })
            .collect();
        let left: Vec<_> = left.iter().map(|(what, how)| json!({ "what": what, "how": how })).collect();
        println!("{:#}", json!({ "dryRun": options.dry_run, "found": found, "leftAlone": left }));
    } else {
        for (what, outcome) in outcomes {
            match outcome {
                None => println!("found      {what}"),
                Some(Ok(())) => println!("removed    {what}"),
                Some(Err(error)) => println!("failed     {what}: {error:#}"),
            }
        }
        for (what, how) in left {
            println!("left alone {what}: {how}");
        }
        match (outcomes.len(), options.dry_run) {
            (0, _) => println!("nothing of fairlead-cni's is here"),
            (found, true) => println!("{found} found, nothing removed"),
            (found, false) => println!("{} removed, {failed} failed", found - failed),
        }
    }
    anyhow::ensure!(failed == 0, "{failed} things could not be removed");
    Ok(())
}
