//! A cluster of kind with Fairlead on it: a real API server, kubelets and container runtime, in Docker containers.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{exists, output, root, run, say};
use crate::image;

/// The cluster's name, and kubectl's context for it.
const CLUSTER: &str = "fairlead";
const CONTEXT: &str = "kind-fairlead";
/// What must be installed, and where that is explained.
const TOOLS: [(&str, &str); 3] = [
    ("docker", "docs.docker.com/engine/install"),
    ("kind", "kind.sigs.k8s.io/docs/user/quick-start"),
    ("kubectl", "kubernetes.io/docs/tasks/tools"),
];
/// How long each part of the cluster may take to get ready.
const PATIENCE: &str = "--timeout=5m";

/// Builds the image, makes the cluster, installs Fairlead and shows that it works; leaves the cluster if it is to be
/// kept.
pub(crate) fn up(keep: bool) -> Result<()> {
    check_tools()?;
    let directory = image::directory();
    image::make(false, &directory)?;
    say("making the cluster");
    let manifests = root().join("manifests");
    run(kind(["create", "cluster"]).arg("--config").arg(manifests.join("kind/cluster.yaml")))?;
    let shown = show(&image::archive(&directory), &manifests).inspect_err(|_| tell());
    if keep {
        say(&format!("kept: kubectl --context {CONTEXT}; kind delete cluster --name {CLUSTER} removes it"));
        return shown;
    }
    shown.and(run(&mut kind(["delete", "cluster"])))
}

/// Installs Fairlead on the nodes and has the smoke test run.
fn show(archive: &Path, manifests: &Path) -> Result<()> {
    let nodes = output(&mut kind(["get", "nodes"]))?;
    for node in nodes.split_whitespace() {
        // systemd mounts it on machines, but not in containers, which these nodes are.
        let mount = "mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf";
        run(Command::new("docker").args(["exec", node, "sh", "-c", mount]))?;
    }
    say("loading the image and installing");
    run(kind(["load", "image-archive"]).arg(archive))?;
    run(kubectl(["apply", "-k"]).arg(manifests.join("overlays/kind")))?;
    run(&mut kubectl(["-n", "kube-system", "rollout", "status", "daemonset/fairlead", PATIENCE]))?;
    run(&mut kubectl(["wait", "--for=condition=Ready", "nodes", "--all", PATIENCE]))?;
    run(&mut kubectl(["-n", "kube-system", "rollout", "status", "deployment/coredns", PATIENCE]))?;
    say("smoke test");
    run(kubectl(["apply", "-f"]).arg(manifests.join("kind/smoke.yaml")))?;
    run(&mut kubectl(["rollout", "status", "deployment/smoke", PATIENCE]))?;
    run(&mut kubectl(["wait", "--for=condition=complete", "job/smoke", PATIENCE]))?;
    say("the smoke test has passed");
    Ok(())
}

/// Runs those of the Kubernetes end-to-end tests that are about the network, by their binary (`e2e.test` of the release
/// that the cluster is of), on the cluster that was kept.
pub(crate) fn end_to_end(binary: &Path) -> Result<()> {
    let list = root().join("manifests/kind/e2e.txt");
    let text = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let [focus, skip] = selection(&text);
    let kubeconfig = output(&mut kind(["get", "kubeconfig"]))?;
    let file = image::directory().join("kubeconfig");
    fs::write(&file, kubeconfig).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new(binary);
    command.arg("--kubeconfig").arg(&file).args(["--provider", "local", "--ginkgo.timeout", "3h"]);
    run(command.arg("--ginkgo.focus").arg(focus).arg("--ginkgo.skip").arg(skip))
}

/// What to run and what not of it, each as one regular expression.
fn selection(list: &str) -> [String; 2] {
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (skipped, run): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with("- "));
    let skipped: Vec<_> = skipped.iter().map(|line| line.trim_start_matches("- ")).collect();
    [run.join("|"), skipped.join("|")]
}

fn check_tools() -> Result<()> {
    for (tool, explained) in TOOLS {
        if !exists(tool) {
            bail!("there is no {tool}: see {explained}");
        }
    }
    let mut docker = Command::new("docker");
    let daemon = docker.arg("info").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !daemon.is_ok_and(|status| status.success()) {
        bail!("docker can't reach its daemon: docker info says why");
    }
    Ok(())
}

/// Shows what there is to see of why something failed.
fn tell() {
    for mut command in [
        kubectl(["get", "nodes,pods", "-A", "-o", "wide"]),
        kubectl(["-n", "kube-system", "logs", "daemonset/fairlead", "--all-containers", "--tail=100"]),
    ] {
        // That which failed is the error.
        let _ = run(&mut command);
    }
}

fn kind<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new("kind");
    command.args(arguments).args(["--name", CLUSTER]);
    command
}

fn kubectl<const N: usize>(arguments: [&str; N]) -> Command {
    let mut command = Command::new("kubectl");
    command.args(["--context", CONTEXT]).args(arguments);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_what_to_run_and_what_not() {
        let list = "# why\nServices should serve\n\nDNS should\n- \\[Disruptive\\]\n- LoadBalancer\n";
        assert_eq!(selection(list), ["Services should serve|DNS should", "\\[Disruptive\\]|LoadBalancer"]);
    }
}
