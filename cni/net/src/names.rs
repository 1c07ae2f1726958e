//! Host names, for binaries that bring their C library along.

#[cfg(target_env = "gnu")]
use std::ffi::{c_char, c_int};
use std::io;

#[cfg(target_env = "gnu")]
unsafe extern "C" {
    /// glibc's `<nss.h>`: which services answer for a database, whatever `/etc/nsswitch.conf` says.
    fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
}

/// Has names of hosts looked up in `/etc/hosts` and by DNS alone. What a host's `/etc/nsswitch.conf` may name beyond
/// that are shared objects, and a statically linked glibc can load only those of its own version.
///
/// To be called before the first name is looked up.
///
/// # Errors
/// When glibc has no memory.
#[cfg(target_env = "gnu")]
pub fn use_files_and_dns() -> io::Result<()> {
    // SAFETY: both are strings that end in NUL and live for ever; glibc copies what it keeps.
    match unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Other C libraries know nothing else.
///
/// # Errors
/// Never.
#[cfg(not(target_env = "gnu"))]
pub fn use_files_and_dns() -> io::Result<()> {
    Ok(())
}
