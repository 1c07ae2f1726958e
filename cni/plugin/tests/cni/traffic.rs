//! Traffic between namespaces, and where it goes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use fairlead_net::netns::Netns;
use serde_json::Value;

/// The addresses in a result of ADD.
pub(crate) fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().expect("ips");
    let address = |ip: &Value| {
        let text = ip["address"].as_str().expect("address");
        text.split('/').next().expect("address").parse().expect("address")
    };
    ips.iter().map(address).collect()
}

/// A TCP and a UDP exchange from `client` to `server` at `address`.
pub(crate) fn exchange(client: &Netns, server: &Netns, address: IpAddr) {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(5));
    let (listener, echo) = server
        .run(|| (TcpListener::bind((address, 0)).expect("tcp"), UdpSocket::bind((address, 0)).expect("udp")))
        .expect("enter the server");
    let tcp = listener.local_addr().expect("address");
    let udp = echo.local_addr().expect("address");
    echo.set_read_timeout(TIMEOUT).expect("timeout");
    let serving = thread::spawn(move || {
        let mut byte = [0];
        let (mut stream, peer) = listener.accept().expect("accept");
        stream.read_exact(&mut byte).expect("read");
        stream.write_all(&byte).expect("write");
        let (_, from) = echo.recv_from(&mut byte).expect("receive");
        echo.send_to(&byte, from).expect("send");
        (peer.ip(), from.ip())
    });
    let seen = client.run(|| {
        let mut stream =
            TcpStream::connect_timeout(&tcp, Duration::from_secs(5)).expect("connect to the pod");
        stream.set_read_timeout(TIMEOUT).expect("timeout");
        stream.write_all(b"t").expect("write");
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("read");
        assert_eq!(&byte, b"t");
        let any = SocketAddr::new(if udp.is_ipv4() { [0; 4].into() } else { [0; 16].into() }, 0);
        let socket = UdpSocket::bind(any).expect("bind");
        socket.set_read_timeout(TIMEOUT).expect("timeout");
        socket.send_to(b"u", udp).expect("send");
        socket.recv(&mut byte).expect("receive");
        assert_eq!(&byte, b"u");
        stream.local_addr().expect("address").ip()
    });
    let (tcp_peer, udp_peer) = serving.join().expect("the server");
    let own = seen.expect("enter the client");
    assert_eq!((tcp_peer, udp_peer), (own, own), "nobody translates addresses on the way");
}

/// How long `bytes` take by TCP from `client` to `server` at `address`.
pub(crate) fn transfer(client: &Netns, server: &Netns, address: IpAddr, bytes: usize) -> Duration {
    let listener = server.run(|| TcpListener::bind((address, 0)).expect("tcp")).expect("enter the server");
    let to = listener.local_addr().expect("address");
    let receiving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut received = vec![0; bytes];
        stream.read_exact(&mut received).expect("receive all");
        Instant::now()
    });
    let send = || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect");
        let begin = Instant::now();
        stream.write_all(&vec![7; bytes]).expect("send");
        (begin, stream)
    };
    // The stream stays open until all has arrived.
    let (begin, _stream) = client.run(send).expect("enter the client");
    receiving.join().expect("the server").duration_since(begin)
}
