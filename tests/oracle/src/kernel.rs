//! The maps of the loaded programs, by name and type.

use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError as KernelError};
use fairlead_core::dataplane::{MapAction, MapCause, MapError};
use fairlead_prog_tests::Node;

/// The map of that name.
///
/// # Panics
/// When there is none, or it is of another type.
#[must_use]
pub fn typed<'a, T>(node: &'a Node, name: &str) -> T
where
    T: TryFrom<&'a Map, Error = KernelError>,
{
    node.ebpf.map(name).expect("the map").try_into().expect("a map of this type")
}

/// The map of that name.
///
/// # Panics
/// When there is none, or it is of another type.
#[must_use]
pub fn typed_mut<'a, T>(node: &'a mut Node, name: &str) -> T
where
    T: TryFrom<&'a mut Map, Error = KernelError>,
{
    node.ebpf.map_mut(name).expect("the map").try_into().expect("a map of this type")
}

/// The hash of that name.
///
/// # Panics
/// When there is none, or it is of another type.
#[must_use]
pub fn hash<'a, K: Pod, V: Pod>(node: &'a mut Node, name: &str) -> HashMap<&'a mut MapData, K, V> {
    typed_mut(node, name)
}

/// The array of that name.
///
/// # Panics
/// When there is none, or it is of another type.
#[must_use]
pub fn array<'a, V: Pod>(node: &'a mut Node, name: &str) -> Array<&'a mut MapData, V> {
    typed_mut(node, name)
}

/// The longest-prefix map of that name.
///
/// # Panics
/// When there is none, or it is of another type.
#[must_use]
pub fn trie<'a, K: Pod>(node: &'a mut Node, name: &str) -> LpmTrie<&'a mut MapData, K, u32> {
    typed_mut(node, name)
}

/// What is not there need not be removed.
///
/// # Errors
/// When it could not be removed for another reason.
pub fn gone(removed: Result<(), KernelError>) -> Result<(), KernelError> {
    match removed {
        Err(KernelError::KeyNotFound) => Ok(()),
        Err(KernelError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// The kernel's answer as the cause of a failure.
#[must_use]
pub fn failed(error: &KernelError) -> MapCause {
    MapCause::Failed(format!("{error:?}"))
}

/// The failure to read a map back.
#[must_use]
pub fn unread(what: &str, error: &KernelError) -> MapError {
    MapError { action: MapAction::Read, object: what.to_owned(), cause: failed(error) }
}
