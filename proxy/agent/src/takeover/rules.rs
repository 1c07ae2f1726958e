//! What of a node's nftables rules is kube-proxy's, and how it is removed: decided on values, read and written by
//! nfnetlink ([`super::ruleset`]).
//!
//! Names as kube-proxy gives them (`pkg/proxy/iptables` and `pkg/proxy/nftables`, releases 1.30 to 1.36). In nftables mode
//! all is in one table of each family. In iptables mode, over nftables, there are chains in three tables, and rules in
//! their base chains that jump there. The kubelet has chains with similar names, which stay: `KUBE-IPTABLES-HINT`,
//! `KUBE-KUBELET-CANARY`, `KUBE-FIREWALL` with its two jumps, and of old `KUBE-MARK-DROP`.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::netlink::{Attributed, Message, NFTABLES};

/// The table that keeps translation going while connections of before are left.
pub const DRAIN_TABLE: &str = "fairlead-drain";
/// kube-proxy's table in nftables mode.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// Chains in iptables mode: table, and names.
const CHAINS: [(&str, &[&str]); 3] = [
    ("nat", &["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-PROXY-CANARY"]),
    (
        "filter",
        &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
        ],
    ),
    ("mangle", &["KUBE-PROXY-CANARY"]),
];
/// How names of chains of one Service or endpoint begin, in the table `nat`.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-", "KUBE-XLB-"];
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";
const FORWARD: &str = "KUBE-FORWARD";

/// `NFT_MSG_DELTABLE`, `_DELCHAIN` and `_DELRULE`.
const DELETE_TABLE: u16 = 2;
const DELETE_CHAIN: u16 = 5;
const DELETE_RULE: u16 = 8;

/// An address family of nftables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// Both (`NFPROTO_INET`).
    #[serde(rename = "inet")]
    Inet,
    /// IPv4.
    #[serde(rename = "ip")]
    Ip,
    /// IPv6.
    #[serde(rename = "ip6")]
    Ip6,
}

impl Family {
    /// Those that kube-proxy has rules for.
    pub const BOTH: [Self; 2] = [Self::Ip, Self::Ip6];

    /// The kernel's number of it (`NFPROTO_*`).
    pub fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Ip6 => 10,
        }
    }

    /// The family of that number, if it is one of these.
    pub fn numbered(number: u8) -> Option<Self> {
        [Self::Inet, Self::Ip, Self::Ip6].into_iter().find(|family| family.number() == number)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

/// A chain, or the table of an empty chain's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Of which family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.chain)
    }
}

/// A chain as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Which.
    pub place: Place,
    /// Whether packets come to it by themselves.
    pub is_base: bool,
    /// Whether it drops what comes to its end.
    pub drops: bool,
}

/// A rule that jumps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jump {
    /// Where it is.
    pub from: Place,
    /// Its handle.
    pub handle: u64,
    /// The chain, in the same table, to which it jumps.
    pub to: String,
}

/// What the kernel has, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Tables.
    pub tables: Vec<(Family, String)>,
    /// Chains of all tables.
    pub chains: Vec<Chain>,
    /// Rules that jump, of the tables that iptables has.
    pub jumps: Vec<Jump>,
}

/// A chain of kube-proxy's that stays for now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Which.
    pub place: Place,
    /// Why.
    pub why: String,
}

/// What of the rules is kube-proxy's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Tables, in nftables mode.
    pub tables: Vec<(Family, String)>,
    /// Chains, in iptables mode.
    pub chains: Vec<Place>,
    /// Rules elsewhere that jump there, by their handles.
    pub jumps: Vec<(Place, u64)>,
    /// What stays for now.
    pub kept: Vec<Kept>,
}

impl Inventory {
    /// What of these rules is kube-proxy's. While connections of before are `draining`, what they need stays.
    pub fn of(rules: &Ruleset, draining: bool) -> Self {
        let is_table =
            |(family, name): &&(Family, String)| *family != Family::Inet && name == KUBE_PROXY_TABLE;
        let tables = rules.tables.iter().filter(is_table).cloned().collect();
        let mut chains: BTreeSet<Place> = rules
            .chains
            .iter()
            .map(|chain| &chain.place)
            .filter(|place| is_kube_proxys(place))
            .cloned()
            .collect();
        let kept = kept(rules, &chains, draining);
        for Kept { place, .. } in &kept {
            chains.remove(place);
        }
        let leads_there = |jump: &&Jump| {
            let to = Place { chain: jump.to.clone(), ..jump.from.clone() };
            chains.contains(&to) && !chains.contains(&jump.from)
        };
        let jumps =
            rules.jumps.iter().filter(leads_there).map(|jump| (jump.from.clone(), jump.handle)).collect();
        Self { tables, jumps, chains: chains.into_iter().collect(), kept }
    }

    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.chains.is_empty()
    }

    /// Whether there is nothing of kube-proxy's at all.
    pub fn is_nothing(&self) -> bool {
        self.is_empty() && self.kept.is_empty()
    }

    /// What removes the part of that family.
    pub fn removal(&self, family: Family) -> Vec<Message> {
        let message = |number| Message::new(NFTABLES, number, family.number(), 0);
        let in_chain = |number, place: &Place| message(number).named(1, &place.table).named(2, &place.chain);
        let tables = self.tables.iter().filter(|(of, _)| *of == family);
        let tables = tables.map(|(_, name)| message(DELETE_TABLE).named(1, name));
        let jumps = self.jumps.iter().filter(|(place, _)| place.family == family);
        // `NFTA_RULE_HANDLE`; a rule without one stands for all of its chain.
        let jumps = jumps.map(|(place, handle)| in_chain(DELETE_RULE, place).with(3, &handle.to_be_bytes()));
        let chains = || self.chains.iter().filter(|place| place.family == family);
        let contents = chains().map(|place| in_chain(DELETE_RULE, place));
        // `NFTA_CHAIN_NAME` is 3.
        let chains =
            chains().map(|place| message(DELETE_CHAIN).named(1, &place.table).named(3, &place.chain));
        tables.chain(jumps).chain(contents).chain(chains).collect()
    }
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, name) in &self.tables {
            writeln!(f, "  table {family} {name}")?;
        }
        for family in Family::BOTH {
            for (table, _) in CHAINS {
                let here = |place: &&Place| place.family == family && place.table == table;
                let count = self.chains.iter().filter(here).count();
                let jumps = self.jumps.iter().filter(|(place, _)| here(&place)).count();
                if count > 0 {
                    writeln!(
                        f,
                        "  table {family} {table}: {count} chains KUBE-*, {jumps} rules that jump there"
                    )?;
                }
            }
        }
        self.kept.iter().try_for_each(|Kept { place, why }| writeln!(f, "  kept: {place}: {why}"))
    }
}

fn is_kube_proxys(place: &Place) -> bool {
    let Some((_, names)) = CHAINS.iter().find(|(table, _)| *table == place.table) else { return false };
    let chain = place.chain.as_str();
    let is_of_service = place.table == "nat" && PREFIXES.iter().any(|prefix| chain.starts_with(prefix));
    place.family != Family::Inet && (names.contains(&chain) || is_of_service)
}

/// Which of these chains stay: those that somebody else's chain jumps to, as the plugin `portmap` may, with what they
/// need; and while connections are draining what accepts them where nothing else does.
fn kept(rules: &Ruleset, chains: &BTreeSet<Place>, draining: bool) -> Vec<Kept> {
    let is_base = |place: &Place| rules.chains.iter().any(|chain| chain.is_base && chain.place == *place);
    let mut kept: Vec<Kept> = Vec::new();
    let keep = |kept: &mut Vec<Kept>, place: Place, why: String| {
        let is_new = chains.contains(&place) && !kept.iter().any(|other| other.place == place);
        if is_new {
            kept.push(Kept { place, why });
        }
    };
    let leads = |jump: &Jump| Place { chain: jump.to.clone(), ..jump.from.clone() };
    for jump in rules.jumps.iter().filter(|jump| !chains.contains(&jump.from) && !is_base(&jump.from)) {
        keep(&mut kept, leads(jump), format!("{} uses it", jump.from.chain));
    }
    let forwarding = rules.chains.iter().filter(|chain| chain.place.chain == "FORWARD" && chain.drops);
    for chain in forwarding.filter(|chain| draining && chain.place.table == "filter") {
        let place = Place { chain: FORWARD.to_owned(), ..chain.place.clone() };
        keep(
            &mut kept,
            place,
            "FORWARD drops what it does not accept, until the last connection has ended".into(),
        );
    }
    let mut next = 0;
    while let Some(Kept { place, .. }) = kept.get(next).cloned() {
        next += 1;
        if place.chain == MARK {
            let masquerade = Place { chain: MASQUERADE.to_owned(), ..place.clone() };
            keep(&mut kept, masquerade, format!("{MARK} needs it"));
        }
        for jump in rules.jumps.iter().filter(|jump| jump.from == place) {
            keep(&mut kept, leads(jump), format!("{} uses it", place.chain));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(table: &str, chain: &str) -> Place {
        Place { family: Family::Ip, table: table.into(), chain: chain.into() }
    }

    fn ruleset(chains: &[(&str, &str)], jumps: &[(&str, &str, &str)]) -> Ruleset {
        let is_base =
            |chain: &str| matches!(chain, "PREROUTING" | "OUTPUT" | "POSTROUTING" | "FORWARD" | "INPUT");
        let chain = |&(table, chain): &(&str, &str)| Chain {
            place: place(table, chain),
            is_base: is_base(chain),
            drops: chain == "FORWARD",
        };
        let jump = |(handle, &(table, from, to)): (usize, &(&str, &str, &str))| Jump {
            from: place(table, from),
            handle: handle as u64,
            to: to.into(),
        };
        Ruleset {
            tables: Vec::new(),
            chains: chains.iter().map(chain).collect(),
            jumps: jumps.iter().enumerate().map(jump).collect(),
        }
    }

    const OURS: [(&str, &str); 6] = [
        ("nat", "PREROUTING"),
        ("nat", "KUBE-SERVICES"),
        ("nat", "KUBE-SVC-ABC"),
        ("nat", "KUBE-MARK-MASQ"),
        ("nat", "KUBE-POSTROUTING"),
        ("filter", "KUBE-FORWARD"),
    ];

    #[test]
    fn kube_proxys_chains_and_the_rules_that_lead_there_go_and_the_kubelets_stay() {
        let others =
            [("nat", "KUBE-MARK-DROP"), ("filter", "KUBE-FIREWALL"), ("mangle", "KUBE-IPTABLES-HINT")];
        let rules = ruleset(
            &[&OURS[..], &others, &[("nat", "KUBE-KUBELET-CANARY"), ("filter", "KUBE-SVC-ABC")]].concat(),
            &[
                ("nat", "PREROUTING", "KUBE-SERVICES"),
                ("nat", "KUBE-SERVICES", "KUBE-SVC-ABC"),
                ("filter", "INPUT", "KUBE-FIREWALL"),
            ],
        );
        let inventory = Inventory::of(&rules, false);
        assert_eq!(inventory.chains.len(), 5, "{inventory}");
        assert_eq!(inventory.jumps, [(place("nat", "PREROUTING"), 0)]);
        assert_eq!(inventory.kept, []);
        // One rule, five chains to be emptied and removed.
        assert_eq!(inventory.removal(Family::Ip).len(), 11);
        assert_eq!(inventory.removal(Family::Ip6), []);
    }

    #[test]
    fn what_somebody_elses_chain_uses_stays_with_what_it_needs() {
        let rules = ruleset(
            &[&OURS[..], &[("nat", "CNI-HOSTPORT-SETMARK")]].concat(),
            &[("nat", "CNI-HOSTPORT-SETMARK", "KUBE-MARK-MASQ"), ("nat", "POSTROUTING", "KUBE-POSTROUTING")],
        );
        let inventory = Inventory::of(&rules, false);
        let kept: Vec<&str> = inventory.kept.iter().map(|kept| kept.place.chain.as_str()).collect();
        assert_eq!(kept, ["KUBE-MARK-MASQ", "KUBE-POSTROUTING"]);
        assert_eq!(inventory.jumps, []);
        assert_eq!(inventory.chains.len(), 3);
    }

    #[test]
    fn what_accepts_old_connections_stays_until_they_have_ended() {
        let rules = ruleset(
            &[&OURS[..], &[("filter", "FORWARD")]].concat(),
            &[("filter", "FORWARD", "KUBE-FORWARD")],
        );
        let inventory = Inventory::of(&rules, true);
        assert_eq!(inventory.kept.len(), 1, "{inventory}");
        assert_eq!(inventory.jumps, []);
        let inventory = Inventory::of(&rules, false);
        assert_eq!((inventory.kept.len(), inventory.jumps.len()), (0, 1));
    }

    #[test]
    fn in_nftables_mode_a_table_of_each_family_is_all() {
        let tables = [(Family::Ip, "kube-proxy"), (Family::Ip6, "kube-proxy"), (Family::Ip, "other")];
        let tables = tables.map(|(family, name)| (family, name.to_owned())).to_vec();
        let inventory = Inventory::of(&Ruleset { tables, ..Ruleset::default() }, true);
        assert_eq!(inventory.tables.len(), 2);
        assert_eq!(inventory.removal(Family::Ip6).len(), 1);
        assert!(!inventory.is_empty());
    }
}
