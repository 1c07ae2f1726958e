//! Which node tells of what all nodes see: one of them, without asking the others.
//!
//! By rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998): whoever has
//! the highest digest of its own name with the object's. All who know the same nodes agree, and when a node goes only its
//! objects pass to others.

use crate::digest::digest;

/// The node that tells of `object`; none if there is no node.
pub fn reporter<'a>(nodes: impl IntoIterator<Item = &'a str>, object: &str) -> Option<&'a str> {
    // The name decides between equal digests.
    nodes.into_iter().max_by_key(|node| (digest(format!("{node}\0{object}").as_bytes()), *node))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const NODES: [&str; 5] = ["a", "b", "c", "d", "e"];

    fn objects() -> impl Iterator<Item = String> {
        (0..1000).map(|number| format!("Service shop/web-{number}"))
    }

    #[test]
    fn everybody_names_the_same_node_in_whatever_order_nodes_are_known() {
        let reversed: Vec<&str> = NODES.into_iter().rev().collect();
        for object in objects() {
            assert_eq!(reporter(NODES, &object), reporter(reversed.iter().copied(), &object));
        }
        assert_eq!(reporter([], "Service shop/web"), None);
    }

    #[test]
    fn a_node_that_goes_leaves_the_others_their_objects() {
        for object in objects() {
            let before = reporter(NODES, &object);
            let after = reporter(NODES.into_iter().filter(|node| *node != "c"), &object);
            assert!(before == Some("c") || before == after, "{object}: {before:?}, {after:?}");
        }
    }

    #[test]
    fn nodes_get_about_as_many_objects_each() {
        let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
        for object in objects() {
            *counts.entry(reporter(NODES, &object).expect("a node")).or_default() += 1;
        }
        assert!(counts.len() == 5 && counts.values().all(|count| (120..280).contains(count)), "{counts:?}");
    }
}
