//! Fairlead's service proxy: watches the API and programs the eBPF maps.
