//! Fairlead's benchmarks, beside plain kernel routing.

fn main() {}
