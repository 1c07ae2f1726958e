//! Maglev tables: which backend gets a client's flow, the same on every node (Eisenbud et al., NSDI 2016).
//!
//! Called by [`crate::reconcile`] for the backends of clients outside, where the operator asks for it. The programs
//! take the place that `fairlead_flow::maglev::hash` of the client says.
//!
//! Each backend has a preference among the places, a permutation that follows from its address and port alone. In
//! turns, each takes the place that it likes best of those still free. So all get equally many, and when one goes,
//! others take its places, while few of theirs change hands. The table follows from the set of addresses: not from
//! ids, which are another on each node, nor from the order of events.

use crate::endpoints::BackendAddress;

/// The table of `backends`, which are in order and each there once: for each of `size` places, a prime number, the
/// index of a backend. A backend has its fair share of places to within one; if there are more backends than places,
/// the last ones have none.
pub fn table(backends: &[BackendAddress], size: u32) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    let mut places = vec![FREE; size as usize];
    let mut preferences: Vec<Preference> =
        backends.iter().map(|backend| Preference::of(backend, size)).collect();
    let mut left = if backends.is_empty() { 0 } else { size };
    'full: loop {
        for (index, preference) in (0..).zip(&mut preferences) {
            if left == 0 {
                break 'full;
            }
            let place = loop {
                let place = preference.next_place();
                if places[place] == FREE {
                    break place;
                }
            };
            places[place] = index;
            left -= 1;
        }
        if preferences.is_empty() {
            break;
        }
    }
    places
}

/// Whether a table may have this size.
pub fn is_prime(size: u32) -> bool {
    size >= 2
        && (2..).take_while(|divisor| divisor * divisor <= size).all(|divisor| !size.is_multiple_of(divisor))
}

/// A walk over all places, in the order in which a backend likes them.
struct Preference {
    place: u32,
    step: u32,
    size: u32,
}

impl Preference {
    fn of(backend: &BackendAddress, size: u32) -> Self {
        let hash = hash(backend);
        let (low, high) = (hash as u32, (hash >> 32) as u32);
        // Any step is coprime to a prime size, so the walk comes to every place.
        Self { place: low % size, step: high % (size - 1) + 1, size }
    }

    fn next_place(&mut self) -> usize {
        let place = self.place;
        // The sum modulo the size, as neither exceeds it.
        let ahead = self.size - self.step;
        self.place = if place < ahead { place + self.step } else { place - ahead };
        place as usize
    }
}

/// FNV-1a over the bytes of address and port, then the finalizer of splitmix64, without which addresses that differ
/// in their last byte alone would have similar preferences.
fn hash(backend: &BackendAddress) -> u64 {
    let address = match backend.ip {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    };
    let bytes = address.into_iter().chain(backend.port.to_be_bytes());
    let mut hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 1021;

    fn backends(count: usize) -> Vec<BackendAddress> {
        let of = |number: usize| BackendAddress {
            ip: format!("10.244.{}.{}", number / 200, number % 200 + 1).parse().expect("an address"),
            port: 8080,
        };
        (0..count).map(of).collect()
    }

    /// What each place of the table leads to.
    fn targets(backends: &[BackendAddress], size: u32) -> Vec<BackendAddress> {
        table(backends, size).into_iter().map(|index| backends[index as usize]).collect()
    }

    #[test]
    fn every_backend_has_its_fair_share_of_places_to_within_one() {
        for count in [1, 2, 3, 10, 100, 1000, 1021] {
            let mut shares = vec![0; count];
            for index in table(&backends(count), SIZE) {
                shares[index as usize] += 1;
            }
            let fair = SIZE as usize / count;
            assert!(shares.iter().all(|share| (fair..=fair + 1).contains(share)), "{count}: {shares:?}");
        }
    }

    #[test]
    fn tables_of_the_smallest_sizes_and_of_too_many_backends_are_full() {
        assert_eq!(table(&backends(1), 2), [0, 0]);
        assert_eq!(table(&backends(5), 3).len(), 3);
        assert!(table(&backends(5), 3).iter().all(|index| *index < 3));
        assert!(table(&[], 3).iter().all(|index| *index == u32::MAX));
    }

    #[test]
    fn only_primes_are_sizes() {
        let primes: Vec<u32> = (0..30).filter(|size| is_prime(*size)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        assert!(
            is_prime(1021) && is_prime(16_381) && is_prime(65_537) && !is_prime(1023) && !is_prime(u32::MAX)
        );
    }

    /// A flow whose backend stays should stay with it. A change must move the places of the backend that goes, or as
    /// many as the one that comes has a right to; what moves beyond that is printed, and bounded.
    #[test]
    fn few_flows_move_when_a_backend_goes_or_comes() {
        for (count, size, bound) in
            [(10, SIZE, 0.05), (100, SIZE, 0.08), (10, 16_381, 0.02), (100, 16_381, 0.03)]
        {
            let all = backends(count);
            let whole = targets(&all, size);
            let (mut worst, mut sum) = (0.0_f64, 0.0);
            for gone in 0..count {
                let mut rest = all.clone();
                let gone = rest.remove(gone);
                let without = targets(&rest, size);
                let moved =
                    whole.iter().zip(&without).filter(|(had, has)| **had != gone && had != has).count();
                let share = moved as f64 / f64::from(size);
                worst = worst.max(share);
                sum += share;
            }
            let mean = sum / count as f64;
            println!(
                "1 of {count} backends goes or comes, {size} places: besides its own, {:.2} % of the places change \
                 hands on average, {:.2} % at worst",
                mean * 100.0,
                worst * 100.0
            );
            assert!(worst < bound, "{count} backends, {size} places: {worst}");
        }
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -p fairlead-core maglev -- --ignored --nocapture"]
    fn ten_thousand_tables_are_built() {
        for count in [10, 100] {
            let all = backends(count);
            let start = std::time::Instant::now();
            let sum: u64 = (0..10_000).map(|_| u64::from(table(&all, SIZE)[0])).sum();
            println!("10,000 tables of {SIZE} places for {count} backends: {:?} ({sum})", start.elapsed());
        }
    }
}
