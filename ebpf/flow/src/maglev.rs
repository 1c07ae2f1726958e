//! Which place of a Maglev table a client's flow takes: the same on every node.
//!
//! The table itself is made by the control plane. Only the client's side of the flow counts here, since the address
//! that it dials may be another on each node (a NodePort); what it dials is told apart by the table.

use fairlead_abi::{Address, Port};

/// A well mixed number for a client's address, port and protocol.
///
/// Multiplications and shifts as in the finalizer of MurmurHash3, once for each word.
#[inline(always)]
pub const fn hash(client: Address, port: Port, protocol: u8) -> u32 {
    let [a, b, c, d] = client.words();
    let ports = (port.wire() as u32) << 8 | protocol as u32;
    mix(mix(mix(mix(mix(0, a), b), c), d), ports)
}

#[inline(always)]
const fn mix(state: u32, word: u32) -> u32 {
    let mut mixed = (state ^ word).wrapping_mul(0x85eb_ca6b);
    mixed ^= mixed >> 13;
    mixed = mixed.wrapping_mul(0xc2b2_ae35);
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;

    #[test]
    fn clients_spread_evenly_over_a_tables_places() {
        const PLACES: usize = 251;
        const FLOWS: u32 = PLACES as u32 * 400;
        let mut counts = [0_u32; PLACES];
        for flow in 0..FLOWS {
            let client = Address::from(Ipv4Addr::from(0x0a00_0000 + flow / 8));
            let port = Port::new(40_000 + (flow % 8) as u16);
            counts[hash(client, port, 6) as usize % PLACES] += 1;
        }
        let (least, most) = (counts.iter().min().copied(), counts.iter().max().copied());
        assert!(least >= Some(300) && most <= Some(500), "{least:?} to {most:?} of 400");
    }
}
