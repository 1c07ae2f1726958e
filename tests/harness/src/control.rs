//! The control plane: the stand-in API server, or a real one where KUBEBUILDER_ASSETS holds one.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::PostParams;
use serde_json::json;

use crate::api::Api;
use crate::layout::{API_PORT, AUTHORITY_FILE, DAEMONS, Layout, SERVICE_CIDRS};
use crate::netns;
use crate::place::Place;
use crate::process::{Process, binary, wait_for};

/// Where kubebuilder keeps its binaries if nobody says otherwise.
const USUAL_ASSETS: &str = "/usr/local/kubebuilder/bin";
/// The definition of ClusterNetworkPolicies.
const CLUSTER_POLICIES: &str = include_str!("../../../manifests/crds/clusternetworkpolicies.yaml");
/// The certificate that comes with a kubeconfig, which the stand-in has no use for: it speaks plain HTTP.
const AUTHORITY: &str = include_str!("../../../cni/api/tests/tls/authority.pem");
const TOKEN: &str = "fairlead";
const PATIENCE: Duration = Duration::from_secs(60);

/// Which API server a cluster runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// `fairlead-apiserver`.
    StandIn,
    /// kube-apiserver, etcd and kube-controller-manager in that directory.
    Kubernetes(PathBuf),
}

impl fmt::Display for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StandIn => f.write_str("fairlead-apiserver (a stand-in)"),
            Self::Kubernetes(dir) => write!(f, "kube-apiserver of {}", dir.display()),
        }
    }
}

impl ControlPlane {
    /// The one to use: kube-apiserver if `$KUBEBUILDER_ASSETS` or the usual directory holds it and etcd.
    ///
    /// # Errors
    /// When kube-controller-manager is not beside them: nobody would then write EndpointSlices, and no Service
    /// would ever have an endpoint. Put it there, or unset KUBEBUILDER_ASSETS.
    pub fn choose() -> Result<Self> {
        let dir = std::env::var_os("KUBEBUILDER_ASSETS").map_or_else(|| USUAL_ASSETS.into(), PathBuf::from);
        let has = |name: &str| dir.join(name).is_file();
        if !(has("kube-apiserver") && has("etcd")) {
            return Ok(Self::StandIn);
        }
        if !has("kube-controller-manager") {
            bail!(
                "{} holds kube-apiserver and etcd, but not kube-controller-manager, without which no Service gets \
                 EndpointSlices: put it there as well, or point KUBEBUILDER_ASSETS at an empty directory",
                dir.display()
            );
        }
        Ok(Self::Kubernetes(dir))
    }

    /// Starts it on the fabric and, for the user's shell, on a loopback port, which is returned; waits until it answers.
    ///
    /// # Errors
    /// When a process can't be started, or the API server does not answer.
    pub fn start(&self, layout: &Layout) -> Result<(Api, SocketAddr, Vec<Process>)> {
        let place = Place::open(&layout.fabric_netns(), &layout.outside_cgroup())?;
        let (mut processes, port) = match self {
            Self::StandIn => stand_in(layout, &place)?,
            Self::Kubernetes(dir) => kubernetes(layout, &place, dir)?,
        };
        fs::write(layout.dir.join(AUTHORITY_FILE), AUTHORITY).context("write the authority's certificate")?;
        self.write_kubeconfig(&layout.node_kubeconfig(), layout.api_address(), "admin")?;
        self.write_kubeconfig(&layout.kubeconfig(), port, "admin")?;
        for daemon in DAEMONS {
            self.write_kubeconfig(&layout.kubeconfig_of(daemon), layout.api_address(), daemon)?;
        }
        let api = Api::new(&layout.kubeconfig())?;
        wait_for("the API server's namespace \"default\"", PATIENCE, || {
            processes.iter_mut().try_for_each(Process::check)?;
            let namespaces = kube::Api::<Namespace>::all(api.client());
            Ok(api.block_on(namespaces.get_opt("default")).ok().flatten())
        })?;
        if let Self::Kubernetes(dir) = self {
            // It wants a server that answers from its first moment on.
            let mut manager = place.command(dir.join("kube-controller-manager"))?;
            manager.arg("--kubeconfig").arg(layout.node_kubeconfig());
            manager.args([
                "--controllers=endpointslice-controller,namespace-controller",
                "--leader-elect=false",
            ]);
            let log = layout.log("kube-controller-manager");
            processes.push(Process::spawn("kube-controller-manager", &mut manager, &log)?);
            define_cluster_policies(&api)?;
        }
        Ok((api, port, processes))
    }

    /// The stand-in takes everyone's word for who it is; a real one knows but one user. As with a service account, the
    /// authority's certificate comes along, so that nobody looks for those of the system: in a container there are none.
    fn write_kubeconfig(&self, file: &Path, server: SocketAddr, user: &str) -> Result<()> {
        let authority = file.with_file_name(AUTHORITY_FILE);
        let (cluster, user) = match self {
            Self::StandIn => (
                json!({ "server": format!("http://{server}"), "certificate-authority": authority }),
                json!({ "token": user }),
            ),
            Self::Kubernetes(_) => (
                json!({ "server": format!("https://{server}"), "insecure-skip-tls-verify": true }),
                json!({ "token": TOKEN }),
            ),
        };
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "fairlead", "cluster": cluster }],
            "users": [{ "name": "admin", "user": user }],
            "contexts": [{ "name": "fairlead", "context": { "cluster": "fairlead", "user": "admin" } }],
            "current-context": "fairlead",
        });
        fs::write(file, serde_json::to_vec_pretty(&kubeconfig)?)
            .with_context(|| format!("write {}", file.display()))
    }
}

/// Installs what the stand-in knows by itself, and waits until it is served.
fn define_cluster_policies(api: &Api) -> Result<()> {
    let definition: CustomResourceDefinition =
        serde_saphyr::from_str(CLUSTER_POLICIES).context("read the definition of ClusterNetworkPolicies")?;
    let definitions = kube::Api::<CustomResourceDefinition>::all(api.client());
    let name = api.block_on(definitions.create(&PostParams::default(), &definition))?.name_any();
    wait_for(&format!("the definition {name}"), PATIENCE, || {
        let status = api.block_on(definitions.get(&name))?.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let served = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
        Ok(served.then_some(()))
    })
}

fn relay(layout: &Layout) -> Result<(Process, SocketAddr)> {
    let mut command = Command::new(binary("fairlead-harness")?);
    netns::join(&mut command, &layout.outside_cgroup())?;
    command.args(["relay", "--target", &layout.api_address().to_string(), "--netns"]);
    command.arg(netns::path(&layout.fabric_netns()));
    let (process, port) = Process::announced("relay", &mut command, &layout.log("relay"))?;
    Ok((process, port.parse().with_context(|| format!("the relay's port {port:?}"))?))
}

/// Starts the stand-in, which is handed a socket of the machine's own namespace: nobody need carry its bytes.
fn stand_in(layout: &Layout, place: &Place) -> Result<(Vec<Process>, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on a loopback port")?;
    let port = listener.local_addr()?;
    let mut command = place.command(binary("fairlead-apiserver")?)?;
    command.args(["--listen", &layout.api_address().to_string(), "--service-cidr", SERVICE_CIDRS]);
    command.arg("--kubeconfig-out").arg(layout.node_kubeconfig());
    command.arg("--listen-stdin");
    let log = layout.log("apiserver");
    let server =
        Process::spawn_with("fairlead-apiserver", &mut command, OwnedFd::from(listener).into(), &log)?;
    Ok((vec![server], port))
}

fn kubernetes(layout: &Layout, place: &Place, dir: &Path) -> Result<(Vec<Process>, SocketAddr)> {
    let files = layout.dir.join("kubernetes");
    fs::create_dir_all(&files)?;
    let key = files.join("service-account.key");
    let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").output();
    let made = made.context("run openssl to make the service account key that kube-apiserver demands")?;
    if !made.status.success() {
        bail!("openssl: {}", String::from_utf8_lossy(&made.stderr).trim_end());
    }
    let tokens = files.join("tokens.csv");
    fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n"))?;

    let mut etcd = place.command(dir.join("etcd"))?;
    etcd.arg("--data-dir").arg(files.join("etcd")).arg("--unsafe-no-fsync");
    let etcd = Process::spawn("etcd", &mut etcd, &layout.log("etcd"))?;

    let mut server = place.command(dir.join("kube-apiserver"))?;
    let address = layout.api_address().ip();
    server.args(["--etcd-servers=http://127.0.0.1:2379", "--authorization-mode=AlwaysAllow"]);
    server.args([
        "--disable-admission-plugins=ServiceAccount",
        "--service-account-issuer=https://fairlead.invalid",
    ]);
    server.args(["--allow-privileged=true", &format!("--service-cluster-ip-range={SERVICE_CIDRS}")]);
    server.args([&format!("--advertise-address={address}"), &format!("--secure-port={API_PORT}")]);
    server.arg("--cert-dir").arg(files.join("certificates")).arg("--token-auth-file").arg(tokens);
    server.arg("--service-account-key-file").arg(&key).arg("--service-account-signing-key-file").arg(&key);
    let server = Process::spawn("kube-apiserver", &mut server, &layout.log("apiserver"))?;
    let (relay, port) = relay(layout)?;
    Ok((vec![etcd, server, relay], port))
}
