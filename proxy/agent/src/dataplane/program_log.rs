//! What the programs say of themselves in the log, by aya-log, where the log is at debug for [`TARGET`].
//!
//! Otherwise the programs are loaded with a level of nothing, and the verifier removes what would say something; of the ring
//! that it would come by a page is left, since the object names it. Kernel 5.8.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::DataplaneError;

/// The part of the log that the programs' words belong to.
pub const TARGET: &str = "fairlead_prog";

/// The ring, as the object names it.
const RING: &str = "AYA_LOGS";
/// The smallest ring that the kernel makes, in bytes.
const SMALLEST: u32 = 4096;
/// aya-log's number of the level debug, and of none.
const LEVELS: [u8; 2] = [0, 4];

/// Whether the programs are to say something.
pub fn is_wanted() -> bool {
    tracing::enabled!(target: TARGET, tracing::Level::DEBUG)
}

/// Has the programs that are loaded say something, or nothing.
pub(super) fn set<'a>(loader: &mut EbpfLoader<'a>, wanted: bool) {
    loader.override_global(aya_log::LEVEL, &LEVELS[usize::from(wanted)], false);
    if !wanted {
        loader.map_max_entries(RING, SMALLEST);
    }
}

/// What the programs say.
pub struct ProgramLog(EbpfLogger<&'static dyn Log>);

impl ProgramLog {
    /// Of these programs.
    ///
    /// # Errors
    /// When the object holds no ring.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        EbpfLogger::init(ebpf).map(Self).map_err(|e| DataplaneError::new("use map", RING, e))
    }

    /// Hands on what they say, for ever.
    ///
    /// # Errors
    /// When the ring can't be waited for.
    pub async fn follow(self) -> io::Result<()> {
        // SAFETY: the logger owns its ring's descriptor, which stays open, and the same, for as long as it lives.
        let mut ring = unsafe { AsyncFd::register_with_interest(Ring(self.0), Interest::READABLE) }?;
        loop {
            let mut ready = ring.readable_mut().await?;
            ready.get_inner_mut().0.flush();
            ready.clear_ready();
        }
    }
}

struct Ring(EbpfLogger<&'static dyn Log>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
