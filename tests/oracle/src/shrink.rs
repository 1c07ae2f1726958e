//! A failing case, reduced to what it needs to fail.
//!
//! A case is a tree of JSON; whatever can be taken out of it, is: runs of list elements, first long ones, and members
//! of objects. What is no case any more, or does not fail, is put back.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How many cases are tried at most.
const PATIENCE: usize = 4_000;

/// The smallest case found for which `fails` is still true.
#[must_use]
pub fn shrink<C>(case: &C, mut fails: impl FnMut(&C) -> bool) -> C
where
    C: Clone + Serialize + DeserializeOwned,
{
    let mut best = serde_json::to_value(case).unwrap_or_default();
    let mut tries = 0;
    let mut attempt = |candidate: &Value| {
        tries += 1;
        tries <= PATIENCE && serde_json::from_value(candidate.clone()).is_ok_and(|case| fails(&case))
    };
    loop {
        let before = best.clone();
        let mut path = Vec::new();
        thin(&mut best, &mut path, &mut attempt);
        if best == before {
            return serde_json::from_value(best).unwrap_or_else(|_| case.clone());
        }
    }
}

/// One step from a value to a part of it.
#[derive(Clone, Debug)]
enum Part {
    Element(usize),
    Member(String),
}

/// Takes out what can be spared of the part at `path`, from the outside in.
fn thin(root: &mut Value, path: &mut Vec<Part>, attempt: &mut impl FnMut(&Value) -> bool) {
    match part(root, path).cloned() {
        Some(Value::Array(list)) => {
            let mut run = list.len();
            while run > 0 {
                let mut start = 0;
                while let Some(Value::Array(list)) = part(root, path).filter(|list| start < len(list)) {
                    let end = list.len().min(start + run);
                    let rest = [&list[..start], &list[end..]].concat();
                    if !replace(root, path, Value::Array(rest), attempt) {
                        start += run;
                    }
                }
                run /= 2;
            }
            for index in 0..part(root, path).map_or(0, len) {
                path.push(Part::Element(index));
                thin(root, path, attempt);
                path.pop();
            }
        }
        Some(Value::Object(object)) => {
            for name in object.keys() {
                let mut rest = match part(root, path) {
                    Some(Value::Object(object)) => object.clone(),
                    _ => return,
                };
                rest.remove(name);
                if !replace(root, path, Value::Object(rest), attempt) {
                    path.push(Part::Member(name.clone()));
                    thin(root, path, attempt);
                    path.pop();
                }
            }
        }
        _ => {}
    }
}

fn part<'a>(root: &'a Value, path: &[Part]) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, part| match part {
        Part::Element(index) => value.get(index),
        Part::Member(name) => value.get(name),
    })
}

fn len(value: &Value) -> usize {
    value.as_array().map_or(0, Vec::len)
}

/// Puts `value` at `path` if what comes of it still fails.
fn replace(root: &mut Value, path: &[Part], value: Value, attempt: &mut impl FnMut(&Value) -> bool) -> bool {
    let mut candidate = root.clone();
    let place = path.iter().try_fold(&mut candidate, |value, part| match part {
        Part::Element(index) => value.get_mut(index),
        Part::Member(name) => value.get_mut(name),
    });
    let Some(place) = place else { return false };
    *place = value;
    let fails = attempt(&candidate);
    if fails {
        *root = candidate;
    }
    fails
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{At, Case, Kind, Probe};

    #[test]
    fn only_what_a_failure_needs_is_left() {
        let probe = |port: u16| Probe {
            at: At::Wire,
            kind: Kind::Udp,
            from: ([198, 51, 100, 7], port).into(),
            to: ([10, 96, 0, 1], 53).into(),
            often: true,
        };
        let case = Case { about: "long".into(), probes: (1..40).map(probe).collect(), ..Case::default() };
        let has = |case: &Case, port| case.probes.iter().any(|probe| probe.from.port() == port);
        let least = shrink(&case, |case| has(case, 3) && has(case, 33));
        let ports: Vec<u16> = least.probes.iter().map(|probe| probe.from.port()).collect();
        assert_eq!((least.about.as_str(), ports), ("", vec![3, 33]));
        assert!(least.probes.iter().all(|probe| !probe.often));
    }
}
