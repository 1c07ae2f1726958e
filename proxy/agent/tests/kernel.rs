//! The dataplane against the real kernel: maps, links and endpoints, each test in a network namespace and on
//! a bpf filesystem of its own.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use fairlead_abi::{Address, Backend, Config, Frontend, FrontendKey, Port, Region, marks, protocol};
use fairlead_core::dataplane::ServiceMaps;
use fairlead_net::agent::{PodRef, Registration};
use fairlead_net::netns::NamedNetns;
use fairlead_proxy::dataplane::endpoints::Endpoints;
use fairlead_proxy::dataplane::links::{Attachment, Datapath, Links, Place, cleanup};
use fairlead_proxy::dataplane::load::{Loaded, Sizes, load, mount_bpffs};
use fairlead_proxy::dataplane::{Pins, netns_cookie};
use fairlead_proxy::uplinks::Uplinks;
use nix::mount::{MntFlags, umount2};
use nix::net::if_::if_nametoindex;

const SIZES: Sizes = Sizes { frontends: 4, slots: 64, backends: 64, endpoints: 8, flows: 1024 };

/// A bpf filesystem that goes with the test.
struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let room = Self { directory: tempfile::tempdir().expect("a directory") };
        mount_bpffs(&room.bpffs()).expect("a bpf filesystem");
        room
    }

    fn bpffs(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    fn pins(&self) -> Pins {
        Pins::new(&self.bpffs())
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("endpoints")
    }

    fn load(&self) -> Loaded {
        load(fairlead_object::OBJECT, &self.pins(), &SIZES).expect("loaded")
    }

    /// Links and endpoints of an agent that has just started.
    fn start(&self, datapath: Datapath) -> (Arc<Mutex<Links>>, Endpoints) {
        let Loaded { maps, programs, .. } = self.load();
        let links = Arc::new(Mutex::new(Links::new(programs, &self.pins(), datapath).expect("links")));
        links.lock().expect("not poisoned").adopt().expect("adopted");
        let endpoints = Endpoints::restore(maps.endpoints, maps.marks, Arc::clone(&links), self.files())
            .expect("restored");
        (links, endpoints)
    }

    fn link_pins(&self) -> Vec<String> {
        let entries = fs::read_dir(self.pins().links()).expect("listed");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = umount2(&self.bpffs(), MntFlags::MNT_DETACH);
    }
}

/// Runs a test in a network namespace of its own, which goes with it.
fn in_netns(test: impl FnOnce() + Send) {
    static SERIAL: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = SERIAL.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let namespace =
        NamedNetns::create(&format!("flagent-{}-{serial}", std::process::id())).expect("a namespace");
    namespace.netns().run(test).expect("entered");
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// A veth pair, of which the one end would be moved into a pod.
fn pod(name: &str, address: &str) -> Registration {
    ip(&format!("link add {name} type veth peer name p{name}"));
    Registration {
        container_id: format!("container-{name}"),
        ifname: "eth0".into(),
        pod: PodRef { namespace: "default".into(), name: name.into(), uid: name.into() },
        host_ifname: name.into(),
        host_ifindex: if_nametoindex(name).expect("an interface"),
        pod_mac: [2, 0, 0, 0, 0, 1],
        host_mac: [2, 0, 0, 0, 0, 2],
        addresses: vec![address.parse().expect("an address")],
    }
}

fn key(port: u16) -> FrontendKey {
    let address: IpAddr = "10.96.0.1".parse().expect("an address");
    FrontendKey { address: address.into(), port: Port::new(port), protocol: protocol::TCP, reserved: 0 }
}

#[test]
#[ignore = "needs root: run make test"]
fn what_is_written_of_services_is_read_back_by_the_next_agent() {
    let room = Room::new();
    let address: IpAddr = "fd00::1".parse().expect("an address");
    let backend = Backend { address: address.into(), port: Port::new(8080), reserved: 0, generation: 3 };
    let frontend = Frontend { service: 1, internal: Region { base: 5, len: 3 }, ..Frontend::default() };
    let mut maps = room.load().maps.services;
    maps.write_backend(63, &backend).expect("written");
    maps.write_slots(5, &[63, 63, 1]).expect("written");
    maps.write_slots(0, &[9]).expect("written");
    maps.write_frontend(&key(80), &frontend).expect("written");
    drop(maps);

    let mut maps = room.load().maps.services;
    assert_eq!(maps.backends().expect("read"), [(63, backend)]);
    assert_eq!(maps.slots(Region { base: 5, len: 3 }).expect("read"), [63, 63, 1]);
    assert_eq!(maps.slots(Region { base: 0, len: 1 }).expect("read"), [9]);
    assert_eq!(maps.slots(Region { base: 63, len: 1 }).expect("read"), [0]);
    assert_eq!(maps.frontends().expect("read"), [(key(80), frontend)]);
    maps.remove_frontend(&key(80)).expect("removed");
    maps.remove_frontend(&key(80)).expect("removed twice");
    assert!(maps.frontends().expect("read").is_empty());
}

#[test]
#[ignore = "needs root: run make test"]
fn a_full_map_says_which_frontend_found_no_room() {
    let room = Room::new();
    let mut maps = room.load().maps.services;
    for port in 1..=4 {
        maps.write_frontend(&key(port), &Frontend::default()).expect("room");
    }
    let error = maps.write_frontend(&key(5), &Frontend::default()).expect_err("no room");
    assert_eq!(error.to_string(), "program frontend 10.96.0.1:5/tcp: map full (4)");
    maps.write_frontend(&key(4), &Frontend::default()).expect("what is there can be replaced");
    let error = maps.write_backend(64, &Backend::default()).expect_err("no room");
    assert!(error.to_string().ends_with("map full (64)"), "{error}");
}

#[test]
#[ignore = "needs root: run make test"]
fn a_map_that_is_there_keeps_its_size_and_its_entries() {
    let room = Room::new();
    let mut maps = room.load().maps.services;
    maps.write_frontend(&key(80), &Frontend { service: 7, ..Frontend::default() }).expect("written");
    drop(maps);
    let larger = Sizes { frontends: 400, ..SIZES };
    let loaded = load(fairlead_object::OBJECT, &room.pins(), &larger).expect("loaded");
    let size = loaded.sizes.iter().find(|size| size.name == "FRONTENDS").expect("known");
    assert_eq!((size.capacity, size.wanted), (4, 400));
    assert_eq!(loaded.maps.services.frontends().expect("read").len(), 1);
}

#[test]
#[ignore = "needs root: run make test"]
fn a_load_that_fails_leaves_no_pin_behind() {
    let room = Room::new();
    let refused = Sizes { backends: u32::MAX, ..SIZES };
    let error = load(fairlead_object::OBJECT, &room.pins(), &refused).err().expect("refused");
    assert!(error.to_string().contains("BACKENDS"), "{error}");
    let left: Vec<_> = fs::read_dir(room.pins().maps()).expect("listed").flatten().collect();
    assert!(left.iter().all(|entry| entry.file_name() == "links"), "{left:?}");
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_outlives_the_agent_with_its_index_and_its_marks() {
    let room = Room::new();
    in_netns(|| {
        let (other, web) = (pod("other", "10.0.0.1"), pod("web", "10.0.0.2"));
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(other).expect("added");
        endpoints.add(web.clone()).expect("added");
        endpoints.add(web.clone()).expect("added again: no change");
        endpoints.check(&web).expect("as registered");
        assert_eq!(room.link_pins().len(), 4, "{:?}", room.link_pins());
        drop((links, endpoints));

        let mut maps = room.load().maps;
        let before = maps.endpoints.get(&Address::from(web.addresses[0]), 0).expect("an entry");
        maps.marks.set(before.index, marks::TRANSLATED, 0).expect("marked");
        drop(maps);

        let (links, mut endpoints) = room.start(Datapath::Tcx);
        assert_eq!(links.lock().expect("not poisoned").attached(Place::Pod).expect("listed").len(), 2);
        assert_eq!(endpoints.len(), 2);
        endpoints.check(&web).expect("as registered");
        let views = endpoints.views();
        let translated: Vec<_> = views.iter().map(|view| (view.pod.as_str(), view.translated)).collect();
        assert_eq!(translated, [("default/other", false), ("default/web", true)]);

        let id = (web.container_id.clone(), web.ifname.clone());
        endpoints.delete(&id).expect("deleted");
        endpoints.delete(&id).expect("deleted twice");
        let error = endpoints.check(&web).expect_err("gone").to_string();
        assert!(error.contains("not registered"), "{error}");
        assert_eq!(room.link_pins().len(), 2, "{:?}", room.link_pins());
        assert!(room.load().maps.endpoints.get(&Address::from(web.addresses[0]), 0).is_err());
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_whose_interface_is_gone_is_collected_now_or_by_the_next_agent() {
    let room = Room::new();
    in_netns(|| {
        let (first, second) = (pod("first", "10.0.0.1"), pod("second", "10.0.0.2"));
        let (links, mut endpoints) = room.start(Datapath::Tcx);
        endpoints.add(first).expect("added");
        endpoints.add(second).expect("added");
        ip("link del first");
        assert_eq!(endpoints.collect().expect("collected"), 1);
        assert_eq!((endpoints.len(), room.link_pins().len()), (1, 2));
        drop((links, endpoints));

        ip("link del second");
        let (_, endpoints) = room.start(Datapath::Tcx);
        assert!(endpoints.is_empty());
        assert!(room.link_pins().is_empty(), "{:?}", room.link_pins());
        assert_eq!(room.load().maps.endpoints.keys().count(), 0);
        assert_eq!(fs::read_dir(room.files()).expect("listed").count(), 0);
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_endpoint_for_which_there_is_no_room_leaves_nothing_behind() {
    let room = Room::new();
    in_netns(|| {
        let (_, mut endpoints) = room.start(Datapath::Tcx);
        for place in 0..8 {
            endpoints.add(pod(&format!("pod{place}"), &format!("10.0.0.{place}"))).expect("room");
        }
        let late = pod("late", "10.0.0.8");
        let error = endpoints.add(late.clone()).expect_err("no room").to_string();
        assert!(error.contains("--max-endpoints"), "{error}");
        let gone = Registration { host_ifname: "nowhere".into(), ..late };
        endpoints.add(gone).expect_err("no such interface");
        assert_eq!((endpoints.len(), room.link_pins().len()), (8, 16));
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn an_address_that_passed_to_another_pod_stays_with_it() {
    let room = Room::new();
    in_netns(|| {
        let (_, mut endpoints) = room.start(Datapath::Tcx);
        let (old, new) = (pod("old", "10.0.0.1"), pod("new", "10.0.0.1"));
        endpoints.add(old.clone()).expect("added");
        endpoints.add(new.clone()).expect("added");
        endpoints.delete(&(old.container_id, old.ifname)).expect("deleted");
        endpoints.check(&new).expect("untouched");
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn clsact_filters_are_attached_once_replaced_and_removed() {
    let room = Room::new();
    in_netns(|| {
        let web = pod("web", "10.0.0.1");
        let filters = |side| {
            let show =
                Command::new("tc").args(["filter", "show", "dev", "web", side]).output().expect("tc runs");
            String::from_utf8(show.stdout).expect("text").matches("handle 0xfa1").count()
        };
        let filters = || (filters("ingress"), filters("egress"));
        let (links, mut endpoints) = room.start(Datapath::Clsact);
        assert_eq!(links.lock().expect("not poisoned").attachment(), Attachment::Clsact);
        endpoints.add(web.clone()).expect("added");
        drop((links, endpoints));
        assert_eq!(filters(), (1, 1), "they outlive the agent");
        let (_, mut endpoints) = room.start(Datapath::Clsact);
        assert_eq!(endpoints.len(), 1);
        assert_eq!(filters(), (1, 1), "replaced, not added");
        endpoints.check(&web).expect("attached");
        endpoints.delete(&(web.container_id, web.ifname)).expect("deleted");
        assert_eq!(filters(), (0, 0));
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn uplinks_follow_the_nodes_addresses() {
    let room = Room::new();
    in_netns(|| {
        for (name, address) in [("up0", "192.0.2.1/24"), ("up1", "198.51.100.1/24")] {
            ip(&format!("link add {name} type veth peer name p{name}"));
            ip(&format!("addr add {address} dev {name}"));
        }
        let Loaded { maps, programs, .. } = room.load();
        let links = Arc::new(Mutex::new(Links::new(programs, &room.pins(), Datapath::Auto).expect("links")));
        let cookie = netns_cookie().expect("a cookie");
        assert_ne!(cookie, 0);
        let ports = "50000-50015".parse().expect("a range");
        let mut uplinks = Uplinks::new(maps.config, Arc::clone(&links), Vec::new(), ports, cookie);
        let view = uplinks.view();
        let names = || view.lock().expect("not poisoned").uplinks.clone();
        let attached = || links.lock().expect("not poisoned").attached(Place::Uplink).expect("listed");
        let index = |name: &str| if_nametoindex(name).expect("an interface");

        uplinks.apply(&["192.0.2.1".parse().expect("an address")]);
        assert_eq!((names(), attached()), (vec!["up0".to_owned()], vec![index("up0")]));
        uplinks.apply(&[]);
        assert_eq!(attached(), [index("up0")], "a Node that is not known changes nothing");
        let moved: IpAddr = "198.51.100.1".parse().expect("an address");
        uplinks.apply(&[moved]);
        assert_eq!((names(), attached()), (vec!["up1".to_owned()], vec![index("up1")]));
        let config = room.load().maps.config.get(&0, 0).expect("read");
        let expected =
            Config { node_v4: moved.into(), host_netns: cookie, snat_first: 50000, snat_count: 16, ..config };
        assert_eq!(config, expected);
        assert!(config.node_v6.is_unspecified());
        uplinks.apply(&["203.0.113.1".parse().expect("an address")]);
        let errors = view.lock().expect("not poisoned").errors.join("\n");
        assert!(errors.contains("no interface carries"), "{errors}");
        assert_eq!(attached(), [index("up1")]);
    });
}

#[test]
#[ignore = "needs root: run make test"]
fn socket_hooks_are_swapped_in_place_and_follow_the_cgroup_they_are_asked_for() {
    let room = Room::new();
    let root = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let root = root.lines().find(|line| line.contains(" - cgroup2 ")).expect("a cgroup2 hierarchy");
    let root = Path::new(root.split(' ').nth(4).expect("a mount point"));
    let groups = [Cgroup::new(root, "a"), Cgroup::new(root, "b")];
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
    assert_eq!(first.len(), 8);
    attach(&groups[0]);
    assert_eq!(inodes(), first, "the same pins");
    attach(&groups[1]);
    assert_eq!(room.link_pins().len(), 8);
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
