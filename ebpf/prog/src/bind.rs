//! NodePorts are protected from the node's own processes: a socket that is bound to one would never be reached.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockContext;
use fairlead_abi::{Address, Counter, FrontendKey, Port, frontend_flags};

use crate::sock::{Family, read_address, say_why};
use crate::{config, observe, service};

const REFUSE: i32 = 0;
const ALLOW: i32 = 1;
const EADDRINUSE: i32 = 98;

/// After bind(), before it returns: gives the port back if it is a NodePort at this address, or, for a socket that is
/// bound to every address, at any: at the node's primary ones, or at others, for which there is an entry at `::`.
#[inline(always)]
pub(crate) fn guard(ctx: &SockContext, family: Family) -> i32 {
    let Ok(config) = config::get() else {
        return ALLOW;
    };
    // SAFETY: the helper reads the context that the kernel gave (kernel 5.8).
    if !config::is_host(unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }) {
        return ALLOW;
    }
    let socket = ctx.sock;
    // SAFETY: the fields are read through the context pointer that the kernel gave, one word at a time.
    let (port, protocol) = unsafe {
        ((&raw const (*socket).src_port).read_volatile(), (&raw const (*socket).protocol).read_volatile())
    };
    // SAFETY: the fields lie in the context that the kernel gave.
    let address = unsafe { read_address(family, &raw const (*socket).src_ip4, &raw const (*socket).src_ip6) };
    let is_any = address.is_unspecified() || address.is_v4() && address.v4_word() == 0;
    let is_node_port = |address: Address| {
        let key =
            FrontendKey { address, port: Port::new(port as u16), protocol: protocol as u8, reserved: 0 };
        service::has_flags(&key, frontend_flags::NODE_PORT)
    };
    let taken = if is_any {
        is_node_port(config.node_v4) || is_node_port(config.node_v6) || is_node_port(Address::UNSPECIFIED)
    } else {
        is_node_port(address)
    };
    if !taken {
        return ALLOW;
    }
    observe::count(Counter::BindRefused);
    say_why(EADDRINUSE);
    REFUSE
}
