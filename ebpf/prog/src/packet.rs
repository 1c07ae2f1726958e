//! A packet, parsed once.

use core::mem::MaybeUninit;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;
use fairlead_abi::{Address, FlowKey, Port, Reason, protocol};
use fairlead_flow::{life, sctp, tcp};

use crate::verdict::Outcome;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Length of a TCP header without options.
pub(crate) const TCP: usize = 20;
/// Length of a UDP header.
pub(crate) const UDP: usize = 8;
/// Length of an SCTP header and of its first chunk's.
const SCTP: usize = 16;
/// Where a TCP header has its flags.
const TCP_FLAGS: usize = 13;
/// Where an SCTP packet has its first chunk's type.
const SCTP_CHUNK: usize = 12;
/// EtherType of IPv4, as it stands in memory.
pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
/// EtherType of IPv6, as it stands in memory.
pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();

/// How many IPv6 extension headers are walked; a packet with more is handled by its addresses alone.
const EXTENSIONS: usize = 3;
/// How far into a packet a transport header is looked for; one less than a power of two.
const LONGEST_HEADERS: usize = 0x3ff;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// The number of IPv6's fragment header (RFC 8200, section 4.5).
pub(crate) const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// The type of ICMP's echo request (RFC 792).
pub(crate) const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// The type of ICMPv6's echo request (RFC 4443, section 4.1).
pub(crate) const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

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
#[repr(C)]
pub(crate) struct Packet {
    /// Addresses, ports and protocol.
    pub(crate) tuple: FlowKey,
    /// The identification that a datagram's fragments share; 0 if it is whole.
    pub(crate) identification: u32,
    /// Where the transport header begins, in bytes from the Ethernet header's first.
    pub(crate) transport: u32,
    /// The interface whose program has it, by index.
    pub(crate) interface: u32,
    /// Whether it is IPv4.
    pub(crate) is_v4: bool,
    /// Remaining hops.
    pub(crate) ttl: u8,
    /// The flags of a TCP segment, or what an SCTP packet or an echo request says in their place.
    pub(crate) tcp: tcp::Flags,
    /// The identifier of an echo request or reply (RFC 792; RFC 4443, section 4), else 0.
    pub(crate) echo: Port,
    /// Whether it is a fragment, and which.
    pub(crate) fragment: Fragment,
}

/// A packet's place in its datagram.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// It is the datagram.
    Whole,
    /// It is the first fragment, with the transport header.
    First,
    /// It is another one, without.
    Later,
}

impl Fragment {
    /// From the offset and the bit that says that more follow.
    #[inline(always)]
    fn new(offset: u16, more: bool) -> Self {
        match (offset, more) {
            (0, false) => Self::Whole,
            (0, true) => Self::First,
            _ => Self::Later,
        }
    }
}

impl Packet {
    /// Whether the tuple's ports mean something: a Service can only be found with them.
    #[inline(always)]
    pub(crate) fn has_ports(&self) -> bool {
        self.tuple.destination_port.wire() != 0
    }

    /// Whether it does not say to which port it goes, or, behind more extension headers than are walked, by which
    /// protocol. (In IPv4 these numbers are nobody's.)
    #[inline(always)]
    pub(crate) fn is_opaque(&self) -> bool {
        is_extension(self.tuple.protocol)
            || is_of_ports(self.tuple.protocol) && self.fragment == Fragment::Later
    }

    /// Whether it is a message of ICMP or ICMPv6.
    #[inline(always)]
    pub(crate) fn is_icmp(&self) -> bool {
        self.tuple.protocol == if self.is_v4 { protocol::ICMP } else { protocol::ICMPV6 }
    }

    /// The types of an echo request and an echo reply of its family.
    #[inline(always)]
    fn echoes(&self) -> [u8; 2] {
        if self.is_v4 { [ECHO_REQUEST, ECHO_REPLY] } else { [ECHO_REQUEST_V6, ECHO_REPLY_V6] }
    }

    /// Whether it is the first of a connection or an exchange of echoes, or a datagram, which does not say. What may be
    /// part of something else is not: other messages of ICMP, later fragments, and what hides behind extension headers.
    #[inline(always)]
    pub(crate) fn may_begin(&self) -> bool {
        self.tcp.opens() || self.is_datagram()
    }

    /// Whether it is of a protocol that does not tell first packets from answers.
    #[inline(always)]
    pub(crate) fn is_datagram(&self) -> bool {
        let is_other = !life::is_of_connections(self.tuple.protocol) && !self.is_icmp();
        is_other && self.fragment != Fragment::Later && !is_extension(self.tuple.protocol)
    }

    /// Where the transport header begins, as the verifier wants it: within bounds that it can see.
    #[inline(always)]
    pub(crate) fn transport(&self) -> usize {
        self.transport as usize & LONGEST_HEADERS
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

/// Parses the packet into `room`; `None` if it is neither IPv4 nor IPv6.
#[inline(always)]
pub(crate) fn parse<'room>(
    ctx: &TcContext,
    room: &'room mut MaybeUninit<Packet>,
) -> Result<Option<&'room mut Packet>, Reason> {
    let parsed = Outcome(fairlead_parse(ctx.skb.skb, room.as_mut_ptr())).is_something()?;
    // SAFETY: `fairlead_parse` has filled it in if it says so.
    Ok(parsed.then(|| unsafe { room.assume_init_mut() }))
}

/// Out of line as a global function: the verifier walks it once, by itself, and its callers go on with one state
/// where the ways through it had many; nor do they hold its stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fairlead_parse(skb: *mut __sk_buff, packet: *mut Packet) -> i32 {
    let ctx = TcContext::new(skb);
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    let headers = match unsafe { (*skb).protocol } as u16 {
        IPV4 => parse_v4(&ctx),
        IPV6 => parse_v6(&ctx),
        _ => return Outcome::NOTHING.0,
    };
    match headers.and_then(|headers| read_ports(&ctx, headers)) {
        // The verifier wants to see that the room is there.
        Ok(_) if packet.is_null() => Outcome::NOTHING.0,
        Ok(parsed) => {
            // SAFETY: the caller passes room for a packet of its own.
            unsafe { packet.write(parsed) };
            Outcome::SOMETHING.0
        }
        Err(reason) => {
            // What is told of its drop must not be the packet before's.
            // SAFETY: as above.
            if let Some(packet) = unsafe { packet.as_mut() } {
                packet.tuple = FlowKey::default();
                packet.interface = interface(&ctx);
            }
            Outcome::from(reason).0
        }
    }
}

#[inline(always)]
fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: __sk_buff's fields are read through the context pointer that the kernel gave.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// Makes the first `length` bytes, as far as there are any, linear data that `at` can reach.
#[inline(always)]
fn pull(ctx: &TcContext, length: usize) {
    if ctx.data() + length > ctx.data_end() {
        // A short packet is found out when it is read.
        let _ = ctx.pull_data((length as u32).min(ctx.len()));
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext) -> Result<Packet, Reason> {
    pull(ctx, ETHERNET + size_of::<Ipv4>() + TCP);
    // SAFETY: `at` has checked the bounds; nothing changes the packet while the header is read.
    let header = unsafe { &*at::<Ipv4>(ctx, ETHERNET)? };
    let length = u32::from(header.version_ihl & 0x0f) * 4;
    if header.version_ihl >> 4 != 4 || (length as usize) < size_of::<Ipv4>() {
        return Err(Reason::Malformed);
    }
    let place = u16::from_be(header.fragment);
    Ok(Packet {
        tuple: FlowKey {
            source: Address::from_v4_word(header.source),
            destination: Address::from_v4_word(header.destination),
            protocol: header.protocol,
            ..FlowKey::default()
        },
        identification: u32::from(header.identification),
        transport: ETHERNET as u32 + length,
        interface: interface(ctx),
        is_v4: true,
        ttl: header.ttl,
        tcp: tcp::Flags::default(),
        echo: Port::default(),
        fragment: Fragment::new(place & 0x1fff, place & 0x2000 != 0),
    })
}

#[inline(always)]
fn parse_v6(ctx: &TcContext) -> Result<Packet, Reason> {
    pull(ctx, ETHERNET + size_of::<Ipv6>() + TCP);
    // SAFETY: `at` has checked the bounds; nothing changes the packet while the header is read.
    let header = unsafe { &*at::<Ipv6>(ctx, ETHERNET)? };
    let source = Address::from_v6_words(header.source);
    let destination = Address::from_v6_words(header.destination);
    // On the wire, a mapped address would pass for the IPv4 address that it stands for here.
    if header.version_class_label & 0xf000_0000_u32.to_be() != 0x6000_0000_u32.to_be()
        || source.is_v4()
        || destination.is_v4()
    {
        return Err(Reason::Malformed);
    }
    let mut packet = Packet {
        tuple: FlowKey { source, destination, protocol: header.next_header, ..FlowKey::default() },
        identification: 0,
        transport: (ETHERNET + size_of::<Ipv6>()) as u32,
        interface: interface(ctx),
        is_v4: false,
        ttl: header.hop_limit,
        tcp: tcp::Flags::default(),
        echo: Port::default(),
        fragment: Fragment::Whole,
    };
    if is_extension(packet.tuple.protocol) {
        skip_extensions(ctx, &mut packet)?;
    }
    Ok(packet)
}

/// Whether the protocol with this number is one with ports.
#[inline(always)]
pub(crate) fn is_of_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP)
}

/// Whether an IPv6 extension header of a kind that is walked has this number.
#[inline(always)]
pub(crate) fn is_extension(number: u8) -> bool {
    matches!(number, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION)
}

/// Walks the extension headers (RFC 8200, section 4) up to the transport header, or to the end of what a
/// later fragment has of them.
#[inline(always)]
fn skip_extensions(ctx: &TcContext, packet: &mut Packet) -> Result<(), Reason> {
    for _ in 0..EXTENSIONS {
        let header: [u8; 8] = ctx.load(packet.transport()).map_err(|_| Reason::Malformed)?;
        match packet.tuple.protocol {
            HOP_BY_HOP | ROUTING | DESTINATION => packet.transport += (u32::from(header[1]) + 1) * 8,
            FRAGMENT => {
                let place = u16::from_be_bytes([header[2], header[3]]);
                packet.transport += 8;
                packet.fragment = Fragment::new(place >> 3, place & 1 != 0);
                packet.identification = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            }
            _ => break,
        }
        packet.tuple.protocol = header[0];
        if packet.fragment == Fragment::Later {
            break;
        }
    }
    Ok(())
}

/// The first words of a TCP, a UDP and an SCTP header alike.
#[repr(C)]
struct Ports {
    source: u16,
    destination: u16,
}

#[inline(always)]
fn read_ports(ctx: &TcContext, mut packet: Packet) -> Result<Packet, Reason> {
    if packet.fragment == Fragment::Later {
        return Ok(packet);
    }
    if packet.transport as usize > LONGEST_HEADERS {
        return Err(Reason::Malformed);
    }
    let length = match packet.tuple.protocol {
        protocol::TCP => TCP,
        protocol::UDP => UDP,
        protocol::SCTP => SCTP,
        _ => {
            if packet.is_icmp()
                && let Ok([kind, _, _, _, high, low]) = ctx.load::<[u8; 6]>(packet.transport())
            {
                let [request, reply] = packet.echoes();
                if kind == request || kind == reply {
                    packet.echo = Port::from_wire(u16::from_ne_bytes([high, low]));
                }
                if kind == request {
                    packet.tcp = tcp::Flags::OPENS;
                }
            }
            return Ok(packet);
        }
    };
    let transport = packet.transport();
    pull(ctx, transport + length);
    if ctx.data() + transport + length > ctx.data_end() {
        return Err(Reason::Malformed);
    }
    // SAFETY: `at` has checked the bounds.
    let ports = unsafe { &*at::<Ports>(ctx, transport)? };
    packet.tuple.source_port = Port::from_wire(ports.source);
    packet.tuple.destination_port = Port::from_wire(ports.destination);
    let place = match packet.tuple.protocol {
        protocol::TCP => TCP_FLAGS,
        protocol::SCTP => SCTP_CHUNK,
        _ => return Ok(packet),
    };
    // SAFETY: `at` has checked the bounds.
    let byte = unsafe { *at::<u8>(ctx, transport + place)? };
    packet.tcp = if packet.tuple.protocol == protocol::TCP { tcp::Flags(byte) } else { sctp::flags(byte) };
    Ok(packet)
}
