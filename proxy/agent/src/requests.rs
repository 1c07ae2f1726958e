//! What was asked over the agent's socket: how long it took, and how it ended.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use fairlead_daemon::exposition::Histogram;
use fairlead_net::agent::Request;

/// How long answers took, in seconds, by what was asked and whether it was done.
#[derive(Debug, Default)]
pub struct Requests(Mutex<BTreeMap<(&'static str, bool), Histogram>>);

impl Requests {
    /// Has `perform` answer, and notes how long that took.
    pub(crate) fn time<T, E>(
        &self,
        request: Request,
        perform: impl FnOnce(Request) -> Result<T, E>,
    ) -> Result<T, E> {
        let (name, started) = (name(&request), Instant::now());
        let result = perform(request);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let durations = known.entry((name, result.is_ok()));
        let durations = durations.or_insert_with(|| Histogram::exponential(0.001, 2.0, 14));
        durations.observe(started.elapsed().as_secs_f64());
        result
    }

    /// How long answers took.
    pub fn durations(&self) -> BTreeMap<(&'static str, bool), Histogram> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What is asked, as metrics call it: the plugin's requests one by one, those of people together.
fn name(request: &Request) -> &'static str {
    match request {
        Request::AddEndpoint(_) => "add",
        Request::DeleteEndpoint { .. } => "delete",
        Request::CheckEndpoint(_) => "check",
        _ => "look",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_timed_by_what_was_asked_and_how_it_ended() {
        let requests = Requests::default();
        for result in [Ok(()), Err("no"), Ok(())] {
            let delete = Request::DeleteEndpoint { container_id: "a".into(), ifname: "eth0".into() };
            assert_eq!(requests.time(delete, |_| result), result);
        }
        let counts: Vec<_> =
            requests.durations().into_iter().map(|(key, durations)| (key, durations.count())).collect();
        assert_eq!(counts, [(("delete", false), 1), (("delete", true), 2)]);
    }
}
