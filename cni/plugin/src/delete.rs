//! DEL: removes whatever it finds, from a record or without one; it needs neither the pod's namespace, nor a previous
//! result, nor the agent, nor the node file, and what the runtime asks for besides is not even read.

use fairlead_net::config::NetConf;
use fairlead_net::gc::{Agent, detach};
use fairlead_net::store::Store;

use crate::environment::Environment;
use crate::failure::Failure;

pub(crate) fn delete(environment: &Environment, conf: &NetConf) -> Result<(), Failure> {
    let attachment = environment.attachment()?;
    let store = Store::open(&conf.data_dir, &conf.name)?;
    detach(&store, &mut Agent::at(conf.agent_socket.as_deref()), &attachment)?;
    Ok(())
}
