//! The files by which a restarted agent knows the pods of its node: one registration each.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use fairlead_net::agent::Registration;

use crate::dataplane::DataplaneError;
use crate::host_ports::{self, MappingError};

/// Whether the registration can name a file and has what an endpoint needs.
pub(super) fn validate(registration: &Registration) -> Result<(), DataplaneError> {
    let refuse = |field: &str, why: &str| {
        Err(DataplaneError::new("accept", format!("registration's {field}"), why.to_owned()))
    };
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
    };
    if !plain(&registration.container_id) {
        return refuse("containerId", "it is not letters, digits, '_', '.' and '-'");
    }
    if !plain(&registration.ifname) {
        return refuse("ifname", "it is not letters, digits, '_', '.' and '-'");
    }
    if registration.addresses.is_empty() {
        return refuse("addresses", "there is none");
    }
    if registration.host_ifindex == 0 {
        return refuse("hostIfindex", "it is 0");
    }
    let mapping = |e: MappingError| refuse(&format!("portMappings[{}].{}", e.index, e.field), &e.message);
    host_ports::of(registration).map(drop).or_else(mapping)
}

/// Reads a file.
pub(super) fn read(path: &Path) -> io::Result<Registration> {
    let registration: Registration = serde_json::from_slice(&fs::read(path)?)?;
    validate(&registration).map_err(io::Error::other)?;
    Ok(registration)
}

/// Writes the file in one step, so that a crash leaves the old one or the new one.
pub(super) fn write(path: &Path, registration: &Registration) -> io::Result<()> {
    let fresh = path.with_extension("tmp");
    fs::write(&fresh, serde_json::to_vec(registration)?)?;
    fs::rename(&fresh, path)
}

/// Removes a file; no error if there is none.
pub(super) fn remove(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(DataplaneError::new("remove", path.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use fairlead_net::agent::PodRef;

    use super::*;

    fn registration() -> Registration {
        Registration {
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
            pod: PodRef { namespace: "default".into(), name: "web".into(), uid: "1".into() },
            host_ifname: "fl0".into(),
            host_ifindex: 7,
            pod_mac: [2, 0, 0, 0, 0, 1],
            host_mac: [2, 0, 0, 0, 0, 2],
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            netns_cookie: Some(7),
            port_mappings: Vec::new(),
            is_shaped: false,
        }
    }

    #[test]
    fn a_registration_that_would_leave_its_directory_is_refused() {
        validate(&registration()).expect("a good one passes");
        for id in ["../../etc/passwd", "", ".hidden", "a/b"] {
            let bad = Registration { container_id: id.into(), ..registration() };
            let error = validate(&bad).expect_err("a path is refused").to_string();
            assert!(error.contains("containerId"), "{error}");
        }
        let bad = Registration { addresses: Vec::new(), ..registration() };
        assert!(validate(&bad).expect_err("no address is refused").to_string().contains("addresses"));
    }

    #[test]
    fn a_registration_survives_in_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("c0ffee-eth0.json");
        write(&path, &registration()).expect("written");
        assert_eq!(read(&path).expect("read"), registration());
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1, "nothing else is left");
    }
}
