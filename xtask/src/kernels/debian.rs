//! A kernel of a Debian suite: its image and its modules, unpacked where nothing of this machine changes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::{output, run, say};
use crate::setup::Apt;

/// Of Debian's kernels for machines in clouds: small, and with all that is needed here.
const FLAVOUR: &str = "-cloud-amd64";

/// A kernel that can be booted.
pub(super) struct Kernel {
    /// Its release, as uname(1) would say.
    pub(super) release: String,
    /// The image.
    pub(super) image: PathBuf,
    /// The directory that has `lib/modules`.
    pub(super) root: PathBuf,
}

/// Fetches the newest kernel of the suite whose release begins so, unless one is there already.
pub(super) fn fetch(suite: &str, release: &str, place: &Path) -> Result<Kernel> {
    let root = place.join("root");
    if !root.exists() {
        let packages = place.join("packages");
        fs::create_dir_all(&packages).with_context(|| format!("create {}", packages.display()))?;
        let apt = Apt::new(suite, place)?;
        run(apt.get().args(["update", "-qq"]))?;
        let name = newest(&apt, release)?;
        say(&format!("{suite}: {name}"));
        // Since 7.0 the image and the modules have packages of their own.
        let mut wanted = vec![name.clone()];
        for part in ["linux-modules-", "linux-binary-"] {
            let other = name.replace("linux-image-", part);
            if !output(apt.cache().args(["madison", &other]))?.is_empty() {
                wanted.push(other);
            }
        }
        run(apt.get().args(["download", "-qq"]).args(wanted).current_dir(&packages))?;
        for package in fs::read_dir(&packages)?.flatten() {
            run(Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&root))?;
        }
    }
    if !root.join("lib").exists() {
        symlink("usr/lib", root.join("lib")).context("link lib to usr/lib")?;
    }
    let modules = root.join("lib/modules");
    let found =
        fs::read_dir(&modules).with_context(|| format!("list {}", modules.display()))?.flatten().next();
    let release = found.context("no modules")?.file_name().to_string_lossy().into_owned();
    run(Command::new("find")
        .arg(modules.join(&release))
        .args(["-name", "*.ko.xz", "-exec", "xz", "-d", "{}", "+"]))?;
    run(Command::new("depmod").arg("-b").arg(&root).arg(&release))?;
    let places = [root.join(format!("boot/vmlinuz-{release}")), modules.join(&release).join("vmlinuz")];
    let image = places.into_iter().find(|path| path.is_file()).context("no kernel's image in the package")?;
    Ok(Kernel { release, image, root })
}

/// The package of the newest such kernel that can be downloaded.
fn newest(apt: &Apt, release: &str) -> Result<String> {
    let prefix = format!("linux-image-{release}");
    let names = output(apt.cache().args(["pkgnames", &prefix]))?;
    let mut names: Vec<&str> = names.lines().filter(|name| name.ends_with(FLAVOUR)).collect();
    names.sort_by_key(|name| numbers(name));
    let is_there = |name: &&&str| {
        output(apt.cache().args(["madison", name])).is_ok_and(|versions| !versions.trim().is_empty())
    };
    let name = names.iter().rev().find(is_there).with_context(|| format!("no {prefix}*{FLAVOUR}"))?;
    Ok((*name).to_owned())
}

/// The numbers in a name, by which releases are ordered.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_their_numbers() {
        let (old, new) = ("linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-50-cloud-amd64");
        assert!(numbers(old) < numbers(new));
    }
}
