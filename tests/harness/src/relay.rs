//! A way from the user's shell to a real API server, which lives on the fabric: connections to a loopback port
//! are carried into a namespace. So nothing of the machine's own network changes. (The stand-in takes a socket along.)

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};
use fairlead_net::netns::Netns;

/// Carries connections from `listen` to `target` inside the namespace, for ever; prints the port taken.
///
/// # Errors
/// When the namespace can't be opened or `listen` can't be bound.
pub fn run(listen: SocketAddr, netns: &Path, target: SocketAddr) -> Result<()> {
    let netns = Netns::open(netns)?;
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    println!("{}", listener.local_addr()?);
    for near in listener.incoming().flatten() {
        let netns = netns.clone();
        thread::spawn(move || {
            // The client sees its connection close; it will say why it wanted more.
            carry(&near, &netns, target).ok();
        });
    }
    Ok(())
}

fn carry(near: &TcpStream, netns: &Netns, target: SocketAddr) -> Result<()> {
    let far = netns.run(|| TcpStream::connect(target))??;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    thread::scope(|scope| {
        scope.spawn(|| one_way(near, &far));
        one_way(&far, near);
    });
    Ok(())
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let carried = io::copy(&mut from, &mut to);
    to.shutdown(Shutdown::Write).ok();
    if carried.is_err() {
        from.shutdown(Shutdown::Both).ok();
        to.shutdown(Shutdown::Both).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn bytes_and_the_end_of_each_direction_are_carried() {
        let loopback = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (entry, exit) = (loopback(), loopback());
        let mut client = TcpStream::connect(entry.local_addr().unwrap()).unwrap();
        let near = entry.accept().unwrap().0;
        let far = TcpStream::connect(exit.local_addr().unwrap()).unwrap();
        let mut server = exit.accept().unwrap().0;
        let relay = thread::spawn(move || {
            thread::scope(|scope| {
                scope.spawn(|| one_way(&near, &far));
                one_way(&far, &near);
            });
        });
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").unwrap();
        drop(server);
        text.clear();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "answer");
        relay.join().unwrap();
    }
}
