//! Who gets an address that several Services ask for: the older one, then the one whose name sorts first.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use fairlead_abi::FrontendKey;

use crate::model::ObjectName;

/// Every frontend that any Service asks for, with all who ask.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// In order of who gets it. Nearly always one.
    claimants: HashMap<FrontendKey, Vec<(i64, ObjectName)>>,
    of_service: HashMap<ObjectName, (i64, Box<[FrontendKey]>)>,
}

impl Claims {
    /// Replaces what `service`, created at `created`, asks for; returns the others for whom that may
    /// change something.
    pub(super) fn replace(
        &mut self,
        service: &ObjectName,
        created: i64,
        mut keys: Vec<FrontendKey>,
    ) -> BTreeSet<ObjectName> {
        keys.sort_unstable();
        let (old_created, old_keys) = self.of_service.remove(service).unwrap_or_default();
        let mut affected = BTreeSet::new();
        let kept = |key: &FrontendKey| {
            created == old_created && keys.binary_search(key).is_ok() && old_keys.binary_search(key).is_ok()
        };
        for key in old_keys.iter().filter(|key| !kept(key)) {
            if let Some(claimants) = self.claimants.get_mut(key) {
                claimants.retain(|(_, name)| name != service);
                affected.extend(claimants.iter().map(|(_, name)| name.clone()));
                if claimants.is_empty() {
                    self.claimants.remove(key);
                }
            }
        }
        for key in keys.iter().filter(|key| !kept(key)) {
            let claimants = self.claimants.entry(*key).or_insert_with(|| Vec::with_capacity(1));
            affected.extend(claimants.iter().map(|(_, name)| name.clone()));
            let claimant = (created, service.clone());
            if let Err(place) = claimants.binary_search(&claimant) {
                claimants.insert(place, claimant);
            }
        }
        if !keys.is_empty() {
            self.of_service.insert(service.clone(), (created, keys.into()));
        }
        affected
    }

    /// Who gets the frontend at `key`.
    pub(super) fn winner(&self, key: &FrontendKey) -> Option<&ObjectName> {
        self.claimants.get(key)?.first().map(|(_, name)| name)
    }

    /// All that `service` asks for.
    pub(super) fn keys_of(&self, service: &ObjectName) -> impl Iterator<Item = &FrontendKey> + '_ {
        self.of_service.get(service).into_iter().flat_map(|(_, keys)| keys)
    }

    /// The whole addresses that `service` asks for.
    pub(super) fn whole_of(&self, service: &ObjectName) -> impl Iterator<Item = IpAddr> + '_ {
        self.keys_of(service).filter_map(whole)
    }

    /// The whole addresses that any Service asks for.
    pub(super) fn whole(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.claimants.keys().filter_map(whole)
    }
}

fn whole(key: &FrontendKey) -> Option<IpAddr> {
    (*key == FrontendKey::whole(key.address)).then(|| key.address.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, frontend_key};

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn key() -> FrontendKey {
        frontend_key("192.0.2.1".parse().expect("an address"), 80, Protocol::Tcp)
    }

    #[test]
    fn the_older_service_keeps_a_contested_address_whoever_came_first() {
        for order in [["young", "old"], ["old", "young"]] {
            let mut claims = Claims::default();
            for service in order {
                let created = if service == "old" { 1 } else { 2 };
                claims.replace(&name(service), created, vec![key()]);
            }
            assert_eq!(claims.winner(&key()), Some(&name("old")));
        }
    }

    #[test]
    fn the_name_decides_between_services_of_one_age() {
        let mut claims = Claims::default();
        claims.replace(&name("b"), 1, vec![key()]);
        let affected = claims.replace(&name("a"), 1, vec![key()]);
        assert_eq!(affected, BTreeSet::from([name("b")]));
        assert_eq!(claims.winner(&key()), Some(&name("a")));
    }

    #[test]
    fn a_withdrawn_claim_passes_to_the_next() {
        let mut claims = Claims::default();
        claims.replace(&name("a"), 1, vec![key()]);
        claims.replace(&name("b"), 2, vec![key()]);
        assert_eq!(claims.replace(&name("a"), 0, Vec::new()), BTreeSet::from([name("b")]));
        assert_eq!(claims.winner(&key()), Some(&name("b")));
        claims.replace(&name("b"), 0, Vec::new());
        assert_eq!(claims.winner(&key()), None);
    }

    #[test]
    fn a_service_created_anew_loses_its_seniority() {
        let mut claims = Claims::default();
        claims.replace(&name("a"), 1, vec![key()]);
        claims.replace(&name("b"), 2, vec![key()]);
        assert_eq!(claims.replace(&name("a"), 3, vec![key()]), BTreeSet::from([name("b")]));
        assert_eq!(claims.winner(&key()), Some(&name("b")));
    }
}
