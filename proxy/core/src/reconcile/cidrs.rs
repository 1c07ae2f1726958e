//! Where ClusterIPs are: the cluster's ranges, and each ClusterIP that is outside all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fairlead_abi::cidr_flags;
use ipnet::IpNet;

use super::pass::Pass;
use super::{Failure, Part};
use crate::dataplane::{MapError, RangeKey, ServiceMaps};

/// The ranges that the maps hold, and those that they should.
#[derive(Debug, Default)]
pub(super) struct Cidrs {
    /// Those of the cluster.
    ranges: BTreeSet<IpNet>,
    wanted: BTreeMap<RangeKey, u32>,
    programmed: BTreeMap<RangeKey, u32>,
    /// Those that may differ between the two.
    dirty: BTreeSet<RangeKey>,
}

impl Cidrs {
    /// Learns what an earlier run left in the maps.
    pub(super) fn adopt(&mut self, maps: &impl ServiceMaps) -> Result<(), MapError> {
        self.programmed = maps.service_cidrs()?.into_iter().collect();
        self.dirty.extend(self.programmed.keys());
        Ok(())
    }

    /// The cluster's ranges are these, and the ClusterIPs of Services those.
    pub(super) fn replace(&mut self, ranges: BTreeSet<IpNet>, addresses: impl Iterator<Item = IpAddr>) {
        self.dirty.extend(self.wanted.keys());
        self.wanted = ranges.iter().map(|range| ((*range).into(), cidr_flags::DROP)).collect();
        self.dirty.extend(self.wanted.keys());
        self.ranges = ranges;
        addresses.for_each(|address| self.set_address(address, true));
    }

    /// Some Service has this ClusterIP, or none any more.
    pub(super) fn set_address(&mut self, address: IpAddr, is_used: bool) {
        if self.ranges.iter().any(|range| range.contains(&address)) {
            return;
        }
        let key = IpNet::from(address).into();
        if is_used {
            self.wanted.insert(key, 0);
        } else {
            self.wanted.remove(&key);
        }
        self.dirty.insert(key);
    }

    /// Whether something could not be written.
    pub(super) fn is_pending(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Writes what is missing, then removes what is not wanted, so that no ClusterIP is without a range meanwhile.
    /// What follows a write that failed waits, since it is likely to fail as well.
    pub(super) fn apply(&mut self, pass: &mut Pass<'_, impl ServiceMaps>) {
        let (wanted, programmed) = (&self.wanted, &mut self.programmed);
        self.dirty.retain(|key| wanted.get(key) != programmed.get(key));
        let mut failed = None;
        self.dirty.retain(|key| {
            let Some(flags) = wanted.get(key).filter(|_| failed.is_none()) else { return true };
            failed = pass.maps.write_service_cidr(key, *flags).err();
            if failed.is_none() {
                programmed.insert(*key, *flags);
            }
            failed.is_some()
        });
        let mut failures: Vec<MapError> = failed.into_iter().collect();
        let mut failed = None;
        self.dirty.retain(|key| {
            if wanted.contains_key(key) || failed.is_some() {
                return true;
            }
            failed = pass.maps.remove_service_cidr(key).err();
            if failed.is_none() {
                programmed.remove(key);
            }
            failed.is_some()
        });
        failures.extend(failed);
        let failures = failures.into_iter().map(|error| Failure { part: Part::ServiceRanges, error });
        pass.report.failed.extend(failures);
    }
}
