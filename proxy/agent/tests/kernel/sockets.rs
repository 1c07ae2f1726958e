//! The socket hooks at work on real sockets.

use super::*;

#[test]
#[ignore = "needs root: run make test"]
fn a_node_port_is_kept_from_the_nodes_own_processes() {
    let room = Room::new();
    in_netns(|| {
        let (mut services, _) = room.hook();
        let (node_port, other) = (key_at("127.0.0.1", 30080), key_at("127.0.0.1", 80));
        let frontend = |key: &FrontendKey, flags| Frontend {
            service: 1,
            flags,
            check: key.check(),
            ..Frontend::default()
        };
        services
            .write_frontend(&node_port, &frontend(&node_port, frontend_flags::NODE_PORT))
            .expect("written");
        services.write_frontend(&other, &frontend(&other, 0)).expect("written");
        let bind = |address: &str| std::net::TcpListener::bind(address).map(drop).map_err(|e| e.kind());
        let in_use = Err(std::io::ErrorKind::AddrInUse);
        for protected in ["127.0.0.1:30080", "0.0.0.0:30080", "[::]:30080"] {
            assert_eq!(bind(protected), in_use, "{protected}");
        }
        for free in ["127.0.0.1:30081", "127.0.0.2:30080", "127.0.0.1:80", "0.0.0.0:0"] {
            assert_eq!(bind(free), Ok(()), "{free}");
        }
        std::net::UdpSocket::bind("127.0.0.1:30080").expect("the NodePort is TCP's");
        in_netns(|| std::net::TcpListener::bind("0.0.0.0:30080").map(drop).expect("a pod may bind it"));
        services.remove_frontend(&node_port).expect("removed");
        assert_eq!(bind("0.0.0.0:30080"), Ok(()), "no NodePort any more");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn sockets_of_clients_alone_are_connected_to_a_backend() {
    let room = Room::new();
    in_netns(|| {
        let (mut services, mut clients) = room.hook();
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = server.local_addr().expect("an address").port();
        let backend = Backend {
            address: address("127.0.0.1").into(),
            port: Port::new(port),
            reserved: 0,
            generation: 1,
        };
        let region = Region { base: 3, len: 1 };
        let frontend = Frontend {
            service: 1,
            flags: frontend_flags::HAS_ENDPOINTS,
            internal: region,
            external: region,
            check: key(80).check(),
            ..Frontend::default()
        };
        services.write_backend(1, &backend).expect("written");
        services.write_slots(3, &[1]).expect("written");
        services.write_frontend(&key(80), &frontend).expect("written");
        let connect = || std::net::TcpStream::connect("10.96.0.1:80");
        let cookie = current_cookie().expect("a cookie");

        connect().expect_err("not a client yet, and no route leads there");
        clients.set(cookie, &[address("127.0.0.1")]).expect("set");
        let stream = connect().expect("connected");
        assert_eq!(stream.peer_addr().expect("a peer").to_string(), "10.96.0.1:80");
        clients.remove(cookie).expect("removed");
        clients.remove(cookie).expect("removed twice");
        connect().expect_err("no client any more");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn socket_hooks_are_swapped_in_place_and_follow_the_cgroup_they_are_asked_for() {
    let room = Room::new();
    let root = cgroup_root();
    let groups = [Cgroup::new(&root, "a"), Cgroup::new(&root, "b")];
    let attach = |group: &Cgroup| {
        let mut links = Links::new(room.load().programs, &room.pins(), Datapath::Auto).expect("links");
        links.attach_sockets(&group.0).expect("attached");
    };
    let inodes = || -> Vec<u64> {
        let entries = fs::read_dir(room.pins().links()).expect("listed").flatten();
        entries.map(|entry| entry.metadata().expect("metadata").ino()).collect()
    };
    attach(&groups[0]);
    let first = inodes();
    assert_eq!(first.len(), 10);
    attach(&groups[0]);
    assert_eq!(inodes(), first, "the same pins");
    attach(&groups[1]);
    assert_eq!(room.link_pins().len(), 10);
    assert!(inodes().iter().all(|inode| !first.contains(inode)), "new links to another cgroup");
    cleanup(&room.bpffs()).expect("cleaned");
    assert!(!room.pins().maps().exists());
}

/// A cgroup that goes with the test.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(root: &Path, name: &str) -> Self {
        let path = root.join(format!("flagent-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
