//! Which object of the API something is, and at which version: numbers, because there is one for every object.
//!
//! Versions of one kind can be compared where they are numbers: Kubernetes 1.35 promises that of all that its API server
//! holds (KEP-5504; `k8s.io/apimachinery/pkg/util/resourceversion` has the same rules for what counts as one). Of others
//! only equality is known.

use std::cmp::Ordering;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::digest::digest;

/// Set in versions that are no numbers.
const OPAQUE: u64 = 1 << 63;

/// A resourceVersion: a number below 2⁶³ as it is, of anything else a digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version(NonZeroU64);

impl Version {
    /// The version that the API calls so; none if it says nothing.
    pub fn new(text: &str) -> Option<Self> {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number = text.parse().ok().filter(|number| is_number && *number < OPAQUE);
        let number = number.or_else(|| (!text.is_empty()).then(|| digest(text.as_bytes()) | OPAQUE))?;
        NonZeroU64::new(number).map(Self)
    }

    /// Whether it is `other` or newer; of versions that can't be compared, whether they are the same.
    pub fn reaches(self, other: Self) -> bool {
        match self.partial_cmp(&other) {
            Some(order) => order != Ordering::Less,
            None => false,
        }
    }

    fn is_number(self) -> bool {
        self.0.get() & OPAQUE == 0
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let comparable = self == other || self.is_number() && other.is_number();
        comparable.then(|| self.0.cmp(&other.0))
    }
}

/// As the API has it; one that is no number shows as what is kept of it.
impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_number() { write!(f, "{}", self.0) } else { write!(f, "opaque:{:016x}", self.0) }
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Version {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text).ok_or("an empty text is no resourceVersion")
    }
}

/// metadata.uid where it is a UUID, as the API server's are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uid([u8; 16]);

impl Uid {
    /// That of an object whose uid is a UUID.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
        let is_uuid = text.len() == 36 && digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit);
        let digits = std::str::from_utf8(&digits).ok().filter(|_| is_uuid)?;
        u128::from_str_radix(digits, 16).ok().map(|number| Self(number.to_be_bytes()))
    }

    /// Whether none is known.
    pub fn is_unknown(self) -> bool {
        self == Self::default()
    }
}

/// As the API writes it (RFC 9562, section 4); empty if none is known.
impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_unknown() {
            return Ok(());
        }
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let [a, b, c, d, e] = [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]];
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

/// Which object it is, and at which version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// metadata.resourceVersion.
    pub version: Option<Version>,
    /// metadata.uid.
    pub uid: Uid,
}

impl Stamp {
    /// That of the object with this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            version: meta.resource_version.as_deref().and_then(Version::new),
            uid: meta.uid.as_deref().and_then(Uid::new).unwrap_or_default(),
        }
    }
}

/// An object of the API, and what it came to; nothing if it is not the proxy's business, or beyond use.
#[derive(Clone, Debug)]
pub(crate) struct Held<T> {
    pub(crate) stamp: Stamp,
    pub(crate) value: Option<T>,
}

const _: () = assert!(size_of::<Stamp>() == 24, "there is one for every object");

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::new(text).expect("a version")
    }

    #[test]
    fn versions_that_are_numbers_are_compared_as_numbers() {
        assert!(version("1000").reaches(version("999")));
        assert!(version("999").reaches(version("999")));
        assert!(!version("999").reaches(version("1000")));
        assert_eq!(version("1000").to_string(), "1000");
    }

    #[test]
    fn other_versions_are_the_same_or_not() {
        for (one, other) in [("v7", "v6"), ("v7", "6"), ("007", "7"), ("7", "v6"), ("0", "7")] {
            assert!(!version(one).reaches(version(other)), "{one} and {other}");
            assert!(version(one).reaches(version(one)));
        }
        assert!(!version("99999999999999999999").reaches(version("7")), "beyond what is kept as a number");
        assert_eq!(Version::new(""), None);
    }

    #[test]
    fn a_uid_reads_as_the_api_wrote_it() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(Uid::new(text).expect("a UUID").to_string(), text);
        for other in ["1", "", "0123456789abcdef0123456789abcdef", "01234567-89ab-cdef-0123-456789abcdeg"] {
            assert_eq!(Uid::new(other), None, "{other}");
        }
        assert_eq!(Uid::default().to_string(), "");
    }
}
