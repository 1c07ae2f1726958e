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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    learned: Vec<SocketAddr>,
    /// How often in a row one was asked in vain: after all of them it is the turn of what the kubeconfig names.
    in_vain: usize,
    /// How many requests were answered, and how many were not.
    requests: (u64, u64),
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
        Self { file: file.to_owned(), state: Mutex::new(State { learned, ..State::default() }) }
    }

    /// All, the one to ask first at the beginning; none if it is the turn of what the kubeconfig names.
    pub(crate) fn in_order(&self) -> Vec<SocketAddr> {
        let State { learned, in_vain, .. } = &*self.lock();
        if in_vain % (learned.len() + 1) == learned.len() { Vec::new() } else { learned.clone() }
    }

    /// These are the servers. Without any nothing changes: somebody has said so.
    pub(crate) fn learn(&self, mut servers: Vec<SocketAddr>) {
        servers.sort_unstable();
        servers.dedup();
        let learned = &mut self.lock().learned;
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

    /// This one takes connections: it is asked first from now on.
    pub(crate) fn prefer(&self, server: SocketAddr) {
        let learned = &mut self.lock().learned;
        if let Some(place) = learned.iter().position(|known| *known == server) {
            learned.rotate_left(place);
        }
    }

    /// Somebody answers.
    pub(crate) fn keep(&self) {
        let mut state = self.lock();
        state.in_vain = 0;
        state.requests.0 += 1;
    }

    /// How many there are, and how many requests were answered, and were not.
    pub(crate) fn counts(&self) -> (usize, (u64, u64)) {
        let state = self.lock();
        (state.learned.len(), state.requests)
    }

    /// This one was asked first, or what the kubeconfig names, and does not answer: it is asked last from now on.
    pub(crate) fn leave(&self, asked: Option<SocketAddr>) {
        let mut state = self.lock();
        state.requests.1 += 1;
        match asked {
            // Others may have waited for it in vain, too.
            Some(server) if state.learned.first() != Some(&server) => {}
            Some(_) => {
                state.learned.rotate_left(1);
                state.in_vain += 1;
            }
            None => state.in_vain += 1,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let first = |list: &[&str]| servers(list).first().copied();
        all.leave(first(&[b]));
        // Somebody else who waited for it in vain.
        all.leave(first(&[b]));
        assert_eq!(all.in_order(), servers(&[c, a, b]));
    }

    #[test]
    fn when_all_were_asked_in_vain_it_is_the_turn_of_what_the_kubeconfig_names() {
        let directory = tempfile::tempdir().expect("directory");
        let all = Servers::remembered(&directory.path().join("servers.json"));
        let [a, b] = ["192.0.2.1:1", "192.0.2.2:1"];
        all.learn(servers(&[a, b]));
        let fail = || all.leave(all.in_order().first().copied());
        fail();
        assert_eq!(all.in_order(), servers(&[b, a]));
        fail();
        assert!(all.in_order().is_empty());
        fail();
        assert_eq!(all.in_order(), servers(&[a, b]));
        fail();
        all.keep();
        fail();
        assert_eq!(all.in_order(), servers(&[a, b]), "an answer has begun the count anew");
    }
}
