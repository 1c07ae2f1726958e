//! The image as `cargo xtask image` makes it: what it holds, and that it is enough.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use fairlead_harness::{binary, output};
use serde_json::Value;
use tempfile::TempDir;

/// All that is in the image's root directory.
const FILES: [&str; 4] = [
    "bin/fairlead-cni",
    "bin/fairlead-proxy",
    "usr/share/licenses/fairlead/LICENSE-APACHE",
    "usr/share/licenses/fairlead/LICENSE-MIT",
];

/// An image of the binaries as they are; none where they can't be linked statically.
fn image() -> Result<Option<TempDir>> {
    let archive = output(Command::new("cc").arg("-print-file-name=libc.a"))?;
    if archive.trim() == "libc.a" {
        println!("left out: there is no libc.a to link the binaries with");
        return Ok(None);
    }
    let directory = tempfile::tempdir()?;
    output(Command::new(binary("xtask")?).args(["image", "--debug", "--into"]).arg(directory.path()))?;
    Ok(Some(directory))
}

/// The blob that a descriptor tells of, once its sum and size are as it says.
fn blob(layout: &Path, descriptor: &Value) -> Result<Vec<u8>> {
    let digest = descriptor["digest"].as_str().context("a descriptor without digest")?;
    let name = digest.strip_prefix("sha256:").with_context(|| format!("digest {digest}"))?;
    let path = layout.join("blobs/sha256").join(name);
    let sum = output(Command::new("sha256sum").arg(&path))?;
    ensure!(sum.starts_with(name), "{} has another sum: {sum}", path.display());
    let content = fs::read(&path)?;
    ensure!(descriptor["size"] == content.len(), "{} has another size", path.display());
    Ok(content)
}

fn json(layout: &Path, descriptor: &Value) -> Result<Value> {
    Ok(serde_json::from_slice(&blob(layout, descriptor)?)?)
}

#[test]
#[ignore = "needs root and the binaries: run make test"]
fn the_binaries_run_where_there_is_nothing_but_the_image() -> Result<()> {
    let Some(directory) = image()? else { return Ok(()) };
    let run = |program: &str| {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(directory.path().join("root")).arg(program).env_clear().stdin(Stdio::null());
        command
    };
    let version = output(run("/bin/fairlead-proxy").arg("--version"))?;
    ensure!(version.starts_with("fairlead-proxy "), "{version}");
    let version = output(run("/bin/fairlead-cni").env("CNI_COMMAND", "VERSION"))?;
    let version: Value = serde_json::from_str(&version)?;
    ensure!(version["supportedVersions"].is_array(), "{version}");
    Ok(())
}

#[test]
#[ignore = "needs the binaries: run make test"]
fn the_archive_holds_what_its_descriptors_say_and_nothing_else() -> Result<()> {
    let Some(directory) = image()? else { return Ok(()) };
    let unpacked = tempfile::tempdir()?;
    let layout = unpacked.path();
    output(Command::new("tar").arg("-xf").arg(directory.path().join("fairlead.tar")).arg("-C").arg(layout))?;
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest = json(layout, &index["manifests"][0])?;
    let configuration = json(layout, &manifest["config"])?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 1 && fs::read_dir(layout.join("blobs/sha256"))?.count() == 3);
    fs::write(layout.join("layer.tar.gz"), blob(layout, &layers[0])?)?;
    output(Command::new("gunzip").arg(layout.join("layer.tar.gz")))?;
    let layer = layout.join("layer.tar");
    let sum = output(Command::new("sha256sum").arg(&layer))?;
    let sum = format!("sha256:{}", sum.split(' ').next().unwrap_or_default());
    ensure!(configuration["rootfs"]["diff_ids"][0] == sum, "{configuration} {sum}");
    let names = output(Command::new("tar").arg("-tf").arg(&layer))?;
    let files: Vec<&str> = names.lines().filter(|name| !name.ends_with('/')).collect();
    assert_eq!(files, FILES);
    Ok(())
}

#[test]
#[ignore = "needs the binaries: run make test"]
fn the_same_binaries_make_the_same_archive() -> Result<()> {
    let (Some(one), Some(other)) = (image()?, image()?) else { return Ok(()) };
    let archives = [one, other].map(|directory| fs::read(directory.path().join("fairlead.tar")));
    let [one, other] = archives;
    ensure!(one? == other?);
    Ok(())
}
