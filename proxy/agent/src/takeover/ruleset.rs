//! nftables by nfnetlink (include/uapi/linux/netfilter/nf_tables.h): the rules that there are, the removal of
//! kube-proxy's, and a table of ours.

use std::io;

use super::netlink::{
    APPEND, Attributed, CREATE, Message, NFTABLES, Nest, Received, Socket, attribute, attributes, name, word,
};
use super::rules::{Chain, DRAIN_TABLE, Family, Inventory, Jump, Place, Ruleset};

/// `NFT_MSG_NEW*`, `_GET*` and `_DEL*`.
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
/// `NFTA_TABLE_NAME`, which `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE` are too.
const TABLE: u16 = 1;
/// `NFTA_CHAIN_*`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
/// `NF_INET_PRE_ROUTING`, and the priority `dstnat`.
const PREROUTING: u32 = 0;
const DSTNAT: i32 = -100;
/// `NFTA_RULE_*`.
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME` and `NFTA_EXPR_DATA`.
const ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_IMMEDIATE_*`, `NFTA_DATA_*` and `NFTA_VERDICT_*`.
const IMMEDIATE_REGISTER: u16 = 1;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NF_ACCEPT` and `NF_DROP`.
const ACCEPT: u32 = 1;
const DROP: u32 = 0;

/// Reads the rules, as far as they may have to do with kube-proxy.
///
/// # Errors
/// When the kernel refuses; without nftables there are none.
pub fn read() -> io::Result<Ruleset> {
    let mut socket = match Socket::open() {
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Ruleset::default()),
        other => other?,
    };
    let mut rules = Ruleset::default();
    let listed = socket.dump(&Message::new(NFTABLES, GET_TABLE, 0, 0), |message| {
        let table = || {
            Some((Family::numbered(message.family)?, name(attribute(message.attributes, TABLE)?)?.to_owned()))
        };
        rules.tables.extend(table());
    });
    match listed {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(Ruleset::default()),
        other => other?,
    }
    socket.dump(&Message::new(NFTABLES, GET_CHAIN, 0, 0), |message| rules.chains.extend(chain(&message)))?;
    let of_iptables = |(family, table): &&(Family, String)| {
        Family::BOTH.contains(family)
            && rules.chains.iter().any(|chain| {
                let Place { family: of, table: its, chain } = &chain.place;
                (of, its) == (family, table) && chain.starts_with("KUBE-")
            })
    };
    let tables: Vec<(Family, String)> = rules.tables.iter().filter(of_iptables).cloned().collect();
    for (family, table) in tables {
        let message = Message::new(NFTABLES, GET_RULE, family.number(), 0).named(TABLE, &table);
        socket.dump(&message, |message| rules.jumps.extend(jumps(&message)))?;
    }
    Ok(rules)
}

/// Removes what is kube-proxy's, of each family in one step.
///
/// # Errors
/// When the kernel refuses; what the other family had is gone then.
pub fn remove(inventory: &Inventory) -> io::Result<()> {
    Family::BOTH.into_iter().try_for_each(|family| {
        let removal = inventory.removal(family);
        if removal.is_empty() { Ok(()) } else { Socket::open()?.transact(NFTABLES, &removal) }
    })
}

/// Puts [`DRAIN_TABLE`] there, if it is not: a chain that has the kernel go on with translation, and a rule that has it go on
/// with connection tracking. Neither changes a packet. The kernel must know translation in the family `inet` (5.2).
///
/// # Errors
/// When the kernel refuses.
pub fn put_drain() -> io::Result<()> {
    let inet = Family::Inet.number();
    let table = Message::new(NFTABLES, NEW_TABLE, inet, CREATE).named(TABLE, DRAIN_TABLE);
    let hook = Nest::default()
        .with(HOOK_NUMBER, &PREROUTING.to_be_bytes())
        .with(HOOK_PRIORITY, &DSTNAT.to_be_bytes());
    let chain = Message::new(NFTABLES, NEW_CHAIN, inet, CREATE)
        .named(TABLE, DRAIN_TABLE)
        .named(CHAIN_NAME, "prerouting")
        .nest(CHAIN_HOOK, &hook)
        .with(CHAIN_POLICY, &ACCEPT.to_be_bytes())
        .named(CHAIN_TYPE, "nat");
    let empty = Message::new(NFTABLES, 8, inet, 0).named(TABLE, DRAIN_TABLE).named(RULE_CHAIN, "prerouting");
    // ct direction original accept: `NFTA_CT_DREG` and `_KEY`, `NFTA_CMP_SREG`, `_OP` and `_DATA`.
    let (register, direction, equal) = (1_u32.to_be_bytes(), 1_u32.to_be_bytes(), 0_u32.to_be_bytes());
    let of_connection = expression("ct", &Nest::default().with(1, &register).with(2, &direction));
    let original =
        Nest::default().with(1, &register).with(2, &equal).nest(3, &Nest::default().with(DATA_VALUE, &[0]));
    let verdict =
        Nest::default().nest(DATA_VERDICT, &Nest::default().with(VERDICT_CODE, &ACCEPT.to_be_bytes()));
    let accept = Nest::default().with(IMMEDIATE_REGISTER, &[0; 4]).nest(IMMEDIATE_DATA, &verdict);
    let expressions = Nest::default()
        .nest(ELEMENT, &of_connection)
        .nest(ELEMENT, &expression("cmp", &original))
        .nest(ELEMENT, &expression("immediate", &accept));
    let rule = Message::new(NFTABLES, NEW_RULE, inet, CREATE | APPEND)
        .named(TABLE, DRAIN_TABLE)
        .named(RULE_CHAIN, "prerouting")
        .nest(RULE_EXPRESSIONS, &expressions);
    Socket::open()?.transact(NFTABLES, &[table, chain, empty, rule])
}

/// Removes [`DRAIN_TABLE`], if it is there.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_drain() -> io::Result<()> {
    let message = Message::new(NFTABLES, DELETE_TABLE, Family::Inet.number(), 0).named(TABLE, DRAIN_TABLE);
    match Socket::open()?.transact(NFTABLES, &[message]) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn expression(name: &str, data: &Nest) -> Nest {
    Nest::default().named(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, data)
}

fn chain(message: &Received<'_>) -> Option<Chain> {
    let all = message.attributes;
    let place = Place {
        family: Family::numbered(message.family)?,
        table: name(attribute(all, TABLE)?)?.to_owned(),
        chain: name(attribute(all, CHAIN_NAME)?)?.to_owned(),
    };
    let policy = attribute(all, CHAIN_POLICY).and_then(word);
    Some(Chain { place, is_base: attribute(all, CHAIN_HOOK).is_some(), drops: policy == Some(DROP) })
}

/// The jumps of a rule: it has one at most, but for those in maps, which iptables has not.
fn jumps(message: &Received<'_>) -> Option<Jump> {
    let all = message.attributes;
    let expressions = attributes(attribute(all, RULE_EXPRESSIONS)?);
    let to = expressions.filter(|(kind, _)| *kind == ELEMENT).find_map(|(_, expression)| {
        (name(attribute(expression, EXPRESSION_NAME)?)? == "immediate").then_some(())?;
        let data = attribute(attribute(expression, EXPRESSION_DATA)?, IMMEDIATE_DATA)?;
        name(attribute(attribute(data, DATA_VERDICT)?, VERDICT_CHAIN)?).map(str::to_owned)
    })?;
    Some(Jump {
        from: Place {
            family: Family::numbered(message.family)?,
            table: name(attribute(all, TABLE)?)?.to_owned(),
            chain: name(attribute(all, RULE_CHAIN)?)?.to_owned(),
        },
        handle: attribute(all, RULE_HANDLE)?.try_into().ok().map(u64::from_be_bytes)?,
        to,
    })
}
