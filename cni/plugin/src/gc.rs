//! GC: removes every attachment of the network that the runtime no longer lists (`cni.dev/valid-attachments`).

use fairlead_net::config::NetConf;
use fairlead_net::gc::{Agent, Collected, collect};
use fairlead_net::store::Store;

use crate::failure::{Code, Failure};

pub(crate) fn gc(conf: &NetConf) -> Result<(), Failure> {
    let valid = conf.valid_attachments()?;
    let store = Store::open(&conf.data_dir, &conf.name)?;
    let Collected { removed, failed } =
        collect(&store, &mut Agent::at(conf.agent_socket.as_deref()), &valid)?;
    for attachment in &removed {
        tracing::info!(%attachment, "removed");
    }
    if failed.is_empty() {
        return Ok(());
    }
    let message = format!("{} of {} stale attachments are left", failed.len(), failed.len() + removed.len());
    let details: Vec<String> =
        failed.iter().map(|(attachment, error)| format!("{attachment}: {error}")).collect();
    Err(Failure::new(Code::Io, message).with_details(details.join("\n")))
}
