//! Fairlead's cluster tests: real binaries, namespaces, sockets and watches.
