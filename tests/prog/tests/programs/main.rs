//! Packets through the loaded programs: one module per concern.

mod load;
mod pods;
