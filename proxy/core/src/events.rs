//! What is told of objects that can't be programmed, and when: as Events of the API, which people see beside the object.
//!
//! [`Teller`] is given what is wrong now, and says what to tell now: a complaint that lasts for [`SETTLE`], again every
//! [`REPEAT`] while it lasts, and once that it is mended. It tells no more than [`BURST`] at once and one every [`REFILL`]
//! after that: what has to wait is told later, if it is still so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long something must be wrong, or be right again, before it is told: most failures are mended by then.
pub const SETTLE: Duration = Duration::from_secs(3);
/// How often a complaint that lasts is told.
pub const REPEAT: Duration = Duration::from_secs(300);
/// How soon a complaint is told again because its text has changed.
pub const RETELL: Duration = Duration::from_secs(30);
/// How many events may be told at once.
pub const BURST: u32 = 20;
/// How long it takes until one more may be told.
pub const REFILL: Duration = Duration::from_secs(2);
/// The longest text of an event, in bytes: the API takes 1024.
const LONGEST: usize = 1000;

/// The object that an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    /// Its kind.
    pub kind: String,
    /// Its namespace; empty if its kind has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Subject {
    /// The object of that label, as in `Service shop/web` or `Node a`.
    pub fn labelled(label: &str) -> Option<Self> {
        let (kind, name) = label.split_once(' ')?;
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        Some(Self { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Fields make no sense, and are left out. Every node sees it.
    FieldsLeftOut,
    /// Another object has an address and port that this one asks for. Every node sees it, or most do.
    AddressTaken,
    /// This node could not write it.
    NotProgrammed,
}

impl Reason {
    /// As the API has it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::FieldsLeftOut => "FieldsLeftOut",
            Self::AddressTaken => "AddressTaken",
            Self::NotProgrammed => "NotProgrammed",
        }
    }

    /// The reason of the event that tells that it is mended.
    pub const fn mended(self) -> &'static str {
        match self {
            Self::FieldsLeftOut => "FieldsMended",
            Self::AddressTaken => "AddressHad",
            Self::NotProgrammed => "Programmed",
        }
    }

    /// Whether every node sees it, so that one is to tell of it.
    pub const fn is_shared(self) -> bool {
        !matches!(self, Self::NotProgrammed)
    }
}

/// What is wrong now, with its text, by object and reason.
pub type Complaints = BTreeMap<(Subject, Reason), String>;

/// An event to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub subject: Subject,
    /// As the API has it.
    pub reason: &'static str,
    /// Its text.
    pub note: String,
    /// Whether it tells of something wrong.
    pub is_warning: bool,
}

/// Decides what to tell.
#[derive(Debug)]
pub struct Teller {
    known: BTreeMap<(Subject, Reason), Known>,
    tokens: u32,
    refilled: Instant,
}

#[derive(Debug)]
struct Known {
    note: String,
    /// Since when it has had this text, or been mended.
    since: Instant,
    /// When it was last told.
    told: Option<Instant>,
    /// Whether what was told is its text now.
    is_told: bool,
    /// Whether it is wrong no more.
    is_mended: bool,
}

impl Known {
    fn new(note: String, now: Instant) -> Self {
        Self { note, since: now, told: None, is_told: false, is_mended: false }
    }

    /// When it is to be told.
    fn due(&self) -> Instant {
        let settled = self.since + SETTLE;
        match self.told {
            None => settled,
            Some(_) if self.is_mended => settled,
            Some(told) if self.is_told => told + REPEAT,
            Some(told) => settled.max(told + RETELL),
        }
    }
}

impl Teller {
    /// Nothing known yet.
    pub fn new(now: Instant) -> Self {
        Self { known: BTreeMap::new(), tokens: BURST, refilled: now }
    }

    /// What to tell now, when this is all that is wrong. Of objects that are gone nothing is told.
    pub fn next(
        &mut self,
        now: Instant,
        complaints: &Complaints,
        exists: impl Fn(&Subject) -> bool,
    ) -> Vec<Event> {
        self.take(now, complaints);
        self.known.retain(|key, known| {
            let is_over = known.is_mended && (known.told.is_none() || !exists(&key.0));
            !is_over
        });
        let mut due: Vec<_> = self.known.iter().map(|(key, known)| (known.due(), key.clone())).collect();
        due.retain(|(at, _)| *at <= now);
        due.sort();
        self.refill(now);
        let mut events = Vec::new();
        for (_, key) in due {
            if self.tokens == 0 {
                break;
            }
            self.tokens -= 1;
            events.extend(self.tell(key, now));
        }
        events
    }

    /// When to call [`Self::next`] again even if nothing changes.
    pub fn next_deadline(&self) -> Option<Instant> {
        let due = self.known.values().map(Known::due).min()?;
        Some(if self.tokens == 0 { due.max(self.refilled + REFILL) } else { due })
    }

    /// Whether something was told that has not been told to be mended.
    pub fn is_open(&self, subject: &Subject) -> bool {
        self.known.keys().any(|(known, _)| known == subject)
    }

    fn take(&mut self, now: Instant, complaints: &Complaints) {
        for (key, note) in complaints {
            let known = self.known.entry(key.clone()).or_insert_with(|| Known::new(note.clone(), now));
            if known.is_mended {
                // Wrong again before anybody was told otherwise.
                (known.is_mended, known.since) = (false, now);
            }
            if known.note != *note {
                note.clone_into(&mut known.note);
                (known.since, known.is_told) = (now, false);
            }
        }
        for (key, known) in &mut self.known {
            if !known.is_mended && !complaints.contains_key(key) {
                (known.is_mended, known.since) = (true, now);
            }
        }
    }

    fn tell(&mut self, key: (Subject, Reason), now: Instant) -> Option<Event> {
        let known = self.known.get_mut(&key)?;
        if known.is_mended {
            self.known.remove(&key);
            let note = "what was wrong is mended".to_owned();
            return Some(Event { subject: key.0, reason: key.1.mended(), note, is_warning: false });
        }
        (known.told, known.is_told) = (Some(now), true);
        let note = known.note.clone();
        Some(Event { subject: key.0, reason: key.1.label(), note, is_warning: true })
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && self.refilled + REFILL <= now {
            self.tokens += 1;
            self.refilled += REFILL;
        }
        if self.tokens == BURST {
            self.refilled = now;
        }
    }
}

/// One text of several, no longer than an event may have.
pub fn note(parts: &[String]) -> String {
    let mut text = String::new();
    for (place, part) in parts.iter().enumerate() {
        let more = format!("; and {} more", parts.len() - place);
        if !text.is_empty() && text.len() + part.len() + more.len() + 2 > LONGEST {
            return text + &more;
        }
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(part);
    }
    let end = text.floor_char_boundary(LONGEST);
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(name: &str) -> Subject {
        Subject::labelled(&format!("Service shop/{name}")).expect("a label")
    }

    fn wrong(notes: &[(&str, &str)]) -> Complaints {
        let complaint =
            |(name, note): &(&str, &str)| ((subject(name), Reason::FieldsLeftOut), (*note).to_owned());
        notes.iter().map(complaint).collect()
    }

    /// A teller and its clock.
    struct Bench {
        teller: Teller,
        started: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let started = Instant::now();
            Self { teller: Teller::new(started), started }
        }

        /// What is told at that second: `!` for a warning, `+` for what is mended.
        fn at(&mut self, second: u64, complaints: &Complaints) -> Vec<String> {
            let now = self.started + Duration::from_secs(second);
            let events = self.teller.next(now, complaints, |subject| subject.name != "deleted");
            let show = |event: Event| {
                format!("{}{} {}", if event.is_warning { '!' } else { '+' }, event.subject.name, event.note)
            };
            events.into_iter().map(show).collect()
        }
    }

    #[test]
    fn what_lasts_is_told_once_then_now_and_then_and_when_it_is_mended() {
        let (mut bench, bad, good) = (Bench::new(), wrong(&[("web", "port 0")]), Complaints::new());
        assert_eq!(bench.at(0, &bad), Vec::<String>::new(), "it may be mended at once");
        assert_eq!(bench.at(3, &bad), ["!web port 0"]);
        assert_eq!(bench.at(299, &bad), Vec::<String>::new());
        assert_eq!(bench.at(303, &bad), ["!web port 0"]);
        assert_eq!(bench.at(310, &good), Vec::<String>::new());
        assert_eq!(bench.at(313, &good), ["+web what was wrong is mended"]);
        assert_eq!(bench.at(1000, &good), Vec::<String>::new());
        assert_eq!(bench.teller.next_deadline(), None);
    }

    #[test]
    fn what_passes_by_itself_is_not_told() {
        let (mut bench, bad, good) = (Bench::new(), wrong(&[("web", "map full")]), Complaints::new());
        bench.at(0, &bad);
        for second in 1..10 {
            assert_eq!(bench.at(second, &good), Vec::<String>::new());
        }
    }

    #[test]
    fn another_text_is_told_but_not_each_that_comes_by() {
        let mut bench = Bench::new();
        bench.at(0, &wrong(&[("web", "port 0")]));
        assert_eq!(bench.at(3, &wrong(&[("web", "port 0")])), ["!web port 0"]);
        for second in 4..33 {
            let other = format!("port {second}");
            assert_eq!(bench.at(second, &wrong(&[("web", &other)])), Vec::<String>::new());
        }
        bench.at(33, &wrong(&[("web", "port 99")]));
        assert_eq!(bench.at(36, &wrong(&[("web", "port 99")])), ["!web port 99"]);
    }

    #[test]
    fn of_objects_that_are_gone_nothing_is_told() {
        let (mut bench, bad, good) = (Bench::new(), wrong(&[("deleted", "port 0")]), Complaints::new());
        bench.at(0, &bad);
        assert_eq!(bench.at(3, &bad), ["!deleted port 0"]);
        bench.at(4, &good);
        assert_eq!(bench.at(60, &good), Vec::<String>::new());
    }

    #[test]
    fn a_flood_is_told_slowly_and_nothing_of_it_is_lost() {
        let names: Vec<String> = (0..100).map(|number| format!("web-{number:03}")).collect();
        let notes: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "port 0")).collect();
        let (mut bench, bad) = (Bench::new(), wrong(&notes));
        bench.at(0, &bad);
        assert_eq!(bench.at(3, &bad).len(), BURST as usize);
        assert_eq!(bench.at(4, &bad).len(), 0);
        let later: usize = (5..250).map(|second| bench.at(second, &bad).len()).sum();
        assert_eq!(later, 80, "the rest, each once");
    }

    #[test]
    fn a_text_is_no_longer_than_the_api_takes() {
        assert_eq!(note(&["a: b".into(), "c: d".into()]), "a: b; c: d");
        let many: Vec<String> =
            (0..200).map(|number| format!("spec.ports[{number}].port: it is 0")).collect();
        let text = note(&many);
        assert!(text.len() <= LONGEST && text.ends_with(" more"), "{text}");
        assert_eq!(note(&["ü".repeat(2000)]).len(), LONGEST);
    }

    #[test]
    fn a_label_names_an_object() {
        let node = Subject { kind: "Node".into(), namespace: String::new(), name: "a".into() };
        assert_eq!(Subject::labelled("Node a"), Some(node));
        assert_eq!(subject("web").namespace, "shop");
        assert_eq!(Subject::labelled("nothing"), None);
    }
}
