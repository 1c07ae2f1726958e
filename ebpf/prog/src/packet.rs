//! A packet, parsed once.

use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, FlowKey, Port, Reason, protocol};
use fairlead_flow::tcp;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// EtherType of IPv4, as it stands in memory.
pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, as it stands in memory.
pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();

/// How many IPv6 extension headers are walked; a packet with more is handled by its addresses alone.
const EXTENSIONS: usize = 4;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// An Ethernet header.
#[repr(C, packed)]
pub(crate) struct Ethernet {
    /// To whom.
    pub(crate) destination: [u8; 6],
    /// From whom.
    pub(crate) source: [u8; 6],
    /// What follows.
    pub(crate) kind: u16,
}

/// An IPv4 header without options (RFC 791, section 3.1), in words as they stand in memory.
#[repr(C)]
pub(crate) struct Ipv4 {
    /// Version and header length.
    pub(crate) version_ihl: u8,
    /// DSCP and ECN.
    pub(crate) tos: u8,
    /// Length of header and payload.
    pub(crate) total_length: u16,
    /// Identification.
    pub(crate) identification: u16,
    /// Flags and fragment offset.
    pub(crate) fragment: u16,
    /// Time to live.
    pub(crate) ttl: u8,
    /// What follows.
    pub(crate) protocol: u8,
    /// Checksum of this header.
    pub(crate) checksum: u16,
    /// From whom.
    pub(crate) source: u32,
    /// To whom.
    pub(crate) destination: u32,
}

/// An IPv6 header (RFC 8200, section 3), in words as they stand in memory.
#[repr(C)]
pub(crate) struct Ipv6 {
    /// Version, traffic class and flow label.
    pub(crate) version_class_label: u32,
    /// Length of what follows.
    pub(crate) payload_length: u16,
    /// What follows.
    pub(crate) next_header: u8,
    /// Time to live.
    pub(crate) hop_limit: u8,
    /// From whom.
    pub(crate) source: [u32; 4],
    /// To whom.
    pub(crate) destination: [u32; 4],
}

/// A parsed packet. Ports are 0 where the protocol has none or the fragment does not carry them.
pub(crate) struct Packet {
    /// Addresses, ports and protocol.
    pub(crate) tuple: FlowKey,
    /// Where the transport header begins, in bytes from the Ethernet header's first.
    pub(crate) transport: usize,
    /// Whether it is IPv4.
    pub(crate) is_v4: bool,
    /// Remaining hops.
    pub(crate) ttl: u8,
    /// The flags of a TCP segment.
    pub(crate) tcp: tcp::Flags,
    /// Whether it is a fragment other than the first, and so without a transport header.
    pub(crate) is_later_fragment: bool,
}

impl Packet {
    /// Whether the tuple's ports mean something: a Service can only be found with them.
    #[inline(always)]
    pub(crate) fn has_ports(&self) -> bool {
        self.tuple.destination_port.wire() != 0
    }
}

/// A pointer to a `T` that lies `offset` bytes into the packet, if the packet's linear part holds it.
#[inline(always)]
pub(crate) fn at<T>(ctx: &TcContext, offset: usize) -> Result<*mut T, Reason> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + offset + size_of::<T>() > end {
        return Err(Reason::Malformed);
    }
    Ok((start + offset) as *mut T)
}

/// Parses the packet; `None` if it is neither IPv4 nor IPv6.
#[inline(always)]
pub(crate) fn parse(ctx: &TcContext) -> Result<Option<Packet>, Reason> {
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let kind = unsafe { (*ctx.skb.skb).protocol } as u16;
    match kind {
        IPV4 => parse_v4(ctx).map(Some),
        IPV6 => parse_v6(ctx).map(Some),
        _ => Ok(None),
    }
}

/// Makes the headers part of the packet's linear data, where `at` can reach them.
#[inline(always)]
fn pull(ctx: &TcContext, headers: usize) {
    if ctx.data() + headers > ctx.data_end() {
        // A short packet is found out when it is read.
        let _ = ctx.pull_data((headers as u32).min(ctx.len()));
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, Reason> {
    pull(ctx, ETHERNET + size_of::<Ipv4>() + 20);
    // SAFETY: `at` has checked the bounds; nothing changes the packet while the header is read.
    let header = unsafe { &*at::<Ipv4>(ctx, ETHERNET)? };
    let length = usize::from(header.version_ihl & 0x0f) * 4;
    if header.version_ihl >> 4 != 4 || length < size_of::<Ipv4>() {
        return Err(Reason::Malformed);
    }
    let mut packet = Packet {
        tuple: FlowKey {
            source: Address::from_v4_word(header.source),
            destination: Address::from_v4_word(header.destination),
            protocol: header.protocol,
            ..FlowKey::default()
        },
        transport: ETHERNET + length,
        is_v4: true,
        ttl: header.ttl,
        tcp: tcp::Flags::default(),
        is_later_fragment: u16::from_be(header.fragment) & 0x1fff != 0,
    };
    read_ports(ctx, &mut packet)?;
    Ok(packet)
}

#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, Reason> {
    pull(ctx, ETHERNET + size_of::<Ipv6>() + 20);
    // SAFETY: `at` has checked the bounds; nothing changes the packet while the header is read.
    let header = unsafe { &*at::<Ipv6>(ctx, ETHERNET)? };
    let mut packet = Packet {
        tuple: FlowKey {
            source: Address::from_v6_words(header.source),
            destination: Address::from_v6_words(header.destination),
            protocol: header.next_header,
            ..FlowKey::default()
        },
        transport: ETHERNET + size_of::<Ipv6>(),
        is_v4: false,
        ttl: header.hop_limit,
        tcp: tcp::Flags::default(),
        is_later_fragment: false,
    };
    if matches!(packet.tuple.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        skip_extensions(ctx, &mut packet)?;
    }
    read_ports(ctx, &mut packet)?;
    Ok(packet)
}

/// Walks the extension headers (RFC 8200, section 4) up to the transport header.
#[inline(always)]
fn skip_extensions(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    for _ in 0..EXTENSIONS {
        let header: [u8; 4] = ctx.load(packet.transport).map_err(|_| Reason::Malformed)?;
        match packet.tuple.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => packet.transport += (usize::from(header[1]) + 1) * 8,
            FRAGMENT => {
                packet.is_later_fragment |= u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
                packet.transport += 8;
            }
            _ => break,
        }
        packet.tuple.protocol = header[0];
    }
    pull(ctx, ETHERNET + size_of::<Ipv6>() + 20);
    Ok(())
}

/// The first words of a TCP and a UDP header alike.
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
}

#[inline(always)]
fn read_ports(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    if packet.is_later_fragment {
        return Ok(());
    }
    match packet.tuple.protocol {
        protocol::TCP => {
            // SAFETY: `at` has checked the bounds.
            packet.tcp = tcp::Flags(unsafe { *at::<u8>(ctx, packet.transport + 13)? });
        }
        protocol::UDP => {}
        _ => return Ok(()),
    }
    // SAFETY: `at` has checked the bounds.
    let ports = unsafe { &*at::<Ports>(ctx, packet.transport)? };
    packet.tuple.source_port = Port::from_wire(ports.source);
    packet.tuple.destination_port = Port::from_wire(ports.destination);
    Ok(())
}
