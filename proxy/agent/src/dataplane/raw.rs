//! Pinned maps of any layout, as bytes.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use aya::maps::MapInfo;
use aya_obj::generated::{bpf_cmd, bpf_map_type};
use fairlead_abi::describe::Kind;

use super::DataplaneError;
use super::sys::{self, Batch};

/// How many entries are read or written in one call.
const CHUNK: usize = 1024;
/// The largest cursor of a batch: a hash's is the number of a bucket, other maps' is a key.
const CURSOR: usize = 64;

/// What the kernel answers where a batch is at its end.
const AT_END: i32 = libc::ENOENT;

/// The same as the kernel's `struct bpf_attr` for one element.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Entries, as many keys as values, one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entries {
    pub(super) keys: Vec<u8>,
    pub(super) values: Vec<u8>,
}

/// A map.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    name: String,
    pub(super) key_size: usize,
    pub(super) value_size: usize,
    pub(super) capacity: u32,
    is_hash: bool,
}

impl RawMap {
    /// The map that is pinned there, which is of that kind.
    pub(super) fn open(path: &Path, kind: Kind) -> Result<Self, DataplaneError> {
        let name = path.display().to_string();
        let info = MapInfo::from_pin(path).map_err(|e| DataplaneError::new("examine map", &name, e))?;
        let fd = sys::open_pin(path).map_err(|e| DataplaneError::new("open map", &name, e))?;
        Ok(Self {
            fd,
            name,
            key_size: info.key_size() as usize,
            value_size: info.value_size() as usize,
            capacity: info.max_entries(),
            is_hash: kind == Kind::Hash,
        })
    }

    /// Makes an array of one element of so many bytes, and pins it in the place of what is pinned there.
    pub(super) fn make_single(path: &Path, name: &str, value_size: u32) -> Result<Self, DataplaneError> {
        let failed = |step, e| DataplaneError::new(step, path.display().to_string(), e);
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", e)),
            _ => {}
        }
        let kind = bpf_map_type::BPF_MAP_TYPE_ARRAY;
        let made = sys::create_map(kind, size_of::<u32>() as u32, value_size, 1, name);
        let fd = made.map_err(|e| failed("make map", e))?;
        sys::pin(fd.as_fd(), path).map_err(|e| failed("pin map", e))?;
        Self::open(path, Kind::Array)
    }

    /// Hands all entries to `take`, a chunk at a time. Kernel 5.6; of a table of prefixes, 5.13.
    pub(super) fn read(
        &self,
        mut take: impl FnMut(Entries) -> Result<(), DataplaneError>,
    ) -> Result<(), DataplaneError> {
        let mut chunk = CHUNK.min(self.capacity as usize).max(1);
        let (mut cursor, mut next) = ([0_u8; CURSOR], [0_u8; CURSOR]);
        let mut is_first = true;
        loop {
            let mut entries =
                Entries { keys: vec![0; chunk * self.key_size], values: vec![0; chunk * self.stride()] };
            let mut attr = Batch {
                in_batch: if is_first { 0 } else { cursor.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: entries.keys.as_mut_ptr() as u64,
                values: entries.values.as_mut_ptr() as u64,
                count: chunk as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                ..Batch::default()
            };
            // SAFETY: the kernel writes at most `count` keys and values, for which there is room, and a cursor no larger
            // than the largest key here.
            let is_last = match unsafe { sys::bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) } {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(AT_END) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && self.is_hash && chunk < 1 << 20 => {
                    // A bucket holds more than fits.
                    chunk *= 2;
                    continue;
                }
                Err(e) => return Err(self.failed("read", e)),
            };
            entries.keys.truncate(attr.count as usize * self.key_size);
            entries.values.truncate(attr.count as usize * self.stride());
            if !entries.keys.is_empty() {
                take(entries)?;
            }
            if is_last {
                return Ok(());
            }
            (cursor, is_first) = (next, false);
        }
    }

    /// Writes all these entries in one call, over what is there. Kernel 5.6.
    pub(super) fn write(&self, entries: &Entries) -> Result<(), DataplaneError> {
        let count = entries.keys.len() / self.key_size;
        assert_eq!(count * self.stride(), entries.values.len(), "a value for each key");
        if count == 0 {
            return Ok(());
        }
        let mut attr = Batch {
            keys: entries.keys.as_ptr() as u64,
            values: entries.values.as_ptr() as u64,
            count: u32::try_from(count).map_err(|e| DataplaneError::new("write", &self.name, e))?,
            map_fd: self.fd.as_raw_fd() as u32,
            ..Batch::default()
        };
        // SAFETY: the kernel reads `count` keys and values, which the two vectors hold.
        let done = unsafe { sys::bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) };
        done.map(drop).map_err(|e| self.failed("write", e))
    }

    /// The value at the key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DataplaneError> {
        let mut value = vec![0; self.stride()];
        let mut attr = self.element(key, value.as_mut_ptr() as u64, 0);
        // SAFETY: the kernel reads a key, and writes a value, both of the sizes that the vectors have.
        match unsafe { sys::bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.failed("read", e)),
        }
    }

    /// Writes the value at the key, where there is room.
    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> Result<bool, DataplaneError> {
        self.put(key, value, aya_obj::generated::BPF_ANY)
    }

    /// Writes the value at the key if nothing is there, and there is room; says whether it did.
    pub(super) fn add(&self, key: &[u8], value: &[u8]) -> Result<bool, DataplaneError> {
        self.put(key, value, aya_obj::generated::BPF_NOEXIST)
    }

    fn put(&self, key: &[u8], value: &[u8], flags: u32) -> Result<bool, DataplaneError> {
        assert_eq!(value.len(), self.stride(), "a value of the map's");
        let mut attr = self.element(key, value.as_ptr() as u64, flags.into());
        // SAFETY: the kernel reads a key and a value, both of the sizes that the slices have.
        match unsafe { sys::bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EEXIST | libc::E2BIG)) => Ok(false),
            Err(e) => Err(self.failed("write", e)),
        }
    }

    fn element(&self, key: &[u8], value: u64, flags: u64) -> Element {
        assert_eq!(key.len(), self.key_size, "a key of the map's");
        let map = self.fd.as_raw_fd() as u32;
        Element { map, key: key.as_ptr() as u64, value, flags, ..Element::default() }
    }

    /// How many bytes a value takes in a batch.
    fn stride(&self) -> usize {
        self.value_size
    }

    fn failed(&self, step: &'static str, error: io::Error) -> DataplaneError {
        DataplaneError::new(step, &self.name, error)
    }
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
