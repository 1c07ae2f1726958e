//! Fairlead's eBPF programs.

fn main() {}
