//! Random cases.
//!
//! Addresses, ports and names are drawn from small pools, so that objects meet: Services contest an address, slices
//! repeat each other's endpoints, clients come back.

mod objects;
mod packets;

use fairlead_prog_tests::random::Random;

use crate::case::{Case, Object, Settings, Step};

pub use objects::{cluster, object_like};
pub use packets::probes;

/// A case: a cluster that has come about in some way, and packets that try it.
pub fn case(random: &mut Random) -> Case {
    let settings = settings(random);
    let objects = cluster(random);
    let history = history(random, &objects);
    let probes = probes(random, &objects);
    let later = if chance(random, 1, 2) { later(random, &objects) } else { Vec::new() };
    Case { about: String::new(), settings, history, probes, later }
}

/// Some Services and slices change or go; or the proxy restarts, and nothing else happens.
fn later(random: &mut Random, objects: &[Object]) -> Vec<Step> {
    let mut steps = if chance(random, 1, 4) { vec![Step::Restart] } else { Vec::new() };
    for object in objects {
        let touched = match object {
            Object::Service(_) => chance(random, 1, 6),
            Object::EndpointSlice(_) => chance(random, 1, 3),
            Object::Node(_) | Object::ServiceCIDR(_) => false,
        };
        if touched && chance(random, 1, 3) {
            steps.push(Step::Delete(object.clone()));
        } else if touched {
            steps.push(Step::Apply(objects::changed(random, object)));
        }
    }
    steps
}

fn settings(random: &mut Random) -> Settings {
    let ranges = |listed: &[&str]| listed.iter().map(|text| text.parse().expect("a range")).collect();
    let nodeport_addresses = match random.below(8) {
        0 => Some(ranges(&["0.0.0.0/0", "::/0"])),
        1 => Some(ranges(&["203.0.113.128/25", "2001:db8::/64"])),
        2 => Some(ranges(&["192.0.2.0/24"])),
        _ => None,
    };
    let service_cidrs = match random.below(8) {
        0 => Some(ranges(&["10.96.0.0/24", "fd00:96::/112"])),
        1 => Some(Vec::new()),
        _ => None,
    };
    let maglev = if chance(random, 1, 4) { Some(*random.one_of(&[31, 61])) } else { None };
    Settings { nodeport_addresses, service_cidrs, maglev }
}

/// Steps after which exactly `objects` are there: some have been otherwise before, and some others have been there.
fn history(random: &mut Random, objects: &[Object]) -> Vec<Step> {
    let mut queues: Vec<Vec<Step>> = Vec::new();
    for object in objects {
        let mut queue = Vec::new();
        for _ in 0..*random.one_of(&[0, 0, 0, 1, 2]) {
            let before = object_like(random, object);
            queue.push(Step::Apply(before.clone()));
            if chance(random, 1, 4) {
                queue.push(Step::Delete(before));
            }
        }
        queue.push(Step::Apply(object.clone()));
        queues.push(queue);
    }
    for object in cluster(random).iter().filter(|object| !there(objects, object)) {
        if chance(random, 1, 4) {
            queues.push(vec![Step::Apply(object.clone()), Step::Delete(object.clone())]);
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
            0 | 1 => steps.push(Step::Reconcile),
            2 => steps.push(Step::Restart),
            _ => {}
        }
    }
    steps
}

fn there(objects: &[Object], object: &Object) -> bool {
    objects.iter().any(|other| objects::name(other) == objects::name(object))
}

/// Whether a thing happens that does so `times` in `of`.
pub(crate) fn chance(random: &mut Random, times: usize, of: usize) -> bool {
    random.below(of) < times
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cluster::Cluster;

    #[test]
    fn a_history_ends_in_the_cluster_that_it_is_of() {
        let mut random = Random::announced();
        for _ in 0..50 {
            let objects = cluster(&mut random);
            let end = Cluster::after(&history(&mut random, &objects));
            let text = |object: &Object| serde_json::to_string(object).expect("JSON");
            let expected: BTreeSet<String> = objects.iter().map(text).collect();
            assert_eq!(end.objects().map(|object| text(&object)).collect::<BTreeSet<_>>(), expected);
        }
    }

    #[test]
    fn a_case_survives_being_written_down() {
        let mut random = Random::announced();
        for _ in 0..50 {
            let text = serde_json::to_string(&case(&mut random)).expect("JSON");
            let read: Case = serde_json::from_str(&text).expect("a case");
            assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
        }
    }
}
