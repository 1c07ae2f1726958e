//! Nodes, pods and a fabric in network namespaces, for Fairlead's demo, tests and benchmarks.

fn main() {}
