//! The policy oracle.

pub mod case;
pub mod cluster;
pub mod generate;
pub mod maps;
pub mod oracle;
pub mod script;
pub mod world;
