//! What a packet, a look-up and a connect() cost on this node: for `fairlead-proxy bench-self`.
//!
//! Nothing here touches traffic: packets are handed to programs that are attached nowhere and have maps of their own
//! ([`programs`]), and connections go from this process to itself over loopback ([`connect`]).

pub mod connect;
pub mod programs;

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What something costs, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// What it is.
    pub what: String,
    /// How often it was done.
    pub times: usize,
    /// Half of them took no longer.
    pub p50: u64,
    /// Ninety-nine in a hundred took no longer.
    pub p99: u64,
}

impl Cost {
    /// Of these times.
    pub fn of(what: impl Into<String>, mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        let at = |part: usize| {
            let place = (took.len() * part / 100).min(took.len().saturating_sub(1));
            took.get(place).map_or(0, |took| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
        };
        Self { what: what.into(), times: took.len(), p50: at(50), p99: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_is_told_by_its_median_and_its_tail() {
        let took = (1..=200).rev().map(Duration::from_nanos).collect();
        assert_eq!(Cost::of("x", took), Cost { what: "x".into(), times: 200, p50: 101, p99: 199 });
        assert_eq!(Cost::of("none", Vec::new()).p99, 0);
    }
}
