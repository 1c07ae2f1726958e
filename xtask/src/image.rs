//! The container image: a root directory that holds the two binaries, and the same as an OCI archive.
//!
//! No daemon and no container tool is needed, and the same binaries give the same archive. The `Dockerfile` makes its
//! image of the same directory.
//!
//! ```text
//! target/image/root       bin/fairlead-proxy  bin/fairlead-cni  usr/share/licenses/fairlead/…
//! target/image/oci        oci-layout  index.json ─▶ manifest ─▶ configuration, layer     (blobs/sha256/…)
//! target/image/fairlead.tar
//! ```

use std::env::consts::ARCH;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::build::{self, SHIPPED};
use crate::command::{output, root, run, say, target};

/// What the image is called: by the manifests for kind, and in the archive.
pub(crate) const NAME: &str = "fairlead:dev";

/// Where the image is made, if nothing else is said.
pub(crate) fn directory() -> PathBuf {
    target().join("image")
}

/// The archive in the directory of an image.
pub(crate) fn archive(directory: &Path) -> PathBuf {
    directory.join("fairlead.tar")
}

/// Makes the image in `directory`, of release binaries built now, or of debug binaries as they are.
pub(crate) fn make(debug: bool, directory: &Path) -> Result<()> {
    if !debug {
        build::all(true)?;
    }
    assemble(&target().join(if debug { "debug" } else { "release" }), &directory.join("root"))?;
    pack(directory)
}

/// Puts together the image's root directory.
fn assemble(binaries: &Path, root_directory: &Path) -> Result<()> {
    if root_directory.exists() {
        fs::remove_dir_all(root_directory).with_context(|| format!("remove {}", root_directory.display()))?;
    }
    let (bin, licences) = (root_directory.join("bin"), root_directory.join("usr/share/licenses/fairlead"));
    for folder in [&bin, &licences] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    for name in SHIPPED {
        // Nothing here could load a shared library for it.
        let source = binaries.join(name);
        let linkage = output(Command::new("readelf").arg("--program-headers").arg(&source))?;
        if linkage.contains("INTERP") {
            bail!("{} is not linked statically: install libc6-dev and build again", source.display());
        }
        copy(&source, &bin.join(name), 0o755)?;
    }
    ["LICENSE-APACHE", "LICENSE-MIT"]
        .iter()
        .try_for_each(|name| copy(&root().join(name), &licences.join(name), 0o644))
}

fn copy(source: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::copy(source, to).with_context(|| format!("copy {}", source.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", to.display()))
}

/// Packs the root directory as an image of one layer (OCI image specification 1.0).
fn pack(directory: &Path) -> Result<()> {
    let layout = directory.join("oci");
    if layout.exists() {
        fs::remove_dir_all(&layout).with_context(|| format!("remove {}", layout.display()))?;
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;

    let layer = directory.join("layer.tar");
    tar(&directory.join("root"), &layer)?;
    let uncompressed = digest(&layer)?;
    run(Command::new("gzip").args(["--no-name", "--force"]).arg(&layer))?;
    let layer = Blob::take(&blobs, &directory.join("layer.tar.gz"), "layer.v1.tar+gzip")?;

    let architecture = match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let configuration = json!({
        "architecture": architecture,
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["fairlead-proxy", "--help"] },
        "rootfs": { "type": "layers", "diff_ids": [uncompressed] },
    });
    let configuration = Blob::write(&blobs, directory, &configuration, "config.v1+json")?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type("manifest.v1+json"),
        "config": configuration.descriptor(),
        "layers": [layer.descriptor()],
    });
    let manifest = Blob::write(&blobs, directory, &manifest, "manifest.v1+json")?;
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
    // Runtimes know an image without a host in its name by this one.
    entry["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{NAME}"),
        "org.opencontainers.image.ref.name": NAME.split(':').next_back(),
    });
    write(&layout.join("index.json"), &json!({ "schemaVersion": 2, "manifests": [entry] }))?;
    write(&layout.join("oci-layout"), &json!({ "imageLayoutVersion": "1.0.0" }))?;
    let archive = archive(directory);
    tar(&layout, &archive)?;
    let size = layer.size as f64 / f64::from(1 << 20);
    say(&format!("{}: {NAME}, {architecture}, {size:.1} MiB compressed", archive.display()));
    Ok(())
}

/// A part of an image.
struct Blob {
    digest: String,
    size: u64,
    media_type: String,
}

impl Blob {
    /// Moves the file to its place among the blobs.
    fn take(blobs: &Path, file: &Path, kind: &str) -> Result<Self> {
        let digest = digest(file)?;
        let size = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.len();
        let name = digest.trim_start_matches("sha256:");
        fs::rename(file, blobs.join(name)).with_context(|| format!("move {}", file.display()))?;
        Ok(Self { digest, size, media_type: media_type(kind) })
    }

    fn write(blobs: &Path, directory: &Path, value: &Value, kind: &str) -> Result<Self> {
        let file = directory.join("blob.json");
        write(&file, value)?;
        Self::take(blobs, &file, kind)
    }

    fn descriptor(&self) -> Value {
        let Self { digest, size, media_type } = self;
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }
}

fn media_type(kind: &str) -> String {
    format!("application/vnd.oci.image.{kind}")
}

fn write(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("write {}", path.display()))
}

/// `sha256:` and the file's sum.
fn digest(file: &Path) -> Result<String> {
    let sum = output(Command::new("sha256sum").arg("--binary").arg(file))?;
    let sum = sum.split(' ').next().unwrap_or_default();
    Ok(format!("sha256:{sum}"))
}

/// Packs what is in `directory`, root's and without times, so that the same content gives the same archive.
fn tar(directory: &Path, archive: &Path) -> Result<()> {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    // Without "." for an entry, which some readers take for a change of the root itself.
    let names = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let mut names: Vec<_> = names.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    run(command.arg("--file").arg(archive).arg("--directory").arg(directory).args(names))
}
