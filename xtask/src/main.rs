//! Sets up the eBPF toolchain, builds, tests, demonstrates and measures Fairlead.

fn main() {}
