//! Compiles `ebpf/prog` for the BPF target and hands the object to the crate, or an empty one where the
//! eBPF toolchain is missing, so that the host crates can be checked and tested without it.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use fairlead_toolchain::{TARGET, Toolchain};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let object = out.join("fairlead.o");
    for watched in ["../prog", "../abi/src", "../flow/src", "../toolchain/src"] {
        println!("cargo::rerun-if-changed={watched}");
    }
    let toolchain = Toolchain::locate()?;
    println!("cargo::rerun-if-changed={}", toolchain.linker().display());
    println!("cargo::rerun-if-changed={}", toolchain.rust_src().join("core/Cargo.toml").display());
    let missing = toolchain.missing();
    if !missing.is_empty() {
        println!(
            "cargo::warning=no eBPF programs in this build ({} missing): make setup",
            missing.join(", ")
        );
        fs::write(&object, [])?;
        return Ok(());
    }
    // Outside OUT_DIR, whose name changes with every dependency: the programs' build is kept.
    let target_dir = out.ancestors().find(|path| path.ends_with("build")).and_then(Path::parent);
    // One for each layout, or they would take turns in having all compiled anew.
    let is_next = env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some();
    let name = if is_next { "ebpf-next" } else { "ebpf" };
    let target_dir = target_dir.ok_or("OUT_DIR lies in a build directory")?.join(name);
    let mut command = toolchain.cargo("build", &target_dir);
    if is_next {
        command.args(["--features", "next-layout"]);
    }
    let status = command.status()?;
    if !status.success() {
        return Err(format!("compiling the eBPF programs: {status}").into());
    }
    fs::copy(target_dir.join(TARGET).join("ebpf/fairlead"), &object)?;
    Ok(())
}
