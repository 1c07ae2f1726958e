//! The server over real HTTP, seen by the client library that Fairlead uses, and by kubectl.

mod common;
mod kubectl;
mod objects;
mod watches;
