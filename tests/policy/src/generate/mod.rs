//! Random cases.
//!
//! Names, labels, addresses and ports are drawn from small pools, so that selectors match, ranges overlap and what goes
//! comes back.

mod objects;
mod policies;
mod probes;

use fairlead_prog_tests::random::Random;

use crate::case::{Case, Endpoint, Object, Step};
use crate::cluster::Cluster;
use crate::world;

pub use objects::{cluster, object_like};
pub use probes::probes;

/// How much happens in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// The cluster comes about object by object, and that is all.
    Straight,
    /// Objects have been otherwise before, some have gone, the agent restarts; and some change after the packets.
    Eventful,
}

/// A case: a cluster that has come about in some way, and packets that try it.
pub fn case(random: &mut Random, course: Course) -> Case {
    let things = cluster(random);
    let history = match course {
        Course::Straight => things.iter().map(Thing::there).collect(),
        Course::Eventful => history(random, &things),
    };
    let probes = probes(random, &Cluster::after(&history));
    let later = if course == Course::Eventful { later(random, &things) } else { Vec::new() };
    Case { about: String::new(), history, probes, later }
}

/// A part of the cluster that comes and goes by itself.
#[derive(Clone, Debug)]
pub enum Thing {
    /// An API object.
    Object(Object),
    /// A local pod's interface.
    Endpoint(Endpoint),
    /// The addresses of the node's interfaces.
    Addresses,
}

impl Thing {
    /// The step after which it is there.
    fn there(&self) -> Step {
        match self {
            Self::Object(object) => Step::Apply(object.clone()),
            Self::Endpoint(endpoint) => Step::Attach(endpoint.clone()),
            Self::Addresses => Step::Addresses(world::node_addresses()),
        }
    }
}

/// Steps after which exactly these things are there: some have been otherwise before, and some others have been there.
fn history(random: &mut Random, things: &[Thing]) -> Vec<Step> {
    let mut queues: Vec<Vec<Step>> = things.iter().map(|thing| past(random, thing)).collect();
    for thing in cluster(random) {
        if let Thing::Object(object) = thing
            && !things.iter().any(|other| is_same(other, &object))
            && chance(random, 1, 4)
        {
            queues.push(vec![Step::Apply(object.clone()), Step::Delete(object)]);
        }
    }
    queues.iter_mut().for_each(|queue| queue.reverse());
    let mut steps = Vec::new();
    while !queues.is_empty() {
        let index = random.below(queues.len());
        match queues[index].pop() {
            Some(step) => steps.push(step),
            None => drop(queues.swap_remove(index)),
        }
        match random.below(24) {
            0..=3 => steps.push(Step::Reconcile),
            4 => steps.push(Step::Restart),
            _ => {}
        }
    }
    steps
}

/// What a thing has been before it is as it is.
fn past(random: &mut Random, thing: &Thing) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..*random.one_of(&[0, 0, 0, 1, 2]) {
        match thing {
            Thing::Object(object) => {
                let before = object_like(random, object);
                steps.push(Step::Apply(before.clone()));
                if chance(random, 1, 4) {
                    steps.push(Step::Delete(before));
                }
            }
            Thing::Endpoint(endpoint) => {
                let before = objects::endpoint_like(random, endpoint);
                steps.extend([Step::Attach(before), Step::Detach(endpoint.index)]);
            }
            Thing::Addresses => steps.push(Step::Addresses(world::node_addresses().split_off(1))),
        }
    }
    steps.push(thing.there());
    steps
}

fn is_same(thing: &Thing, object: &Object) -> bool {
    let Thing::Object(other) = thing else { return false };
    std::mem::discriminant(other) == std::mem::discriminant(object) && other.name() == object.name()
}

/// Some objects change or go; or the agent restarts.
fn later(random: &mut Random, things: &[Thing]) -> Vec<Step> {
    let mut steps = if chance(random, 1, 4) { vec![Step::Restart] } else { Vec::new() };
    for thing in things {
        let Thing::Object(object) = thing else { continue };
        // A Pod or a Namespace that goes or becomes another leaves its interface to nobody: that comes in histories.
        let (changes, goes) = match object {
            Object::NetworkPolicy(_) | Object::ClusterNetworkPolicy(_) => (3, 3),
            Object::Pod(_) | Object::Namespace(_) => (6, 0),
            Object::Node(_) => (0, 0),
        };
        if changes == 0 || !chance(random, 1, changes) {
            continue;
        }
        let change = if goes > 0 && chance(random, 1, goes) {
            Step::Delete(object.clone())
        } else {
            Step::Apply(objects::relabelled(random, object))
        };
        steps.push(change);
    }
    steps
}

/// Whether a thing happens that does so `times` in `of`.
pub(crate) fn chance(random: &mut Random, times: usize, of: usize) -> bool {
    random.below(of) < times
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::oracle::Oracle;

    fn text<T: serde::Serialize>(value: &T) -> String {
        serde_json::to_string(value).expect("JSON")
    }

    #[test]
    fn a_history_ends_in_the_cluster_that_it_is_of() {
        let mut random = Random::announced();
        for _ in 0..50 {
            let things = cluster(&mut random);
            let end = Cluster::after(&history(&mut random, &things));
            let expected: BTreeSet<String> = things.iter().map(|thing| text(&thing.there())).collect();
            assert_eq!(end.steps().iter().map(text).collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn cases_are_sound_and_survive_being_written_down() {
        let mut random = Random::announced();
        for _ in 0..50 {
            let case = case(&mut random, Course::Eventful);
            let read: Case = serde_json::from_str(&text(&case)).expect("a case");
            assert!(read.is_sound());
            assert_eq!(text(&read), text(&case));
        }
    }
    #[test]
    fn packets_meet_every_verdict_and_none_too_often() {
        let mut random = Random::announced();
        let mut counts = BTreeMap::new();
        for _ in 0..300 {
            let case = case(&mut random, Course::Straight);
            let cluster = Cluster::after(&case.history);
            let oracle = Oracle::new(&cluster);
            for probe in &case.probes {
                *counts.entry(oracle.judge(probe).to_string()).or_insert(0_usize) += 1;
            }
        }
        println!("{counts:?}");
        let all: usize = counts.values().sum();
        assert_eq!(counts.len(), 9, "{counts:?}");
        assert!(counts.values().all(|count| (all / 250..all * 3 / 4).contains(count)), "{counts:?}");
    }
}
