//! Which addresses are in use, and which comes next: the pure half of address management.
//!
//! A [`Ledger`] is a value; [`crate::store`] keeps it on disk, under a lock.
//!
//! Rules:
//! - An attachment gets one address of each family that the node has a range for. Of several ranges of one
//!   family the first with a free address is used.
//! - IPv4 ranges do not give out their network and broadcast addresses (first and last), except /31 and /32,
//!   which have none (RFC 3021). `.1` is an address like any other: pods have no gateway in their range.
//! - IPv6 ranges do not give out their first address, the subnet-router anycast address (RFC 4291, section
//!   2.6.1), except /127 and /128 (RFC 6164).
//! - Freed addresses are reused last: a cursor goes round each range, and the [`RECENT`] addresses freed last
//!   are taken, oldest first, only when nothing else is free. Peers that remember the former owner
//!   (connections, DNS caches) get time to forget.
//! - After a reboot no address is in use: the interfaces are gone.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::attachment::Attachment;

/// How many freed addresses are remembered: a whole /24, so that there the order of reuse is exact.
pub const RECENT: usize = 256;

/// Why no address is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// Every address is in use.
    #[error("no free address in {ranges}: {in_use} in use", ranges = join(.ranges))]
    Exhausted {
        /// The ranges of the family that is used up.
        ranges: Vec<IpNet>,
        /// How many of their addresses are in use.
        in_use: usize,
    },
    /// An address that was asked for is not one that the node's pods may have.
    #[error("{address} can't be given: it is no pod's address in {ranges}", ranges = join(.ranges))]
    NotOurs {
        /// The address.
        address: IpAddr,
        /// The node's ranges.
        ranges: Vec<IpNet>,
    },
    /// An address that was asked for is in use.
    #[error("{address} can't be given: {holder} has it")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The attachment that has it.
        holder: String,
    },
    /// The attachment already has addresses: its ADD has succeeded before.
    #[error("{0} is attached already")]
    Attached(Attachment),
}

fn join(ranges: &[IpNet]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What [`Ledger::reserve`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// At most one address of each family, in the order of the ranges.
    pub addresses: Vec<IpAddr>,
    /// An earlier ADD of this attachment died half way: what it made on the host may still be there.
    pub resumed: bool,
}

/// The addresses in use on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ledger {
    /// The boot that the leases belong to.
    boot_id: String,
    /// By attachment, as "container/interface".
    leases: BTreeMap<String, Lease>,
    /// The address given last, by range.
    cursors: BTreeMap<IpNet, IpAddr>,
    /// Freed addresses, oldest first.
    freed: VecDeque<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lease {
    addresses: Vec<IpAddr>,
    /// Whether the ADD has succeeded.
    committed: bool,
    /// When the last ADD began, in seconds since the machine started.
    #[serde(default)]
    since: u64,
}

/// What an attachment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The attachment.
    pub attachment: Attachment,
    /// Whether its ADD has succeeded.
    pub committed: bool,
    /// When its last ADD began, in seconds since the machine started.
    pub since: u64,
}

impl Ledger {
    /// Frees everything in use if `boot_id` is another one than the ledger's; the cursors go on.
    pub fn enter_boot(&mut self, boot_id: &str) {
        if self.boot_id != boot_id {
            self.boot_id = boot_id.into();
            let leases = std::mem::take(&mut self.leases);
            self.free(leases.into_values().flat_map(|lease| lease.addresses));
        }
    }

    /// Gives `attachment` an address of each family in `ranges`, to be confirmed by [`Ledger::commit`]: one of
    /// `wanted`, which has at most one of each family, or else the next that is free. `now` is in seconds since the
    /// machine started.
    ///
    /// # Errors
    /// When a family is used up, a wanted address can't be had, or the attachment's ADD has succeeded before; nothing
    /// has changed then.
    pub fn reserve(
        &mut self,
        attachment: &Attachment,
        ranges: &[IpNet],
        wanted: &[IpAddr],
        now: u64,
    ) -> Result<Reservation, IpamError> {
        let key = attachment.to_string();
        let resumed = match self.leases.get_mut(&key) {
            Some(lease) if lease.committed => return Err(IpamError::Attached(attachment.clone())),
            Some(lease) => {
                let kept = lease.addresses.clone();
                if ranges.iter().all(|range| kept.iter().any(|address| same_family(range, address)))
                    && kept.iter().all(|address| ranges.iter().any(|range| range.contains(address)))
                    && wanted.iter().all(|address| kept.contains(address))
                {
                    lease.since = now;
                    return Ok(Reservation { addresses: kept, resumed: true });
                }
                true
            }
            None => false,
        };
        for address in wanted {
            self.may_have(&key, *address, ranges)?;
        }
        let mut addresses: Vec<IpAddr> = Vec::new();
        let mut cursors = Vec::new();
        for range in ranges {
            if addresses.iter().any(|address| same_family(range, address)) {
                continue;
            }
            if let Some(address) = wanted.iter().find(|address| same_family(range, address)) {
                addresses.push(*address);
                continue;
            }
            let family: Vec<IpNet> =
                ranges.iter().filter(|r| same_family(r, &range.addr())).copied().collect();
            let next = family.iter().find_map(|range| Some((*range, self.next(range)?)));
            let (range, address) = next.ok_or_else(|| self.exhausted(family))?;
            addresses.push(address);
            cursors.push((range, address));
        }
        self.release(attachment);
        self.freed.retain(|address| !addresses.contains(address));
        self.cursors.extend(cursors);
        self.leases.insert(key, Lease { addresses: addresses.clone(), committed: false, since: now });
        Ok(Reservation { addresses, resumed })
    }

    /// Takes down what `attachment` is found to hold: its ADD has succeeded, but its record is lost.
    pub fn adopt(&mut self, attachment: &Attachment, addresses: &[IpAddr]) {
        let lease = Lease { addresses: addresses.to_vec(), committed: true, since: 0 };
        self.leases.insert(attachment.to_string(), lease);
    }

    /// Every attachment that holds something.
    pub fn holdings(&self) -> impl Iterator<Item = Holding> {
        self.leases.iter().filter_map(|(key, lease)| {
            let attachment = key.parse().ok()?;
            Some(Holding { attachment, committed: lease.committed, since: lease.since })
        })
    }

    /// Confirms a reservation: the attachment's ADD has succeeded. False if there is none.
    #[must_use]
    pub fn commit(&mut self, attachment: &Attachment) -> bool {
        let lease = self.leases.get_mut(&attachment.to_string());
        lease.map(|lease| lease.committed = true).is_some()
    }

    /// Frees what `attachment` holds. False if it holds nothing.
    pub fn release(&mut self, attachment: &Attachment) -> bool {
        let Some(lease) = self.leases.remove(&attachment.to_string()) else {
            return false;
        };
        self.free(lease.addresses);
        true
    }

    fn free(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.freed.extend(addresses);
        let surplus = self.freed.len().saturating_sub(RECENT);
        self.freed.drain(..surplus);
    }

    /// The addresses that `attachment` holds, confirmed or not.
    #[must_use]
    pub fn addresses(&self, attachment: &Attachment) -> &[IpAddr] {
        self.leases.get(&attachment.to_string()).map_or(&[], |lease| &lease.addresses)
    }

    fn next(&self, range: &IpNet) -> Option<IpAddr> {
        let in_use: HashSet<&IpAddr> = self.in_use().collect();
        let recent: HashSet<&IpAddr> = self.freed.iter().collect();
        let usable = usable(range);
        let start = match self.cursors.get(range).map(|address| number(*address) + 1) {
            Some(after) if usable.contains(&after) => after,
            _ => *usable.start(),
        };
        (start..=*usable.end())
            .chain(*usable.start()..start)
            .map(|number| address(range, number))
            .find(|address| !in_use.contains(address) && !recent.contains(address))
            .or_else(|| {
                let free =
                    |a: &&IpAddr| range.contains(*a) && usable.contains(&number(**a)) && !in_use.contains(a);
                self.freed.iter().find(free).copied()
            })
    }

    fn may_have(&self, key: &str, address: IpAddr, ranges: &[IpNet]) -> Result<(), IpamError> {
        let pods = |range: &IpNet| range.contains(&address) && usable(range).contains(&number(address));
        if !ranges.iter().any(pods) {
            return Err(IpamError::NotOurs { address, ranges: ranges.to_vec() });
        }
        let holds =
            |(holder, lease): &(&String, &Lease)| *holder != key && lease.addresses.contains(&address);
        match self.leases.iter().find(holds) {
            Some((holder, _)) => Err(IpamError::Taken { address, holder: holder.clone() }),
            None => Ok(()),
        }
    }

    fn exhausted(&self, ranges: Vec<IpNet>) -> IpamError {
        let inside = |address: &&IpAddr| ranges.iter().any(|range| range.contains(*address));
        let in_use = self.in_use().filter(inside).count();
        IpamError::Exhausted { ranges, in_use }
    }

    fn in_use(&self) -> impl Iterator<Item = &IpAddr> {
        self.leases.values().flat_map(|lease| &lease.addresses)
    }
}

fn same_family(range: &IpNet, address: &IpAddr) -> bool {
    range.addr().is_ipv4() == address.is_ipv4()
}

/// The addresses of `range` that pods may have, as numbers.
fn usable(range: &IpNet) -> RangeInclusive<u128> {
    let (first, last) = (number(range.network()), number(range.broadcast()));
    let host_bits = range.max_prefix_len() - range.prefix_len();
    match range {
        _ if host_bits < 2 => first..=last,
        IpNet::V4(_) => first + 1..=last - 1,
        IpNet::V6(_) => first + 1..=last,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// The inverse of [`number`], for a number within `range`.
fn address(range: &IpNet, number: u128) -> IpAddr {
    match range {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("range")).collect()
    }

    fn pod(n: u32) -> Attachment {
        Attachment::new(&format!("pod{n}"), "eth0").expect("valid")
    }

    fn give(ledger: &mut Ledger, n: u32, texts: &[&str]) -> Vec<String> {
        let given = ledger.reserve(&pod(n), &ranges(texts), &[], 0).expect("an address");
        assert!(ledger.commit(&pod(n)));
        given.addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dual_stack_node_gives_one_address_of_each_family() {
        let both = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        let mut ledger = Ledger::default();
        assert_eq!(give(&mut ledger, 1, &both), ["10.244.1.1", "fd00:10:244:1::1"]);
        assert_eq!(give(&mut ledger, 2, &both), ["10.244.1.2", "fd00:10:244:1::2"]);
        assert_eq!(give(&mut ledger, 3, &both[1..]), ["fd00:10:244:1::3"]);
    }

    #[test]
    fn network_broadcast_and_anycast_addresses_are_never_given() {
        for (range, expected) in [
            ("10.0.0.0/29", vec!["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
            ("10.0.0.0/31", vec!["10.0.0.0", "10.0.0.1"]),
            ("10.0.0.7/32", vec!["10.0.0.7"]),
            ("255.255.255.252/30", vec!["255.255.255.253", "255.255.255.254"]),
            ("fd00::/126", vec!["fd00::1", "fd00::2", "fd00::3"]),
            ("fd00::/127", vec!["fd00::", "fd00::1"]),
        ] {
            let mut ledger = Ledger::default();
            let count = u32::try_from(expected.len()).expect("few");
            let given: Vec<_> = (0..count).flat_map(|n| give(&mut ledger, n, &[range])).collect();
            assert_eq!(given, expected);
            let error = ledger.reserve(&pod(99), &ranges(&[range]), &[], 0).expect_err("used up");
            assert_eq!(error, IpamError::Exhausted { ranges: ranges(&[range]), in_use: expected.len() });
        }
    }

    #[test]
    fn a_second_range_of_a_family_serves_when_the_first_is_used_up() {
        let mut ledger = Ledger::default();
        let two = ["10.0.0.0/32", "10.0.1.0/32"];
        assert_eq!(give(&mut ledger, 1, &two), ["10.0.0.0"]);
        assert_eq!(give(&mut ledger, 2, &two), ["10.0.1.0"]);
        assert!(ledger.reserve(&pod(3), &ranges(&two), &[], 0).is_err());
    }

    #[test]
    fn freed_addresses_are_reused_last_and_oldest_first() {
        let range = ["10.0.0.0/29"];
        let mut ledger = Ledger::default();
        for n in 1..=4 {
            give(&mut ledger, n, &range);
        }
        ledger.release(&pod(3));
        ledger.release(&pod(1));
        let order: Vec<_> = (11..=14).flat_map(|n| give(&mut ledger, n, &range)).collect();
        assert_eq!(order, ["10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.1"]);
        ledger.release(&pod(12));
        ledger.release(&pod(11));
        let again: Vec<_> = (21..=22).flat_map(|n| give(&mut ledger, n, &range)).collect();
        assert_eq!(again, ["10.0.0.6", "10.0.0.5"]);
    }

    #[test]
    fn exhaustion_of_one_family_takes_nothing_of_the_other() {
        let mut ledger = Ledger::default();
        give(&mut ledger, 1, &["10.0.0.0/32", "fd00::/64"]);
        let before = ledger.clone();
        let error =
            ledger.reserve(&pod(2), &ranges(&["fd00::/64", "10.0.0.0/32"]), &[], 0).expect_err("no IPv4");
        assert_eq!(error.to_string(), "no free address in 10.0.0.0/32: 1 in use");
        assert_eq!(ledger, before);
    }

    #[test]
    fn a_committed_attachment_is_not_given_addresses_twice() {
        let mut ledger = Ledger::default();
        give(&mut ledger, 1, &["10.0.0.0/24"]);
        assert_eq!(
            ledger.reserve(&pod(1), &ranges(&["10.0.0.0/24"]), &[], 0),
            Err(IpamError::Attached(pod(1)))
        );
    }

    #[test]
    fn an_add_that_died_half_way_is_resumed_with_its_addresses() {
        let mut ledger = Ledger::default();
        let pools = ranges(&["10.0.0.0/24", "fd00::/64"]);
        let first = ledger.reserve(&pod(1), &pools, &[], 0).expect("fresh");
        let second = ledger.reserve(&pod(1), &pools, &[], 0).expect("resumed");
        assert!(!first.resumed && second.resumed);
        assert_eq!(first.addresses, second.addresses);
        let moved = ledger.reserve(&pod(1), &ranges(&["10.9.0.0/24"]), &[], 0).expect("the ranges changed");
        assert!(moved.resumed);
        assert_eq!(ledger.addresses(&pod(1)), moved.addresses);
        assert_eq!(ledger.in_use().count(), 1);
    }

    #[test]
    fn a_reboot_frees_everything_and_the_cursor_goes_on() {
        let mut ledger = Ledger::default();
        ledger.enter_boot("one");
        give(&mut ledger, 1, &["10.0.0.0/24"]);
        ledger.enter_boot("one");
        assert_eq!(ledger.addresses(&pod(1)).len(), 1);
        ledger.enter_boot("two");
        assert!(ledger.addresses(&pod(1)).is_empty());
        assert_eq!(give(&mut ledger, 1, &["10.0.0.0/24"]), ["10.0.0.2"]);
    }

    #[test]
    fn what_was_in_use_before_a_reboot_is_used_again_last() {
        let range = ["10.0.0.0/29"];
        let mut ledger = Ledger::default();
        ledger.enter_boot("one");
        for n in 1..=4 {
            give(&mut ledger, n, &range);
        }
        ledger.release(&pod(2));
        ledger.enter_boot("two");
        let order: Vec<_> = (11..=16).flat_map(|n| give(&mut ledger, n, &range)).collect();
        assert_eq!(order, ["10.0.0.5", "10.0.0.6", "10.0.0.2", "10.0.0.1", "10.0.0.3", "10.0.0.4"]);
    }

    #[test]
    fn what_is_remembered_of_freed_addresses_stays_small() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            give(&mut ledger, n, &["fd00::/64"]);
            ledger.release(&pod(n));
        }
        assert_eq!(ledger.freed.len(), RECENT);
        assert_eq!(give(&mut ledger, 0, &["fd00::/64"]), ["fd00::3e9"]);
    }

    fn ask(ledger: &mut Ledger, n: u32, texts: &[&str], wanted: &[&str]) -> Result<Vec<String>, String> {
        let wanted: Vec<IpAddr> = wanted.iter().map(|text| text.parse().expect("address")).collect();
        let given = ledger.reserve(&pod(n), &ranges(texts), &wanted, 0).map_err(|e| e.to_string())?;
        Ok(given.addresses.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_wanted_address_is_given_and_the_other_family_gets_its_next() {
        let both = ["10.244.1.0/24", "fd00::/64"];
        let mut ledger = Ledger::default();
        assert_eq!(
            ask(&mut ledger, 1, &both, &["10.244.1.77"]),
            Ok(vec!["10.244.1.77".into(), "fd00::1".into()])
        );
        assert_eq!(give(&mut ledger, 2, &both), ["10.244.1.1", "fd00::2"]);
        // Until it is committed, its own next ADD may ask for it again, or for another.
        let again = ask(&mut ledger, 1, &both, &["10.244.1.77"]);
        assert_eq!(again, Ok(vec!["10.244.1.77".into(), "fd00::1".into()]));
        assert_eq!(ask(&mut ledger, 1, &both, &["10.244.1.78"]).expect("free")[0], "10.244.1.78");
        assert_eq!(ask(&mut ledger, 3, &both, &["10.244.1.77"]).expect("freed")[0], "10.244.1.77");
    }

    #[test]
    fn a_wanted_address_that_is_in_use_or_no_pods_is_refused_and_nothing_is_taken() {
        let range = ["10.244.1.0/24"];
        let mut ledger = Ledger::default();
        give(&mut ledger, 1, &range);
        let before = ledger.clone();
        assert_eq!(
            ask(&mut ledger, 2, &range, &["10.244.1.1"]),
            Err("10.244.1.1 can't be given: pod1/eth0 has it".into())
        );
        for wanted in ["10.244.2.1", "10.244.1.0", "10.244.1.255", "fd00::1"] {
            assert_eq!(
                ask(&mut ledger, 2, &range, &[wanted]),
                Err(format!("{wanted} can't be given: it is no pod's address in 10.244.1.0/24"))
            );
        }
        assert_eq!(ledger, before);
    }

    #[test]
    fn addresses_of_a_former_range_stay_in_use_and_do_not_count_against_the_new_one() {
        let mut ledger = Ledger::default();
        give(&mut ledger, 1, &["10.0.0.0/24"]);
        assert_eq!(give(&mut ledger, 2, &["10.9.0.0/32"]), ["10.9.0.0"]);
        assert_eq!(ledger.addresses(&pod(1)).len(), 1);
        let error = ledger.reserve(&pod(3), &ranges(&["10.9.0.0/32"]), &[], 0).expect_err("used up");
        assert_eq!(error.to_string(), "no free address in 10.9.0.0/32: 1 in use");
        // Back to a range that overlaps the former: what is still in use there is not given again.
        assert_eq!(give(&mut ledger, 3, &["10.0.0.0/30"]), ["10.0.0.2"]);
    }

    #[test]
    fn several_ranges_of_each_family_serve_one_after_the_other_and_exhaustion_names_them_all() {
        let four = ["10.0.0.0/32", "fd00::/127", "10.0.1.0/32", "fd00:1::/127"];
        let mut ledger = Ledger::default();
        assert_eq!(give(&mut ledger, 1, &four), ["10.0.0.0", "fd00::"]);
        assert_eq!(give(&mut ledger, 2, &four), ["10.0.1.0", "fd00::1"]);
        let error = ledger.reserve(&pod(3), &ranges(&four), &[], 0).expect_err("no IPv4");
        assert_eq!(error.to_string(), "no free address in 10.0.0.0/32, 10.0.1.0/32: 2 in use");
    }

    #[test]
    fn what_is_adopted_is_in_use() {
        let mut ledger = Ledger::default();
        ledger.adopt(&pod(1), &["10.0.0.1".parse().expect("address")]);
        assert_eq!(give(&mut ledger, 2, &["10.0.0.0/30"]), ["10.0.0.2"]);
        let holdings: Vec<_> = ledger.holdings().map(|holding| holding.attachment).collect();
        assert_eq!(holdings, [pod(1), pod(2)]);
    }

    #[test]
    fn a_ledger_of_an_older_release_is_understood() {
        let json = r#"{"bootId":"one","leases":{"a/eth0":{"addresses":["10.0.0.1"],"committed":true}},
            "cursors":{"10.0.0.0/24":"10.0.0.1"},"freed":[]}"#;
        let ledger: Ledger = serde_json::from_str(json).expect("a ledger");
        assert_eq!(ledger.holdings().count(), 1);
    }
}
