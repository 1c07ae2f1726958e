//! The compiled eBPF programs, embedded as bytes.

/// Gives the bytes the alignment that an ELF parser wants.
#[repr(C, align(32))]
struct Aligned<Bytes: ?Sized>(Bytes);

static EMBEDDED: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/fairlead.o")));

/// The object file, or nothing where the build had no eBPF toolchain (`make setup` installs it).
pub static OBJECT: &[u8] = &EMBEDDED.0;
