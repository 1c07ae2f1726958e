//! Which API servers there are, and which one is asked.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fairlead_net::files;

/// The servers that have been learned, in the order in which they are tried.
#[derive(Debug)]
pub(crate) struct Servers {
    file: PathBuf,
    learned: Mutex<Vec<SocketAddr>>,
}

impl Servers {
    /// Those that `file` remembers; none if it can't be read.
    pub(crate) fn remembered(file: &Path) -> Self {
        let text = match fs::read(file) {
            Ok(text) => text,
            Err(e) => {
                if e.kind() != ErrorKind::NotFound {
                    tracing::warn!("read the API servers remembered in {}: {e}", file.display());
                }
                b"[]".into()
            }
        };
        let learned = serde_json::from_slice(&text).unwrap_or_else(|e| {
            tracing::warn!("decode the API servers remembered in {}: {e}", file.display());
            Vec::new()
        });
        Self { file: file.to_owned(), learned: Mutex::new(learned) }
    }

    /// All, the one to ask first at the beginning.
    pub(crate) fn in_order(&self) -> Vec<SocketAddr> {
        self.lock().clone()
    }

    /// These are the servers. Without any nothing changes: somebody has said so.
    pub(crate) fn learn(&self, mut servers: Vec<SocketAddr>) {
        servers.sort_unstable();
        servers.dedup();
        let mut learned = self.lock();
        let mut known = learned.clone();
        known.sort_unstable();
        if servers.is_empty() || servers == known {
            return;
        }
        tracing::info!(?servers, "the API servers");
        match serde_json::to_vec(&servers) {
            Ok(text) => {
                if let Err(e) = files::replace(&self.file, &text, 0o644) {
                    tracing::warn!("remember the API servers: {e}");
                }
            }
            Err(e) => tracing::warn!("remember the API servers: {e}"),
        }
        // The one that is asked stays so, if there still is one.
        if let Some(place) = learned.first().and_then(|first| servers.iter().position(|s| s == first)) {
            servers.rotate_left(place);
        }
        *learned = servers;
    }

    /// This one answers: it is asked first from now on.
    pub(crate) fn prefer(&self, server: SocketAddr) {
        let mut learned = self.lock();
        if let Some(place) = learned.iter().position(|known| *known == server) {
            learned.rotate_left(place);
        }
    }

    /// This one does not answer: it is asked last from now on, if it was asked first.
    pub(crate) fn leave(&self, server: SocketAddr) {
        let mut learned = self.lock();
        if learned.first() == Some(&server) {
            learned.rotate_left(1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.learned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers(list: &[&str]) -> Vec<SocketAddr> {
        list.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn what_was_learned_outlives_the_process_and_an_empty_list_is_not_believed() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("run/servers.json");
        let learner = Servers::remembered(&file);
        assert!(learner.in_order().is_empty());
        learner.learn(servers(&["192.0.2.2:6443", "[2001:db8::1]:6443"]));
        learner.learn(Vec::new());
        let expected = servers(&["192.0.2.2:6443", "[2001:db8::1]:6443"]);
        assert_eq!(learner.in_order(), expected);
        assert_eq!(Servers::remembered(&file).in_order(), expected);
        fs::write(&file, "nonsense").expect("write");
        assert!(Servers::remembered(&file).in_order().is_empty());
    }

    #[test]
    fn the_one_that_answers_stays_the_first_until_it_is_left() {
        let directory = tempfile::tempdir().expect("directory");
        let all = Servers::remembered(&directory.path().join("servers.json"));
        let [a, b, c] = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"];
        all.learn(servers(&[a, b]));
        all.prefer(servers(&[b])[0]);
        all.learn(servers(&[a, b, c]));
        assert_eq!(all.in_order(), servers(&[b, c, a]));
        all.leave(servers(&[b])[0]);
        // Somebody else who waited for it in vain.
        all.leave(servers(&[b])[0]);
        assert_eq!(all.in_order(), servers(&[c, a, b]));
    }
}
