//! Which Service holds which address and node port, and what is free.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{defaults::ports_mut, has_node_ports, kind};
use crate::object::{items, text};
use crate::status::FieldError;

/// What Services are given addresses and ports from.
#[derive(Debug, Clone)]
pub struct Ranges {
    /// One or two ranges of cluster addresses; the first one's family is the cluster's default.
    pub cluster_ips: Vec<IpNet>,
    /// Node ports.
    pub node_ports: RangeInclusive<u16>,
}

/// The addresses and node ports in use, derived from the stored Services.
#[derive(Debug)]
pub(crate) struct Claims {
    /// The families that Services can have, the default one first.
    families: Vec<&'static str>,
    pools: Vec<Pool>,
    node_port_range: RangeInclusive<u16>,
    addresses: HashMap<IpAddr, String>,
    node_ports: HashMap<u16, String>,
}

/// A range of cluster addresses.
#[derive(Debug)]
struct Pool {
    range: IpNet,
    /// How many ServiceCIDRs name it, and one more for a range that the server was started with.
    users: usize,
    /// The offset below which everything dynamic was taken when last looked at: a hint that keeps the search for the
    /// next free one short in a cluster of thousands.
    hint: u128,
}

impl Pool {
    fn new(range: IpNet) -> Self {
        Self { range, users: 1, hint: static_addresses(&range) }
    }
}

impl Claims {
    /// Nothing in use yet.
    #[must_use]
    pub(crate) fn new(ranges: Ranges) -> Self {
        Self {
            families: ranges.cluster_ips.iter().map(family).collect(),
            pools: ranges.cluster_ips.into_iter().map(Pool::new).collect(),
            node_port_range: ranges.node_ports,
            addresses: HashMap::new(),
            node_ports: HashMap::new(),
        }
    }

    /// Takes note that the ServiceCIDR `before` became `after`: addresses come from its ranges too.
    pub(crate) fn replace_ranges(&mut self, before: Option<&Value>, after: Option<&Value>) {
        for range in before.into_iter().flat_map(ranges_of) {
            if let Some(at) = self.pools.iter().position(|pool| pool.range == range) {
                self.pools[at].users -= 1;
                if self.pools[at].users == 0 {
                    self.pools.remove(at);
                }
            }
        }
        for range in after.into_iter().flat_map(ranges_of) {
            match self.pools.iter_mut().find(|pool| pool.range == range) {
                Some(pool) => pool.users += 1,
                None => self.pools.push(Pool::new(range)),
            }
        }
    }

    /// Takes note that the Service `before` became `after`.
    pub(crate) fn replace(&mut self, before: Option<&Value>, after: Option<&Value>) {
        if let Some(service) = before {
            held_addresses(service).for_each(|ip| {
                self.addresses.remove(&ip);
            });
            held_ports(service).for_each(|port| {
                self.node_ports.remove(&port);
            });
        }
        if let Some(service) = after {
            let owner = Self::owner(service);
            for ip in held_addresses(service) {
                self.addresses.insert(ip, owner.clone());
                for pool in &mut self.pools {
                    if let Some(offset) = offset_in(&pool.range, ip) {
                        pool.hint = (offset + 1).max(static_addresses(&pool.range));
                    }
                }
            }
            for port in held_ports(service) {
                self.node_ports.insert(port, owner.clone());
            }
        }
    }

    /// The families Services can have, the default one first.
    pub(super) fn families(&self) -> &[&'static str] {
        &self.families
    }

    /// How claims name a Service.
    pub(super) fn owner(service: &Value) -> String {
        format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"))
    }

    /// The address asked for, or a free one; why not, otherwise.
    pub(super) fn address(&self, owner: &str, of: &str, wanted: Option<&str>) -> Result<IpAddr, String> {
        let mut pools = self.pools.iter().filter(|pool| family(&pool.range) == of).peekable();
        if pools.peek().is_none() || !self.families.contains(&of) {
            return Err(format!("{of} is not configured on this cluster"));
        }
        if let Some(wanted) = wanted {
            let ip: IpAddr = wanted.parse().map_err(|_| "must be a valid IP address".to_owned())?;
            let fits = |pool: &Pool| {
                offset_in(&pool.range, ip).is_some_and(|offset| offset > 0 && offset < size(&pool.range))
            };
            if !pools.any(fits) {
                return Err(format!("the provided IP ({ip}) is not in the valid range of any ServiceCIDR"));
            }
            return match self.addresses.get(&ip) {
                Some(holder) if holder != owner => Err("provided IP is already allocated".to_owned()),
                _ => Ok(ip),
            };
        }
        let free = |pool: &Pool| {
            let first = static_addresses(&pool.range);
            (pool.hint..size(&pool.range))
                .chain(first..pool.hint)
                .chain(1..first)
                .map(|offset| address_at(&pool.range, offset))
                .find(|ip| !self.addresses.contains_key(ip))
        };
        pools
            .find_map(free)
            .ok_or_else(|| format!("failed to allocate a cluster IP: every {of} range is full"))
    }

    /// Gives node ports to the ports that need one, and says what is wrong with those asked for.
    pub(super) fn assign_node_ports(&self, service: &mut Value, errors: &mut Vec<FieldError>) {
        let owner = Self::owner(service);
        let wanted = has_node_ports(service);
        let health = kind(service) == "LoadBalancer" && service["spec"]["externalTrafficPolicy"] == "Local";
        let mut taken: BTreeSet<u16> = held_ports(service).collect();
        let mut given: HashMap<u16, Vec<String>> = HashMap::new();
        for (i, port) in ports_mut(service).iter_mut().enumerate() {
            let protocol = text(port, "/protocol").to_owned();
            match port["nodePort"].as_u64() {
                None | Some(0) if wanted => match self.free_port(&taken) {
                    Some(free) => {
                        taken.insert(free);
                        port["nodePort"] = json!(free);
                    }
                    None => errors.push(FieldError::invalid(
                        format!("spec.ports[{i}].nodePort"),
                        &Value::Null,
                        "failed to allocate a nodePort: range is full",
                    )),
                },
                None | Some(0) => {}
                Some(asked) => {
                    let field = format!("spec.ports[{i}].nodePort");
                    if let Some(why) = self.refusal(&owner, asked) {
                        errors.push(FieldError::invalid(field.clone(), &json!(asked), why));
                    }
                    let protocols = given.entry(asked as u16).or_default();
                    if protocols.contains(&protocol) {
                        errors.push(FieldError::duplicate(field, &json!(asked)));
                    }
                    protocols.push(protocol);
                }
            }
        }
        if !health {
            return;
        }
        match service["spec"]["healthCheckNodePort"].as_u64() {
            None | Some(0) => {
                if let Some(free) = self.free_port(&taken) {
                    service["spec"]["healthCheckNodePort"] = json!(free);
                }
            }
            Some(asked) => {
                if let Some(why) = self.refusal(&owner, asked) {
                    errors.push(FieldError::invalid("spec.healthCheckNodePort", &json!(asked), why));
                }
            }
        }
    }

    /// Why a node port can't be had.
    fn refusal(&self, owner: &str, asked: u64) -> Option<String> {
        let range = &self.node_port_range;
        match u16::try_from(asked).ok().filter(|port| range.contains(port)) {
            None => {
                let (first, last) = (range.start(), range.end());
                Some(format!(
                    "provided port is not in the valid range. The range of valid ports is {first}-{last}"
                ))
            }
            Some(port) if self.node_ports.get(&port).is_some_and(|holder| holder != owner) => {
                Some("provided port is already allocated".to_owned())
            }
            Some(_) => None,
        }
    }

    /// A free node port, from above the band that is left to those who choose their own as long as there is one.
    fn free_port(&self, taken: &BTreeSet<u16>) -> Option<u16> {
        let (first, last) = (*self.node_port_range.start(), *self.node_port_range.end());
        let size = last - first + 1;
        let dynamic = first + if size < 16 { 0 } else { (size / 32).clamp(16, 128).min(size) };
        (dynamic..=last)
            .chain(first..dynamic)
            .find(|port| !self.node_ports.contains_key(port) && !taken.contains(port))
    }
}

fn ranges_of(service_cidr: &Value) -> impl Iterator<Item = IpNet> {
    items(service_cidr, "/spec/cidrs").iter().filter_map(|range| range.as_str()?.parse().ok())
}

fn held_addresses(service: &Value) -> impl Iterator<Item = IpAddr> {
    items(service, "/spec/clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok())
}

fn held_ports(service: &Value) -> impl Iterator<Item = u16> {
    let number = |value: &Value| u16::try_from(value.as_u64()?).ok().filter(|port| *port > 0);
    let ports = items(service, "/spec/ports").iter().filter_map(move |port| number(&port["nodePort"]));
    ports.chain(number(&service["spec"]["healthCheckNodePort"]))
}

fn family(range: &IpNet) -> &'static str {
    match range {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

fn offset_in(range: &IpNet, ip: IpAddr) -> Option<u128> {
    range.contains(&ip).then(|| bits(ip) - bits(range.network()))
}

fn address_at(range: &IpNet, offset: u128) -> IpAddr {
    let address = bits(range.network()) + offset;
    match range {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(address as u32)),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(address)),
    }
}

/// One past the last offset that can be given out: IPv4's broadcast address can't.
fn size(range: &IpNet) -> u128 {
    let host_bits = range.max_prefix_len() - range.prefix_len();
    let addresses = 1u128 << host_bits.min(120);
    if matches!(range, IpNet::V4(_)) { addresses - 1 } else { addresses }
}

/// The first offset that is given out unasked: the ones below are for Services that ask for their address.
/// Kubernetes documentation, "Service ClusterIP allocation": min(max(16, size / 16), 256).
fn static_addresses(range: &IpNet) -> u128 {
    let size = size(range);
    if size < 16 { 1 } else { (size / 16).clamp(16, 256).min(size) + 1 }
}
