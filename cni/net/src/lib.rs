//! Pod wiring for Fairlead: configuration, addresses, plans and their execution by rtnetlink.
pub mod agent;
