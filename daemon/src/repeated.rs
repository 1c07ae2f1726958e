//! Keeps what is said again and again from filling the log: an outage that lasts for hours is worth a line now and then.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a message that was said is not said again.
pub const SILENCE: Duration = Duration::from_secs(300);
/// How many different messages are remembered. Beyond that, the oldest is forgotten.
const REMEMBERED: usize = 64;

/// How many lines of one kind are said at once: of a map that is full, ten thousand objects would each tell.
const AT_ONCE: usize = 20;

/// Says the first of these lines by `say`, and as a warning how many more there are.
pub fn some<T>(lines: impl IntoIterator<Item = T>, say: impl Fn(T)) {
    let mut lines = lines.into_iter();
    lines.by_ref().take(AT_ONCE).for_each(say);
    let more = lines.count();
    if more > 0 {
        tracing::warn!("and {more} more of the kind: see fairlead-proxy status");
    }
}

/// Remembers what was said.
#[derive(Debug, Default)]
pub struct Repeated(Mutex<BTreeMap<String, Said>>);

#[derive(Debug)]
struct Said {
    at: Instant,
    /// How often it was kept back since.
    kept_back: u64,
}

impl Repeated {
    /// Whether to say it now; then the text, with how often it was kept back.
    pub fn may_say(&self, text: &str) -> Option<String> {
        self.may_say_at(text, Instant::now())
    }

    fn may_say_at(&self, text: &str, now: Instant) -> Option<String> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = said.get_mut(text) {
            if now.saturating_duration_since(before.at) < SILENCE {
                before.kept_back += 1;
                return None;
            }
            let kept_back = std::mem::replace(before, Said { at: now, kept_back: 0 }).kept_back;
            return Some(match kept_back {
                0 => text.to_owned(),
                count => format!("{text} (and {count} times since it was last said)"),
            });
        }
        if said.len() >= REMEMBERED {
            let oldest = said.iter().min_by_key(|(_, said)| said.at).map(|(text, _)| text.clone());
            oldest.and_then(|text| said.remove(&text));
        }
        said.insert(text.to_owned(), Said { at: now, kept_back: 0 });
        Some(text.to_owned())
    }

    /// Says it as a warning, unless it was said just now.
    pub fn warn(&self, text: &str) {
        if let Some(text) = self.may_say(text) {
            tracing::warn!("{text}");
        }
    }

    /// The same as an error.
    pub fn error(&self, text: &str) {
        if let Some(text) = self.may_say(text) {
            tracing::error!("{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_again_and_again_is_said_now_and_then_with_its_count() {
        let (repeated, now) = (Repeated::default(), Instant::now());
        assert_eq!(repeated.may_say_at("no route", now).as_deref(), Some("no route"));
        for second in 1..10 {
            assert_eq!(repeated.may_say_at("no route", now + Duration::from_secs(second)), None);
        }
        assert_eq!(repeated.may_say_at("no address", now).as_deref(), Some("no address"));
        let later = repeated.may_say_at("no route", now + SILENCE);
        assert_eq!(later.as_deref(), Some("no route (and 9 times since it was last said)"));
        assert_eq!(repeated.may_say_at("no route", now + SILENCE), None);
    }

    #[test]
    fn of_many_lines_some_are_said() {
        let said = Mutex::new(Vec::new());
        some(0..1000, |line| said.lock().expect("not poisoned").push(line));
        assert_eq!(said.into_inner().expect("not poisoned"), (0..AT_ONCE).collect::<Vec<_>>());
    }

    #[test]
    fn no_more_is_remembered_than_is_worth_it() {
        let (repeated, now) = (Repeated::default(), Instant::now());
        for number in 0..1000_u32 {
            repeated.may_say_at(&number.to_string(), now + Duration::from_millis(number.into()));
        }
        assert_eq!(repeated.0.lock().expect("not poisoned").len(), REMEMBERED);
        assert_eq!(repeated.may_say_at("999", now + Duration::from_secs(1)), None, "the newest are");
    }
}
