//! A guest: an initramfs with everything in it, and what it prints once booted.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::debian::Kernel;
use crate::command::{output, root, run};

/// The first process, which runs the rest.
const INIT: &str = include_str!("init.sh");
/// Modules that Fairlead or its tests use where they are no part of the image.
const MODULES: [&str; 8] =
    ["veth", "sch_ingress", "cls_bpf", "vxlan", "dummy", "bridge", "sch_tbf", "sch_fq_codel"];
/// How long a guest may take.
const PATIENCE: &str = "3600";
/// What runs in it of this workspace.
const OURS: [&str; 4] = ["fairlead-proxy", "fairlead-cni", "fairlead-harness", "fairlead-apiserver"];
/// What of this machine runs in it.
const THEIRS: [&str; 3] = ["ip", "openssl", "kubectl"];

/// Certificates of authorities, where Debian has them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// What is to be run.
pub(super) struct Binaries {
    /// The directory of this workspace's binaries.
    pub(super) directory: PathBuf,
    /// The program tests.
    pub(super) programs: String,
}

/// What a guest said.
pub(super) struct Outcome {
    /// What `fairlead-proxy check` found.
    pub(super) check: Option<Value>,
    /// How many program tests passed and failed.
    pub(super) programs: Option<(u64, u64)>,
    /// How many cells of the demo's table passed and failed.
    pub(super) demo: Option<(u64, u64)>,
}

/// Boots the kernel, and reads what came of it.
pub(super) fn boot(kernel: &Kernel, binaries: &Binaries, place: &Path, demo: bool) -> Result<Outcome> {
    let archive = place.join("initramfs.cpio");
    pack(kernel, binaries, &place.join("initramfs"), &archive)?;
    let log = place.join("console.log");
    let console = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut command = Command::new("timeout");
    command.args([PATIENCE, "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]);
    command.args(["-m", "3072", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"]);
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&archive);
    let demo = if demo { "fairlead_demo" } else { "" };
    command.args(["-append", &format!("console=ttyS0 quiet panic=-1 mitigations=off no_timer_check {demo}")]);
    let status = command.stdin(Stdio::null()).stdout(console.try_clone()?).stderr(console).status();
    status.context("run qemu-system-x86_64")?;
    let said = fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said).replace('\r', "");
    if !said.contains("## boot") {
        bail!("the kernel did not come up: see {}", log.display());
    }
    Ok(read(&said))
}

/// Makes the archive of the guest's files.
fn pack(kernel: &Kernel, binaries: &Binaries, tree: &Path, archive: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    for directory in ["bin", "proc", "sys", "dev", "tmp", "run", "root", "etc", "fairlead", "modules", "mnt"]
    {
        let directory = tree.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    }
    fs::write(tree.join("init"), INIT)?;
    run(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n")?;
    let busybox = find("busybox")?;
    fs::copy(&busybox, tree.join("bin/busybox"))?;
    run(Command::new(&busybox).args(["--install", "-s"]).arg(tree.join("bin")))?;
    // Its links lead to where it is here.
    for link in fs::read_dir(tree.join("bin"))?.flatten().filter(|entry| entry.path().is_symlink()) {
        fs::remove_file(link.path())?;
        std::os::unix::fs::symlink("busybox", link.path())?;
    }
    for name in THEIRS {
        take(&find(name)?, &tree.join("bin").join(name), tree)?;
    }
    for name in OURS {
        let to = tree.join("fairlead").join(name);
        take(&binaries.directory.join(name), &to, tree)?;
        run(Command::new("strip").arg("--strip-debug").arg(&to))?;
    }
    let programs = tree.join("fairlead/programs");
    take(Path::new(&binaries.programs), &programs, tree)?;
    run(Command::new("strip").arg("--strip-debug").arg(&programs))?;
    run(Command::new("cp").arg("-r").arg(root().join("manifests")).arg(tree.join("manifests")))?;

    let authorities = tree.join("etc/ssl/certs");
    fs::create_dir_all(&authorities).with_context(|| format!("create {}", authorities.display()))?;
    // Without any, the API's clients do not start.
    run(Command::new("cp").arg(AUTHORITIES).arg(&authorities))?;

    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let mut command = Command::new("modprobe");
        command.arg("-d").arg(&kernel.root).args(["-S", &kernel.release, "--show-depends", module]);
        // What the image has built in has no file.
        let steps = output(&mut command).unwrap_or_default();
        let paths = steps
            .lines()
            .filter_map(|line| line.strip_prefix("insmod "))
            .map(|path| PathBuf::from(path.trim()));
        order.extend(paths.filter(|path| !order.contains(path)).collect::<Vec<_>>());
    }
    let mut names = String::new();
    for path in order {
        let name = path.file_name().context("a module without name")?;
        fs::copy(&path, tree.join("modules").join(name))?;
        names += &format!("{}\n", name.to_string_lossy());
    }
    fs::write(tree.join("modules/order"), names)?;
    let archive = archive.display();
    let all = format!("find . | cpio --create --format=newc --quiet > '{archive}'");
    run(Command::new("sh").args(["-c", &all]).current_dir(tree))
}

/// The path of a command.
fn find(name: &str) -> Result<PathBuf> {
    let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"];
    let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
    paths.find(|path| path.is_file()).with_context(|| format!("there is no {name}"))
}

/// Copies an executable, and the libraries that it loads to where it looks for them.
fn take(source: &Path, to: &Path, tree: &Path) -> Result<()> {
    fs::copy(source, to).with_context(|| format!("copy {}", source.display()))?;
    // Of one that is linked statically this says so, and fails.
    let libraries = output(Command::new("ldd").arg(source)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = tree.join(library.trim_start_matches('/'));
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(library, &place).with_context(|| format!("copy {library}"))?;
    }
    Ok(())
}

/// Reads the console's text.
fn read(said: &str) -> Outcome {
    let part = |begin: &str, end: &str| -> Option<&str> {
        let (_, rest) = said.split_once(begin)?;
        rest.split_once(end).map(|(part, _)| part)
    };
    let check = part("## check\n", "\n## check done").and_then(|text| serde_json::from_str(text).ok());
    let count = |text: &str| {
        let line = text.lines().rev().find(|line| line.contains(" passed") && line.contains(" failed"))?;
        Some((number_before(line, " passed")?, number_before(line, " failed")?))
    };
    Outcome {
        check,
        programs: part("## programs\n", "## programs done").and_then(count),
        demo: part("## demo\n", "## demo done").and_then(count),
    }
}

/// The number that stands before `word`.
fn number_before(line: &str, word: &str) -> Option<u64> {
    line.split_once(word)?.0.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_printed_is_read() {
        let said = "## boot 6.1.0\n## check\n{\"problems\": []}\n## check done 0\n## programs\nrunning 3 tests\n\
                    test result: FAILED. 2 passed; 1 failed; 0 ignored\n## programs done 1\n## demo\n\
                    48 passed, 0 failed\n## demo done 0\n## end\n";
        let outcome = read(said);
        assert_eq!(outcome.check, Some(serde_json::json!({ "problems": [] })));
        assert_eq!((outcome.programs, outcome.demo), (Some((2, 1)), Some((48, 0))));
    }

    #[test]
    fn what_a_guest_did_not_come_to_is_not_made_up() {
        let outcome =
            read("## boot 5.10.0\n## check\nno json\n## check done 1\n## programs\nrunning 3 tests\n");
        assert!(outcome.check.is_none() && outcome.programs.is_none() && outcome.demo.is_none());
    }
}
