//! The binary as it is shipped: on hosts of other distributions, which have another C library or none.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host::BINARY;

/// A host without any file but the plugin's binary; none where binaries can't be linked statically.
fn empty_host() -> Option<TempDir> {
    let archive = Command::new("cc").arg("-print-file-name=libc.a").output().expect("ask for the C library");
    if archive.stdout == b"libc.a\n" {
        println!("left out: there is no libc.a to link the binary with");
        return None;
    }
    let root = tempfile::tempdir().expect("directory");
    fs::copy(BINARY, root.path().join("fairlead-cni")).expect("copy the binary");
    Some(root)
}

/// The binary, to be run on that host.
fn command(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).arg("/fairlead-cni").env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

#[test]
#[ignore = "needs root: run make test"]
fn the_plugin_runs_where_there_is_no_file_but_itself() {
    let Some(root) = empty_host() else { return };
    let mut command = command(root.path());
    let output = command.env("CNI_COMMAND", "VERSION").stdin(Stdio::null()).output().expect("run the plugin");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON on stdout");
    assert_eq!(answer["cniVersion"], "1.1.0");
}

/// The daemon, killed when the test ends.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // The second fails only where the first did: the daemon has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root: run make test"]
fn the_daemon_finds_an_api_server_by_its_name_whatever_the_host_looks_names_up_with() {
    let Some(root) = empty_host() else { return };
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let port = listener.local_addr().expect("address").port();
    // Authorities are named, if none: else the host's own are looked for, and must be there.
    let cluster =
        json!({"server": format!("http://api.example:{port}"), "certificate-authority-data": "Cg=="});
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    });
    fs::create_dir(root.path().join("etc")).expect("create /etc");
    for (file, text) in [
        ("kubeconfig", kubeconfig.to_string().as_str()),
        ("etc/hosts", "127.0.0.1 api.example\n"),
        // No module of that name: looked for, it would end the search here.
        ("etc/nsswitch.conf", "hosts: absent [UNAVAIL=return] files dns\n"),
    ] {
        fs::write(root.path().join(file), text).expect(file);
    }
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(listener.accept().map(drop)));
    let mut command = command(root.path());
    command.args(["node", "--hostname-override", "a", "--kubeconfig", "/kubeconfig"]);
    let daemon = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _daemon = Daemon(daemon.expect("start the daemon"));
    let connected = receiver.recv_timeout(Duration::from_secs(10));
    connected.expect("no connection within 10 s").expect("accept");
}
