//! The server over real HTTP, seen by the client library that Fairlead uses, and by kubectl.

mod common;
mod faults;
mod kubectl;
mod objects;
mod policies;
mod rights;
mod scale;
mod services;
mod watches;
