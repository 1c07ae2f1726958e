//! Whether the maps hold what an object says: the answer to "is it programmed?".
//!
//! Answered by [`Reconciler::service_effect`](crate::reconcile::Reconciler::service_effect),
//! [`Engine::policy_effect`](crate::policy::Engine::policy_effect) and
//! [`Engine::pod_effect`](crate::policy::Engine::pod_effect). A version is in effect from when all its writes have
//! succeeded, not from when it was heard of.

use crate::model::Problem;
use crate::stamp::Version;

/// How an object and the maps stand to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Its version as the maps hold it; none: they hold nothing of it, or after a failed write nobody can tell.
    pub version: Option<Version>,
    /// Its version as the API holds it, as far as was heard; none: the API has no such object.
    pub heard: Option<Version>,
    /// Of a Service: its EndpointSlices whose endpoints are in the maps, by name.
    pub slices: Vec<(String, Option<Version>)>,
    /// Whether the maps hold what was heard of it.
    pub state: State,
    /// Parts of it that make no sense, or that another object has.
    pub left_out: Vec<Problem>,
    /// What else is to be said of it.
    pub note: Option<String>,
}

/// Whether the maps hold what was heard of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not every first list is done: nobody can tell.
    NotSynced,
    /// They hold all of it that makes sense.
    InEffect,
    /// It has been heard of, and is about to be written.
    Waiting(String),
    /// A write failed, and is tried again; why.
    Failed(String),
    /// Only another version of this object, or of others, can be in effect: see [`Effect::left_out`].
    Refused,
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// At least this version.
    pub version: Option<Version>,
    /// That nothing of the object is in the maps any more.
    pub deleted: bool,
}

impl Effect {
    /// Of an object that the API does not have and the maps do not hold, once every first list is done.
    pub fn unknown(is_synced: bool) -> Self {
        let state = if is_synced { State::InEffect } else { State::NotSynced };
        Self { version: None, heard: None, slices: Vec::new(), state, left_out: Vec::new(), note: None }
    }

    /// Whether the API has the object, or the maps still hold something of it.
    pub fn is_known(&self) -> bool {
        self.version.is_some() || self.heard.is_some()
    }

    /// Whether what is wanted is so.
    ///
    /// # Errors
    /// What is missing, for people.
    pub fn meets(&self, wanted: Wanted) -> Result<(), String> {
        match &self.state {
            State::NotSynced => return Err("the API has not been listed yet".to_owned()),
            State::Failed(why) => return Err(why.clone()),
            State::Waiting(why) => return Err(why.clone()),
            State::Refused if !wanted.deleted => {
                let parts: Vec<String> = self.left_out.iter().map(ToString::to_string).collect();
                return Err(parts.join("; "));
            }
            State::InEffect | State::Refused => {}
        }
        let shown = |version: Option<Version>| version.map_or("(none)".to_owned(), |v| v.to_string());
        if wanted.deleted {
            return match self.heard {
                None => Ok(()),
                Some(_) => {
                    Err(format!("as far as was heard, the API has it at version {}", shown(self.heard)))
                }
            };
        }
        if self.heard.is_none() {
            return Err("as far as was heard, the API has no such object".to_owned());
        }
        match wanted.version {
            Some(wanted) if !self.version.is_some_and(|version| version.reaches(wanted)) => {
                Err(format!("version {} is in effect; {wanted} was not heard of", shown(self.version)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Option<Version> {
        Version::new(text)
    }

    fn at(text: &str, state: State) -> Effect {
        Effect { version: version(text), heard: version(text), state, ..Effect::unknown(true) }
    }

    #[test]
    fn a_version_is_reached_by_itself_and_by_newer_ones() {
        let effect = at("7", State::InEffect);
        for (wanted, is_met) in
            [(None, true), (version("6"), true), (version("7"), true), (version("8"), false)]
        {
            let wanted = Wanted { version: wanted, deleted: false };
            assert_eq!(effect.meets(wanted).is_ok(), is_met, "{wanted:?}");
        }
        let missing = effect.meets(Wanted { version: version("8"), deleted: false });
        assert_eq!(missing, Err("version 7 is in effect; 8 was not heard of".to_owned()));
    }

    #[test]
    fn what_is_not_written_is_not_in_effect_and_says_why() {
        for state in [State::Waiting("soon".into()), State::Failed("soon".into())] {
            for deleted in [false, true] {
                let missing = at("7", state.clone()).meets(Wanted { version: None, deleted });
                assert_eq!(missing, Err("soon".to_owned()));
            }
        }
    }

    #[test]
    fn nobody_can_tell_what_is_gone_before_the_first_lists_are_done() {
        let deleted = Wanted { version: None, deleted: true };
        assert!(Effect::unknown(false).meets(deleted).is_err());
        assert_eq!(Effect::unknown(true).meets(deleted), Ok(()));
        assert!(at("7", State::InEffect).meets(deleted).is_err());
        assert!(Effect::unknown(true).meets(Wanted::default()).is_err());
    }
}
