//! Fairlead's CNI plugin and its node daemon.

fn main() {}
