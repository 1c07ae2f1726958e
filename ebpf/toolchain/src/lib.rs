//! Where the eBPF toolchain lives and how to call it.
