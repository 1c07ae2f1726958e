//! The pure half of the Fairlead proxy: what the maps should hold, from what the API holds.
