//! Turns a Debian 12 with rustup's Rust into a machine that builds everything; does nothing the second time.
//!
//! - Debian packages, for the commands that tests, demo and benchmarks call.
//! - promtool, out of Debian's package of Prometheus, whose server would be started if it were installed.
//! - rust-src, from rustup where it can fetch it, else from Debian's package of the same version, which apt
//!   verifies against the archive's signed index.
//! - bpf-linker, built against rustc's own LLVM, so that both read the same bitcode.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use fairlead_toolchain::{BPF_LINKER_VERSION, Toolchain};

use crate::command::{cargo, exists, output, run, say};

/// Commands that tests, demo and benchmarks call, and the Debian packages that have them. The reference CNI plugins
/// are what Fairlead's is chained with and measured beside; of them, portmap calls iptables.
const COMMANDS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("kubectl", "kubernetes-client"),
    ("capsh", "libcap2-bin"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("host-local", "containernetworking-plugins"),
];
/// Debian suites that may carry rust-src of rustc's version, and the keyring that signs them.
const SUITES: &[&str] = &["trixie-backports", "forky", "sid"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs what is missing.
fn install_all(toolchain: &Toolchain) -> Result<()> {
    install_packages()?;
    install_promtool(toolchain)?;
    install_rust_src(toolchain)?;
    install_linker(toolchain)
}

/// The `setup` task.
pub(crate) fn install() -> Result<()> {
    let toolchain = Toolchain::locate()?;
    install_all(&toolchain)?;
    say(&format!("ready: rustc {}, rust-src, {}", toolchain.rustc, toolchain.linker().display()));
    Ok(())
}

fn install_packages() -> Result<()> {
    install_commands(COMMANDS)
}

/// Installs the packages of those commands that are missing.
pub(crate) fn install_commands(commands: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> =
        commands.iter().filter(|(command, _)| !exists(command)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing Debian packages: {}", missing.join(", ")));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    run(Command::new("apt-get").args(install).args(missing).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// Puts the one program where commands are looked for. The package, 19 MB, is fetched and not installed.
fn install_promtool(toolchain: &Toolchain) -> Result<()> {
    if exists("promtool") {
        return Ok(());
    }
    say("fetching promtool out of the Debian package prometheus");
    let scratch = toolchain.linker_root.with_file_name("promtool");
    fs::create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
    let fetched = fetch_promtool(&scratch);
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    fetched
}

fn fetch_promtool(scratch: &Path) -> Result<()> {
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let download = ["-o", "APT::Sandbox::User=root", "download", "-qq", "prometheus"];
    run(Command::new("apt-get").args(download).current_dir(scratch))?;
    let unpacked = scratch.join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(package_in(scratch)?).arg(&unpacked))?;
    run(Command::new("install").arg("-m755").arg(unpacked.join("usr/bin/promtool")).arg("/usr/local/bin"))
}

/// The package that apt has left in a directory.
fn package_in(scratch: &Path) -> Result<PathBuf> {
    let paths = fs::read_dir(scratch)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut packages = paths.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
    packages.next().context("apt-get download leaves the package in the current directory")
}

fn install_rust_src(toolchain: &Toolchain) -> Result<()> {
    if !toolchain.missing().contains(&"rust-src") {
        return Ok(());
    }
    say("installing rust-src from rustup");
    let rustup = Command::new("rustup").args(["component", "add", "rust-src"]).stderr(Stdio::null()).status();
    if rustup.is_ok_and(|status| status.success()) && !toolchain.missing().contains(&"rust-src") {
        return Ok(());
    }
    say("rustup cannot fetch it: looking for Debian's package of the same version");
    let scratch = toolchain.linker_root.with_file_name("rust-src");
    let installed = SUITES.iter().try_fold(false, |done, suite| {
        if done { Ok(true) } else { debian_rust_src(toolchain, suite, &scratch) }
    });
    fs::remove_dir_all(&scratch).with_context(|| format!("remove {}", scratch.display()))?;
    if !installed? {
        bail!("no Debian suite of {SUITES:?} carries rust-src {}; install it by hand", toolchain.rustc);
    }
    Ok(())
}

/// Fetches the suite's rust-src, if it is of rustc's version, and puts it into the sysroot.
fn debian_rust_src(toolchain: &Toolchain, suite: &str, scratch: &Path) -> Result<bool> {
    let apt = Apt::new(suite, scratch)?;
    if run(apt.get().args(["update", "-qq"])).is_err() {
        say(&format!("{suite}: no index"));
        return Ok(false);
    }
    let policy = output(apt.cache().args(["madison", "rust-src"]))?;
    let versions = policy.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
    let wanted = |version: &&str| version.split(['+', '-', '~']).next() == Some(&toolchain.rustc);
    let Some(version) = versions.into_iter().find(wanted) else {
        say(&format!("{suite}: no rust-src {}", toolchain.rustc));
        return Ok(false);
    };
    say(&format!("{suite}: rust-src {version}"));
    run(apt.get().args(["download", "-qq", &format!("rust-src={version}")]).current_dir(scratch))?;
    let unpacked = scratch.join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(package_in(scratch)?).arg(&unpacked))?;
    let library = unpacked.join(format!("usr/src/rustc-{}/library", toolchain.rustc));
    let place = toolchain.rust_src();
    let parent = place.parent().context("the library lies in a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    run(Command::new("cp").arg("-a").arg("--no-target-directory").arg(&library).arg(&place))?;
    Ok(true)
}

/// apt, looking at one suite only, with lists of its own.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    pub(crate) fn new(suite: &str, scratch: &Path) -> Result<Self> {
        let archives =
            output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE) $(CODENAME)"]))?;
        let archive = archives
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(site, _)| !site.contains("security"))
            .map(|(site, _)| site)
            .context("apt knows no archive: configure one in /etc/apt")?;
        let lists = scratch.join("lists");
        fs::create_dir_all(lists.join("partial")).with_context(|| format!("create {}", lists.display()))?;
        let sources = scratch.join("suite.list");
        let line = format!("deb [signed-by={KEYRING}] {archive} {suite} main\n");
        fs::write(&sources, line).with_context(|| format!("write {}", sources.display()))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
            // The download runs as root: the sandbox user cannot read the scratch directory.
            "APT::Sandbox::User=root".to_owned(),
        ];
        Ok(Self { options: options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]).collect() })
    }

    pub(crate) fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.args(&self.options);
        command
    }

    pub(crate) fn cache(&self) -> Command {
        let mut command = Command::new("apt-cache");
        command.args(&self.options);
        command
    }
}

fn install_linker(toolchain: &Toolchain) -> Result<()> {
    if !toolchain.missing().contains(&"bpf-linker") {
        return Ok(());
    }
    say(&format!(
        "building bpf-linker {BPF_LINKER_VERSION} against rustc's LLVM {} (about a minute)",
        toolchain.llvm
    ));
    let library = toolchain.sysroot.join("lib");
    let prefix = toolchain.linker_root.join("llvm");
    let folder = prefix.join("lib");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let link = folder.join("libLLVM.so");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
    }
    let llvm = find_llvm(&library)?;
    symlink(&llvm, &link).with_context(|| format!("link {}", link.display()))?;
    let feature = format!("llvm-{}", toolchain.llvm);
    let install =
        ["install", "bpf-linker", "--locked", "--no-default-features", "--version", BPF_LINKER_VERSION];
    let mut command = cargo(install);
    command.args(["--features", &feature]).arg("--root").arg(&toolchain.linker_root);
    command.env("LLVM_PREFIX", &prefix);
    command.env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", library.display()));
    run(&mut command)
}

/// rustc's own LLVM: the shared object proper, not the linker script beside it.
fn find_llvm(library: &Path) -> Result<PathBuf> {
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libLLVM.so."))
    };
    let entries = fs::read_dir(library).with_context(|| format!("list {}", library.display()))?;
    let mut entries = entries.filter_map(Result::ok).map(|entry| entry.path());
    entries
        .find(named)
        .with_context(|| format!("{} holds no libLLVM.so.*: is this rustup's Rust?", library.display()))
}
