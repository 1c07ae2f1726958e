//! Daemons in a container: as a runtime would run them, with few capabilities, a root directory that holds their
//! executable and no more, and a /proc/sys that they may not write.
//!
//! Of the node they see the directory that the harness keeps for it, control groups, and the node's own /proc/sys/net
//! elsewhere. Their network namespace is the node's, as with hostNetwork.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::layout::NodeLayout;
use crate::place::Place;

/// Where the node's /proc/sys/net is seen, less the last step: what the daemons are to be told by `--proc-sys`.
pub const PROC_SYS: &str = "/host/proc/sys";

/// Every capability that there is, by its number (capabilities(7), linux/capability.h).
const CAPABILITIES: &str = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE \
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE \
    SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL \
    SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE";

/// What a node has before any container: a bpf filesystem, as systemd mounts one. Under a lock: of two that begin at once,
/// the second would mount another over the first's.
const NODE: &str = r#"
mkdir -p "$2"
exec 9> "$2.lock"
flock 9
mountpoint -q "$2" || mount -t bpf -o mode=0700 bpf "$2"
exec 9>&-
exec unshare --mount --propagation private sh -euc "$1" contain "$@"
"#;

/// What a runtime does in the container's mount namespace.
const CONTAINER: &str = r#"
shift 2
executable=$1 root=$2 node=$3 kubeconfig=$4 drop=$5
shift 5
mkdir -p "$root"
mount -t tmpfs tmpfs "$root"
mkdir -p "$root/bin" "$root/proc" "$root/host/proc/sys/net" "$root/sys/fs/cgroup" "$root$node"
cp "$executable" "$root/bin/daemon"
mount --rbind "$node" "$root$node"
for file in "$kubeconfig" "${kubeconfig%/*}/authority.pem"; do
  touch "$root$file"
  mount --bind "$file" "$root$file"
done
mount --rbind /sys/fs/cgroup "$root/sys/fs/cgroup"
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --bind /proc/sys/net "$root/host/proc/sys/net"
mount -o remount,ro "$root"
exec capsh --chroot="$root" --drop="$drop" --shell=/bin/daemon -- "$@"
"#;

/// Why daemons can't be contained here, if they can't.
pub fn missing() -> Option<&'static str> {
    let runs = Command::new("capsh").arg("--print").output().is_ok_and(|output| output.status.success());
    (!runs).then_some("there is no capsh: cargo xtask setup installs it")
}

/// A command that runs the executable in a container with these capabilities, whose arguments come after.
///
/// # Errors
/// When there is no such capability, or the control group is gone.
pub(crate) fn command(
    place: &Place,
    node: &NodeLayout,
    executable: &Path,
    kubeconfig: &Path,
    capabilities: &[String],
) -> Result<Command> {
    let all: Vec<&str> = CAPABILITIES.split(' ').collect();
    if let Some(unknown) = capabilities.iter().find(|name| !all.contains(&name.as_str())) {
        bail!("there is no capability {unknown}");
    }
    let dropped = all.into_iter().filter(|name| capabilities.iter().all(|kept| kept != name));
    let dropped: Vec<_> = dropped.map(|name| format!("cap_{}", name.to_lowercase())).collect();
    let mut command = place.command("sh")?;
    command.args(["-euc", NODE, "contain", CONTAINER]).arg(node.bpffs()).arg(executable);
    command.arg(node.dir.with_extension("root")).arg(&node.dir).arg(kubeconfig).arg(dropped.join(","));
    Ok(command)
}
