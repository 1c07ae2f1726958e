//! The server as kubectl sees it: the real binary, with its validation on, against a real listener.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use fairlead_apiserver::{Server, kubeconfig};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tempfile::TempDir;

const MANIFEST: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {tier: front}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30080}]
---
apiVersion: v1
kind: Pod
metadata: {name: p1, labels: {app: web}}
spec:
  nodeName: n1
  containers: [{name: c, image: example, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: guard}
spec:
  tier: Admin
  priority: 7
  subject: {namespaces: {}}
  egress: [{action: Deny, to: [{networks: [192.0.2.0/24]}]}]
";

/// kubectl with a kubeconfig of its own and nothing of the user's.
struct Kubectl {
    home: TempDir,
    client: Client,
    _server: Server,
}

impl Kubectl {
    async fn new() -> Self {
        let (server, client) = crate::common::start().await;
        let home = TempDir::new().unwrap();
        std::fs::write(home.path().join("kubeconfig"), kubeconfig(&server.url())).unwrap();
        Self { home, client, _server: server }
    }

    fn file(&self, content: &str) -> String {
        let path = self.home.path().join("manifest.yaml");
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        let (home, arguments): (&Path, Vec<String>) =
            (self.home.path(), arguments.iter().map(ToString::to_string).collect());
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .env("HOME", home)
            .env("KUBECONFIG", home.join("kubeconfig"))
            .stdin(Stdio::null());
        let run = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
        run.expect(
            "kubectl is needed for this test: install it (Debian: kubernetes-client) or put it on the PATH",
        )
    }

    /// Runs kubectl, which must succeed; its standard output.
    async fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "kubectl {}\n{out}{err}", arguments.join(" "));
        out.into_owned()
    }
}

#[track_caller]
fn assert_row(table: &str, words: &[&str]) {
    let found = table.lines().any(|line| {
        let cells: Vec<&str> = line.split_whitespace().collect();
        words.iter().all(|word| cells.contains(word))
    });
    assert!(found, "no row with {words:?} in\n{table}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kubectl: run make test"]
async fn kubectl_applies_prints_describes_and_deletes() {
    let kubectl = Kubectl::new().await;
    let file = kubectl.file(MANIFEST);
    let applied = kubectl.run(&["apply", "-f", &file]).await;
    assert_eq!(applied.matches(" created").count(), 5, "{applied}");
    let again = kubectl.run(&["apply", "-f", &file]).await;
    assert_eq!(again.matches(" unchanged").count(), 5, "{again}");

    // Not by kubectl, whose older versions know no subresources.
    let status = json!({"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "image": "", "imageID": ""}]});
    let pods: Api<Pod> = Api::namespaced(kubectl.client.clone(), "default");
    let patch = Patch::Merge(json!({"status": status}));
    pods.patch_status("p1", &PatchParams::default(), &patch).await.unwrap();
    assert_row(
        &kubectl.run(&["get", "pods", "-o", "wide"]).await,
        &["p1", "1/1", "Running", "10.244.0.2", "n1"],
    );
    assert_row(&kubectl.run(&["get", "svc"]).await, &["web", "NodePort", "80:30080/TCP"]);
    assert_row(&kubectl.run(&["get", "nodes"]).await, &["n1"]);
    assert_row(&kubectl.run(&["get", "netpol"]).await, &["closed", "app=web"]);
    assert_row(&kubectl.run(&["get", "cnp"]).await, &["guard", "Admin", "7"]);
    assert_row(&kubectl.run(&["get", "ns"]).await, &["kube-system", "Active"]);
    crate::common::eventually("the endpoint in a slice", async || {
        let slices = kubectl.run(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web"]).await;
        slices.contains("10.244.0.2").then(|| assert_row(&slices, &["IPv4", "8080", "10.244.0.2"]))
    })
    .await;

    let described = kubectl.run(&["describe", "service", "web"]).await;
    assert!(described.contains("30080/TCP") && described.contains("app=web"), "{described}");
    kubectl.run(&["describe", "node", "n1"]).await;
    kubectl.run(&["describe", "pod", "p1"]).await;
    let version = kubectl.run(&["version", "--client", "-o", "json"]).await;
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    let minor =
        version["clientVersion"]["minor"].as_str().unwrap().trim_end_matches('+').parse::<u32>().unwrap();
    // Until 1.21 kubectl describes slices of discovery.k8s.io/v1beta1 alone, which no server has any more.
    if minor > 20 {
        kubectl.run(&["describe", "endpointslices"]).await;
    }
    kubectl.run(&["describe", "networkpolicy", "closed"]).await;

    kubectl.run(&["delete", "pod", "p1", "--force", "--grace-period=0"]).await;
    kubectl.run(&["delete", "-f", &file, "--ignore-not-found"]).await;
    let left = kubectl.run(&["get", "svc,pods,nodes,networkpolicies", "-o", "name"]).await;
    assert_eq!(left.trim(), "service/kubernetes");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kubectl: run make test"]
async fn kubectl_apply_removes_what_the_manifest_no_longer_says() {
    let kubectl = Kubectl::new().await;
    for server_side in ["--server-side=false", "--server-side=true"] {
        let file = kubectl.file(MANIFEST);
        kubectl.run(&["apply", server_side, "--force-conflicts=false", "-f", &file]).await;
        let changed = MANIFEST
            .replace(", labels: {tier: front}", "")
            .replace("name: http, port: 80", "name: http, port: 81");
        let file = kubectl.file(&changed);
        kubectl.run(&["apply", server_side, "-f", &file]).await;
        let service = kubectl.run(&["get", "svc", "web", "-o", "json"]).await;
        let service: serde_json::Value = serde_json::from_str(&service).unwrap();
        assert_eq!(service["metadata"]["labels"], serde_json::Value::Null, "{server_side}");
        let ports = service["spec"]["ports"].as_array().unwrap();
        assert_eq!((ports.len(), ports[0]["port"].as_u64()), (1, Some(81)), "{server_side}");
        kubectl.run(&["delete", "-f", &file, "--force", "--grace-period=0"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs kubectl: run make test"]
async fn kubectl_reports_what_the_server_refuses() {
    let kubectl = Kubectl::new().await;
    let file = kubectl.file(&MANIFEST.replace("nodePort: 30080", "nodePort: 80"));
    let output = kubectl.output(&["create", "-f", &file]).await;
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("spec.ports[0].nodePort: Invalid value: 80"), "{err}");
    let output = kubectl.output(&["get", "pod", "absent"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("pods \"absent\" not found"));
}
