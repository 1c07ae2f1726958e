//! The kernel's settings that pods' packets need on the node, in the calling thread's namespace.
//!
//! They are files under [`PROC_SYS`], which a container that is not privileged may not write: the node's own, mounted
//! elsewhere, then stands for it.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::vxlan::Underlay;

/// Where the settings are.
pub const PROC_SYS: &str = "/proc/sys";

/// A setting as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    /// Its name as sysctl(8) has it, with slashes, since names of interfaces may have dots.
    name: String,
    value: &'static str,
    purpose: Purpose,
}

/// What needs a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// That packets go between pods and anybody elsewhere: nothing works without.
    Forwarding,
    /// A default route that routers advertise, where there is one.
    Advertisements,
    /// Packets of nodes whose own addresses lead elsewhere than to the overlay.
    ReturnPath,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forwarding => "forwarding between pods and other nodes",
            Self::Advertisements => "a default route that routers advertise",
            Self::ReturnPath => "hearing nodes whose own addresses lead elsewhere than to the overlay",
        })
    }
}

/// A setting that is not as it has to be, and can't be made so.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {name} is {found}, and can't be set to {value}, which {purpose} needs: {source}")]
pub struct SettingError {
    /// The setting, with slashes.
    pub name: String,
    /// What it has to be.
    pub value: &'static str,
    /// What it is.
    pub found: String,
    /// What needs it.
    pub purpose: Purpose,
    /// What the system said.
    pub source: io::Error,
}

/// Makes every setting under `proc_sys` as it has to be, also those of these interfaces by which pods' packets come and
/// go, and writes only what differs. Those of a kernel without IPv6 are not missed.
///
/// An interface that forwards no longer heeds router advertisements, unless told to: where the node's own default route
/// comes from them it must not be lost.
#[must_use]
pub fn settle(proc_sys: &Path, interfaces: &[String]) -> Vec<SettingError> {
    let v6: Vec<String> = fs::read_dir(proc_sys.join("net/ipv6/conf"))
        .map(|entries| entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let wanted = wanted(interfaces, &v6, |name| read(&path(proc_sys, name)).ok());
    wanted.into_iter().filter_map(|setting| set(proc_sys, setting).err()).collect()
}

/// Lets the kernel forward packets of both families.
///
/// # Errors
/// When a setting can't be written. A kernel without IPv6 is no error.
pub fn enable_forwarding() -> Result<(), SettingError> {
    settle(Path::new(PROC_SYS), &[]).into_iter().next().map_or(Ok(()), Err)
}

fn wanted(interfaces: &[String], v6: &[String], now: impl Fn(&str) -> Option<String>) -> Vec<Setting> {
    let setting = |name: String, value, purpose| Setting { name, value, purpose };
    let mut wanted = vec![setting("net/ipv4/ip_forward".into(), "1", Purpose::Forwarding)];
    wanted.extend(
        interfaces
            .iter()
            .map(|ifname| setting(format!("net/ipv4/conf/{ifname}/forwarding"), "1", Purpose::Forwarding)),
    );
    let is_overlay = |ifname: &&String| Underlay::ALL.iter().any(|underlay| underlay.ifname() == *ifname);
    wanted.extend(
        interfaces
            .iter()
            .filter(is_overlay)
            .map(|ifname| setting(format!("net/ipv4/conf/{ifname}/rp_filter"), "2", Purpose::ReturnPath)),
    );
    if v6.is_empty() {
        return wanted;
    }
    // Before forwarding is switched on.
    let heeds = |ifname: &&String| {
        let name = format!("net/ipv6/conf/{ifname}/accept_ra");
        !["all", "default"].contains(&ifname.as_str()) && now(&name).as_deref() == Some("1")
    };
    wanted.extend(
        v6.iter()
            .filter(heeds)
            .map(|ifname| setting(format!("net/ipv6/conf/{ifname}/accept_ra"), "2", Purpose::Advertisements)),
    );
    wanted.push(setting("net/ipv6/conf/all/forwarding".into(), "1", Purpose::Forwarding));
    wanted
}

fn set(proc_sys: &Path, Setting { name, value, purpose }: Setting) -> Result<(), SettingError> {
    let path = path(proc_sys, &name);
    let found = match read(&path) {
        Ok(found) if found == value => return Ok(()),
        // The interface is gone.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(found) => found,
        Err(_) => "not to be read".into(),
    };
    fs::write(&path, value).map_err(|source| SettingError { name, value, found, purpose, source })
}

fn path(proc_sys: &Path, name: &str) -> PathBuf {
    proc_sys.join(OsStr::new(name))
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(wanted: &[Setting]) -> Vec<String> {
        wanted.iter().map(|setting| format!("{}={}", setting.name, setting.value)).collect()
    }

    #[test]
    fn router_advertisements_are_heeded_on_before_forwarding_is_switched_on() {
        let v6 = ["all", "default", "eth0.7", "lo"].map(str::to_owned);
        let now = |name: &str| Some(if name.contains("eth0") { "1".into() } else { "0".into() });
        assert_eq!(
            names(&wanted(&["eth0.7".into()], &v6, now)),
            [
                "net/ipv4/ip_forward=1",
                "net/ipv4/conf/eth0.7/forwarding=1",
                "net/ipv6/conf/eth0.7/accept_ra=2",
                "net/ipv6/conf/all/forwarding=1",
            ]
        );
    }

    #[test]
    fn a_kernel_without_ipv6_is_asked_for_nothing_of_it() {
        assert_eq!(names(&wanted(&[], &[], |_| None)), ["net/ipv4/ip_forward=1"]);
    }

    #[test]
    fn what_can_not_be_set_is_named_with_its_reason() {
        let setting =
            || Setting { name: "kernel/ostype".into(), value: "Other", purpose: Purpose::Forwarding };
        let error = set(Path::new(PROC_SYS), setting()).expect_err("nobody can set it").to_string();
        assert!(
            error.starts_with("sysctl kernel/ostype is Linux, and can't be set to Other, which forwarding"),
            "{error}"
        );
    }

    #[test]
    fn settings_are_written_where_the_nodes_own_are_mounted() {
        let mounted = tempfile::tempdir().expect("directory");
        let file = mounted.path().join("net/ipv4/ip_forward");
        fs::create_dir_all(file.parent().expect("parent")).expect("directories");
        fs::write(&file, "0\n").expect("write");
        assert!(settle(mounted.path(), &[]).is_empty());
        assert_eq!(fs::read_to_string(&file).expect("read"), "1");
    }
}
