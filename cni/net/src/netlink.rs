//! A conversation with the kernel about one network namespace: that of the thread which opened it.

use std::io;

use rtnetlink::{Handle, new_connection};
use tokio::runtime::{Builder, Runtime};

/// A conversation for code that is not async: each request is waited for.
pub(crate) struct Kernel {
    runtime: Runtime,
    handle: Handle,
}

impl Kernel {
    /// Opens a conversation about the calling thread's namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let handle = runtime.block_on(async { open() })?;
        Ok(Self { runtime, handle })
    }

    /// Makes one request and waits for its answer.
    pub(crate) fn ask<T>(
        &self,
        request: impl AsyncFnOnce(&Handle) -> Result<T, rtnetlink::Error>,
    ) -> io::Result<T> {
        self.runtime.block_on(request(&self.handle)).map_err(cause)
    }
}

/// Opens a conversation about the calling thread's namespace, served by the tokio runtime it runs on.
pub(crate) fn open() -> io::Result<Handle> {
    let (connection, handle, _notices) = new_connection()?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The system's error behind rtnetlink's, whose code callers compare.
pub(crate) fn cause(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
