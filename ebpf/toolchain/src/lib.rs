//! Where the eBPF toolchain lives and how to call it.
//!
//! Compiling Rust for the BPF target takes two things that a rustup installation lacks: the source of
//! `core` (the target has no prebuilt one) and bpf-linker, built against the very LLVM that rustc uses.
//! `xtask setup` installs them; `ebpf/object`'s build script uses them, and makes do without.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The bpf-linker version that the programs are built and tested with.
pub const BPF_LINKER_VERSION: &str = "0.13.0";

/// The Rust target of the programs on a machine of this byte order.
#[cfg(target_endian = "little")]
pub const TARGET: &str = "bpfel-unknown-none";
/// The Rust target of the programs on a machine of this byte order.
#[cfg(target_endian = "big")]
pub const TARGET: &str = "bpfeb-unknown-none";

/// Instruction set v3: 32-bit and fetching atomic instructions, kernel 5.12.
pub const TARGET_CPU: &str = "v3";

/// The installed compiler and the places of what it lacks.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// rustc's release, such as `1.95.0`.
    pub rustc: String,
    /// LLVM's major version, such as `22`.
    pub llvm: String,
    /// rustc's sysroot.
    pub sysroot: PathBuf,
    /// The directory of the bpf-linker that fits this compiler.
    pub linker_root: PathBuf,
}

/// Why the toolchain could not be described.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl Toolchain {
    /// Asks rustc about itself.
    ///
    /// # Errors
    /// When rustc cannot be run or answers in an unknown form, or no cache directory can be named.
    pub fn locate() -> Result<Self, Error> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let ask = |arguments: &[&str]| {
            let output = Command::new(&rustc)
                .args(arguments)
                .output()
                .map_err(|error| Error(format!("run {}: {error}", Path::new(&rustc).display())))?;
            String::from_utf8(output.stdout).map_err(|error| Error(format!("read rustc's answer: {error}")))
        };
        let version = ask(&["-vV"])?;
        let field = |name: &str| {
            let value = version.lines().find_map(|line| line.strip_prefix(name));
            value.map(str::to_owned).ok_or_else(|| Error(format!("rustc -vV does not say `{name}`")))
        };
        let release = field("release: ")?;
        let llvm = field("LLVM version: ")?;
        let llvm = llvm.split('.').next().unwrap_or(&llvm).to_owned();
        let linker_root = cache()?.join(format!("bpf-linker-{BPF_LINKER_VERSION}-rust-{release}"));
        Ok(Self { rustc: release, llvm, sysroot: ask(&["--print", "sysroot"])?.trim().into(), linker_root })
    }

    /// The linker's path, whether or not it is installed.
    pub fn linker(&self) -> PathBuf {
        self.linker_root.join("bin/bpf-linker")
    }

    /// Where the standard library's source belongs, whether or not it is there.
    pub fn rust_src(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust/library")
    }

    /// What is missing before the programs can be compiled; empty if nothing is.
    pub fn missing(&self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        if !self.rust_src().join("core/Cargo.toml").is_file() {
            missing.push("rust-src");
        }
        if !self.linker().is_file() {
            missing.push("bpf-linker");
        }
        missing
    }

    /// A cargo command for the eBPF programs, `verb` being `build` or `clippy`, into `target_dir`.
    ///
    /// `RUSTC_BOOTSTRAP` lets a stable compiler accept `-Z build-std`; the source is the compiler's own.
    /// It runs in an environment free of the flags that an enclosing cargo has set for the host.
    pub fn cargo(&self, verb: &str, target_dir: &Path) -> Command {
        let flags = [
            format!("-Clinker={}", self.linker().display()),
            format!("-Ctarget-cpu={TARGET_CPU}"),
            "-Clink-arg=--btf".to_owned(),
            "-Cdebuginfo=2".to_owned(),
        ];
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args([verb, "--package", "fairlead-prog", "--profile", "ebpf", "--target", TARGET]);
        command.args(["-Z", "build-std=core"]).arg("--target-dir").arg(target_dir);
        command.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CLIPPY_ARGS"] {
            command.env_remove(name);
        }
        command
    }
}

/// The user's cache directory for Fairlead (XDG Base Directory Specification 0.8).
fn cache() -> Result<PathBuf, Error> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = from("XDG_CACHE_HOME").or_else(|| from("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("fairlead"))
        .ok_or_else(|| Error("neither XDG_CACHE_HOME nor HOME is set".into()))
}
