//! The policy engine: objects in, maps out, and what packets then meet.

mod failures;
mod meaning;
mod restart;
mod storm;
mod world;
