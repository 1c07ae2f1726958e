//! Pure packet arithmetic for Fairlead: checksums, TCP state, port selection.
