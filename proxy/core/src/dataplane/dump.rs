//! How the maps in memory are printed.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::IpAddr;

use fairlead_abi::{Backend, Frontend, FrontendKey, Region, cidr_flags, frontend_flags};

use super::MemoryMaps;
use crate::model::{frontend_label, socket_label};

/// The word for each flag that says something of its own.
const FLAGS: [(u32, &str); 4] = [
    (frontend_flags::HAS_ENDPOINTS, "has_endpoints"),
    (frontend_flags::KEEP_SOURCE, "keep_source"),
    (frontend_flags::GUARDED, "guarded"),
    (frontend_flags::NODE_PORT, "node_port"),
];

impl MemoryMaps {
    /// The frontends with their backends, in order of address, with Service ids numbered from 1 in order
    /// of appearance, so that two dumps are equal if the programs would do the same:
    ///
    /// ```text
    /// 10.96.0.1 whole
    /// 10.96.0.1:80/tcp #1 has_endpoints affinity=10800
    ///   internal 10.244.0.2:8080 10.244.1.2:8080
    ///   external 10.244.0.2:8080
    ///   maglev 7 10.244.0.2:8080*4 10.244.1.2:8080*3
    /// 192.0.2.1:80/tcp #1 has_endpoints guarded
    ///   from 10.0.0.0/8
    ///   10.244.0.2:8080
    /// ```
    ///
    /// A frontend with the same backends for all clients has one line for both. A slot that refers to no
    /// backend is printed as `?`. Source ranges that no frontend asks for come last.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        let mut numbers: HashMap<u32, usize> = HashMap::new();
        let mut frontends: Vec<_> = self.frontends.iter().collect();
        frontends.sort_by_key(|(key, _)| (IpAddr::from(key.address), key.port.number(), key.protocol));
        for (key, frontend) in frontends {
            if frontend.flags & frontend_flags::WHOLE != 0 {
                // Writing to a String can't fail.
                let _ = writeln!(text, "{:?} whole", key.address);
                continue;
            }
            let next = numbers.len() + 1;
            let number = *numbers.entry(frontend.service).or_insert(next);
            let _ = writeln!(text, "{} #{number}{}", frontend_label(key), words(frontend));
            for line in self.details(key, frontend) {
                let _ = writeln!(text, "  {line}");
            }
        }
        for range in self.source_ranges.iter().filter(|(service, _)| !numbers.contains_key(service)) {
            let _ = writeln!(text, "unused source ranges {:?}", range.1);
        }
        text
    }

    /// The ranges of ClusterIPs, in order: `10.96.0.0/12 drop`, `192.0.2.1/32`.
    pub fn cidrs(&self) -> Vec<String> {
        let label = |flags: u32| if flags & cidr_flags::DROP != 0 { " drop" } else { "" };
        self.service_cidrs.iter().map(|(cidr, flags)| format!("{cidr}{}", label(*flags))).collect()
    }

    /// Backends that are in no frontend's region, in order: established flows may still go to them.
    pub fn lingering(&self) -> Vec<String> {
        let alone =
            self.backends.iter().filter(|(id, backend)| backend.has_tenant() && !self.is_referred_to(**id));
        let mut labels: Vec<String> = alone.map(|(_, backend)| backend_label(backend)).collect();
        labels.sort();
        labels
    }

    fn details(&self, key: &FrontendKey, frontend: &Frontend) -> Vec<String> {
        let mut lines = Vec::new();
        if frontend.flags & frontend_flags::GUARDED != 0 {
            let ranges = self.source_ranges.get(&frontend.service).into_iter().flatten();
            let own = ranges.filter(|range| range.range.address.is_v4() == key.address.is_v4());
            let labels: Vec<String> = own.map(|range| range.clients().to_string()).collect();
            lines.push(format!("from {}", labels.join(" ")));
        }
        let (internal, external) = (self.labels(frontend.internal), self.labels(frontend.external));
        if internal != external {
            lines.extend([format!("internal {internal}"), format!("external {external}")]);
        } else if !internal.is_empty() {
            lines.push(internal);
        }
        if frontend.maglev.len > 0 {
            let mut shares: BTreeMap<Option<Target>, usize> = BTreeMap::new();
            self.targets(frontend.maglev).for_each(|target| *shares.entry(target).or_insert(0) += 1);
            let shares: Vec<String> =
                shares.into_iter().map(|(target, count)| format!("{}*{count}", label(target))).collect();
            lines.push(format!("maglev {} {}", frontend.maglev.len, shares.join(" ")));
        }
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// The backends in the region, in order of address: ids differ from run to run.
    fn labels(&self, region: Region) -> String {
        let mut targets: Vec<Option<Target>> = self.targets(region).collect();
        targets.sort();
        targets.into_iter().map(label).collect::<Vec<_>>().join(" ")
    }

    fn targets(&self, region: Region) -> impl Iterator<Item = Option<Target>> + '_ {
        self.ids_in(region).map(|id| {
            let backend = self.backends.get(&id?).filter(|backend| backend.has_tenant())?;
            Some((backend.address.into(), backend.port.number()))
        })
    }
}

type Target = (IpAddr, u16);

fn words(frontend: &Frontend) -> String {
    let flags = FLAGS.iter().filter(|(flag, _)| frontend.flags & flag != 0);
    let mut words: String = flags.map(|(_, word)| format!(" {word}")).collect();
    if frontend.affinity > 0 {
        let _ = write!(words, " affinity={}", frontend.affinity);
    }
    words
}

fn label(target: Option<Target>) -> String {
    target.map_or_else(|| "?".to_owned(), |(ip, port)| socket_label(ip, port))
}

fn backend_label(backend: &Backend) -> String {
    socket_label(backend.address.into(), backend.port.number())
}
