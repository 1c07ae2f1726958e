//! What the command line asks about, assembled from the agent's parts: connections, the flow table, backends, local
//! pods, and the agent's own times. Called on threads that may block; nothing here changes anything.

pub mod backends;
pub mod endpoints;
pub mod flow_table;
pub mod flows;
pub mod times;
