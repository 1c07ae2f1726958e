//! Filters of clsact queues that run our programs, at any interface of the calling thread's network namespace.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result};
use aya::programs::TcAttachType;
use aya::programs::tc::qdisc_detach_program;
use fairlead_abi::programs::PREFIX;
use futures::TryStreamExt;
use nix::net::if_::{if_nameindex, if_nametoindex};
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};
use rtnetlink::{Handle, new_connection};

use super::Item;

const CLSACT: &str = "clsact";
const INGRESS: &str = "ingress";
const EGRESS: &str = "egress";

/// Our filters, and after them the queues in which there is nothing else.
pub(super) fn find() -> Result<Vec<Item>> {
    let names: BTreeMap<i32, String> = if_nameindex()?
        .iter()
        .map(|interface| (interface.index().cast_signed(), interface.name().to_string_lossy().into_owned()))
        .collect();
    ask(async |handle| {
        let (mut filters, mut queues) = (Vec::new(), Vec::new());
        let found: Vec<TcMessage> = handle.qdisc().get().execute().try_collect().await?;
        for queue in found.iter().filter(|queue| kind(queue) == Some(CLSACT)) {
            let index = queue.header.index;
            let Some(interface) = names.get(&index) else { continue };
            let mut others = false;
            let before = filters.len();
            for direction in [INGRESS, EGRESS] {
                let request = handle.traffic_filter(index).get();
                let request = if direction == INGRESS { request.ingress() } else { request.egress() };
                let messages: Vec<TcMessage> = request.execute().try_collect().await?;
                for message in messages {
                    match program(&message) {
                        Some(name) if name.starts_with(PREFIX) => filters.push(Item::Filter {
                            interface: interface.clone(),
                            direction: direction.to_owned(),
                            program: name,
                        }),
                        // The kernel also lists the chain that a filter is in, without anything of the filter.
                        None if options(&message).is_none() => {}
                        _ => others = true,
                    }
                }
            }
            if !others && filters.len() > before {
                queues.push(Item::Queue { interface: interface.clone() });
            }
        }
        filters.append(&mut queues);
        Ok(filters)
    })
}

/// Removes the filter, and all of that program's at the interface.
pub(super) fn remove(interface: &str, direction: &str, program: &str) -> Result<()> {
    let direction = if direction == INGRESS { TcAttachType::Ingress } else { TcAttachType::Egress };
    match qdisc_detach_program(interface, direction, program) {
        // With the interface, or the filter beside it, it is gone.
        Err(e) if if_nametoindex(interface).is_ok() && !e.to_string().contains("not found") => {
            Err(e).context("detach")
        }
        _ => Ok(()),
    }
}

/// Removes the interface's clsact queue.
pub(super) fn remove_queue(interface: &str) -> Result<()> {
    let Ok(index) = if_nametoindex(interface) else { return Ok(()) };
    ask(async |handle| {
        let mut request = handle.qdisc().del(index.cast_signed());
        request.message_mut().header =
            TcHeader { index: index.cast_signed(), parent: TcHandle::CLSACT, ..TcHeader::default() };
        request.message_mut().attributes.push(TcAttribute::Kind(CLSACT.to_owned()));
        request.execute().await?;
        Ok(())
    })
}

/// One conversation with the kernel.
fn ask<T>(work: impl AsyncFnOnce(&Handle) -> Result<T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().map_err(io::Error::other).context("open rtnetlink")?;
        tokio::spawn(connection);
        work(&handle).await
    })
}

fn kind(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn options(message: &TcMessage) -> Option<&Vec<TcOption>> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })
}

/// The name of the program that the filter runs, if it runs one.
fn program(message: &TcMessage) -> Option<String> {
    options(message)?.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
        _ => None,
    })
}
