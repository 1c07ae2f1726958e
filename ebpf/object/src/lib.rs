//! The compiled eBPF programs, embedded as bytes.
