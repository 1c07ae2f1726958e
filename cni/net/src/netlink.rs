//! A conversation with the kernel about one network namespace: that of the thread which opened it.

use std::io;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::{Handle, new_connection};
use tokio::runtime::{Builder, Runtime};

use crate::ROUTE_PROTOCOL;
use crate::routes::Route;

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

/// The message for a route of ours in the main table, through `device` if given.
pub(crate) fn route_message(route: &Route, device: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: if route.destination.addr().is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        destination_prefix_length: route.destination.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Other(ROUTE_PROTOCOL),
        scope: if route.gateway.is_some() { RouteScope::Universe } else { RouteScope::Link },
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    message.attributes.extend(route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())));
    message.attributes.extend(device.map(RouteAttribute::Oif));
    message
}
