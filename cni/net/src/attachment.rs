//! An attachment: one interface of one container, the unit that ADD makes and DEL removes.
//!
//! Its names on the host are a function of its identity, so that DEL finds them without any record.

use std::fmt;
use std::str::FromStr;

/// How the Ethernet addresses of the two sides begin.
const HOST_SIDE: u8 = 0x0e;
const POD_SIDE: u8 = 0x0a;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Reads what [`Mac`]'s Display writes, and with dashes too; a group's address and zero are no interface's.
impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let byte = |part: &str| match part.as_bytes() {
            [a, b] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => u8::from_str_radix(part, 16).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        let unicast = bytes.filter(|bytes| bytes[0] & 1 == 0 && *bytes != [0; 6]);
        unicast.map(Self).ok_or_else(|| MacError(text.into()))
    }
}

/// A text that is no Ethernet address which an interface could have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no Ethernet address of an interface")]
pub struct MacError(String);

/// The rule of the CNI specification that an identifier breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// CNI_CONTAINERID is empty, or has characters beyond letters, digits, `_`, `.` and `-`.
    #[error("container id {0:?} must start with a letter or digit and hold only those, '_', '.' and '-'")]
    ContainerId(String),
    /// CNI_IFNAME is not what the kernel takes for an interface name.
    #[error(
        "interface name {0:?} must have 1 to 15 characters, no '/', ':' or space, and not be '.' or '..'"
    )]
    Ifname(String),
}

/// The identity of an attachment: (CNI_CONTAINERID, CNI_IFNAME).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    container_id: String,
    ifname: String,
}

impl Attachment {
    /// Checks both parts against the CNI specification (section 2, "Parameters").
    ///
    /// # Errors
    /// When either part is not allowed.
    pub fn new(container_id: &str, ifname: &str) -> Result<Self, AttachmentError> {
        if !is_identifier(container_id) {
            return Err(AttachmentError::ContainerId(container_id.into()));
        }
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if !(1..=15).contains(&ifname.len()) || ifname.contains(forbidden) || matches!(ifname, "." | "..") {
            return Err(AttachmentError::Ifname(ifname.into()));
        }
        Ok(Self { container_id: container_id.into(), ifname: ifname.into() })
    }

    /// The container's id.
    #[must_use]
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// The interface's name inside the container.
    #[must_use]
    pub fn ifname(&self) -> &str {
        &self.ifname
    }

    /// The host side's name: `fl` and 11 hexadecimal digits, within the kernel's 15 characters.
    #[must_use]
    pub fn host_ifname(&self) -> String {
        format!("fl{:011x}", self.digest() >> 20)
    }

    /// The container side's Ethernet address.
    #[must_use]
    pub fn pod_mac(&self) -> Mac {
        self.mac(POD_SIDE)
    }

    /// The host side's Ethernet address.
    ///
    /// Both are chosen here rather than by the kernel: an address that was set explicitly is left alone by
    /// udev's MACAddressPolicy, and the two ends' neighbour entries can be planned before the links exist.
    #[must_use]
    pub fn host_mac(&self) -> Mac {
        self.mac(HOST_SIDE)
    }

    /// Whether an interface of the host with this name and Ethernet address was made for some attachment: both come
    /// from one digest.
    #[must_use]
    pub fn is_host_side(ifname: &str, mac: Mac) -> bool {
        let [first, rest @ ..] = mac.0;
        let digits = ifname.strip_prefix("fl").filter(|digits| digits.len() == 11);
        let hex = rest.iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        first == HOST_SIDE && digits.is_some_and(|digits| digits.starts_with(&hex))
    }

    /// `first` must have the locally administered bit (2) set and the group bit (1) clear.
    fn mac(&self, first: u8) -> Mac {
        let [a, b, c, d, e, ..] = self.digest().to_be_bytes();
        Mac([first, a, b, c, d, e])
    }

    fn digest(&self) -> u64 {
        digest(self.container_id.bytes().chain([b'/']).chain(self.ifname.bytes()))
    }
}

/// FNV-1a, then murmur3's finalizer so that the upper bits depend on every byte. Not the standard
/// library's hasher: names made of it must be the same across processes and releases.
pub(crate) fn digest(bytes: impl Iterator<Item = u8>) -> u64 {
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    for multiplier in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(multiplier);
    }
    hash ^ (hash >> 33)
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// Reads what [`Attachment`]'s Display writes; neither part may hold a slash.
impl FromStr for Attachment {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, AttachmentError> {
        let (container_id, ifname) = text.split_once('/').unwrap_or((text, ""));
        Self::new(container_id, ifname)
    }
}

/// Whether the CNI specification takes `text` for a container id or a network name.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_fit_the_kernel_and_differ_by_container_and_interface() {
        let names = ["a/eth0", "b/eth0", "a/eth1", "b/eth1"]
            .map(|text| text.parse::<Attachment>().expect("valid").host_ifname());
        for name in &names {
            assert_eq!(name.len(), 13, "{name}");
            assert!(name.starts_with("fl"), "{name}");
        }
        let distinct: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(distinct.len(), names.len());
    }

    #[test]
    fn the_host_name_never_changes_between_releases() {
        let attachment = Attachment::new("0123456789abcdef", "eth0").expect("valid");
        assert_eq!(attachment.host_ifname(), "fl437d7c5ffd0");
    }

    #[test]
    fn both_ends_have_unicast_locally_administered_addresses() {
        let attachment = Attachment::new("pod", "eth0").expect("valid");
        for mac in [attachment.pod_mac(), attachment.host_mac()] {
            assert_eq!(mac.0[0] & 0b11, 0b10, "{mac}");
        }
        assert_ne!(attachment.pod_mac(), attachment.host_mac());
    }

    #[test]
    fn the_hosts_side_is_known_by_its_name_and_ethernet_address_together() {
        let [a, b] = ["a", "b"].map(|id| Attachment::new(id, "eth0").expect("valid"));
        assert!(Attachment::is_host_side(&a.host_ifname(), a.host_mac()));
        assert!(!Attachment::is_host_side(&a.host_ifname(), b.host_mac()));
        assert!(!Attachment::is_host_side(&a.host_ifname(), a.pod_mac()));
        assert!(!Attachment::is_host_side("flannel.1", a.host_mac()));
    }

    #[test]
    fn identifiers_that_could_leave_their_directory_or_the_kernel_refuses_are_refused() {
        for id in ["", "../x", "a/b", "-a", "a b", "ä"] {
            assert_eq!(Attachment::new(id, "eth0"), Err(AttachmentError::ContainerId(id.into())));
        }
        for ifname in ["", ".", "..", "a/b", "a:b", "a b", "sixteencharacter"] {
            assert_eq!(Attachment::new("a", ifname), Err(AttachmentError::Ifname(ifname.into())));
        }
    }
}
