//! Network namespaces: opening one, running code or a command inside it, and making named ones.
//!
//! A network namespace belongs to a thread, so code enters one only on a thread of its own
//! ([`Netns::run`], [`Netns::spawn`]) or in a child process ([`Netns::enter`]): the caller's own
//! namespace never changes, on no path out. Sockets, rtnetlink's included, belong for life to the namespace
//! of the thread that opened them; `/proc/sys/net` shows the namespace of the thread that opens the file.
//! The mount namespace stays the caller's, so that bpffs remains visible (`ip netns exec` hides it).
//!
//! The plugin enters pods with this; the agent and the test harness use it as well.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// Where named namespaces are kept, as `ip netns` does.
pub const NAMED: &str = "/run/netns";

/// What could not be done with which namespace.
#[derive(Debug, thiserror::Error)]
#[error("{step} network namespace {name}: {source}")]
pub struct NetnsError {
    /// The step that failed: "open", "enter", "create", "remove".
    pub step: &'static str,
    /// The namespace's path or name.
    pub name: String,
    /// What the system said.
    pub source: io::Error,
}

impl NetnsError {
    fn new(step: &'static str, name: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step, name: name.into(), source: source.into() }
    }
}

/// An open network namespace; it lives at least as long as this handle. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    name: Arc<str>,
}

impl Netns {
    /// Opens the namespace at `path`: `/run/netns/<name>` or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    /// When nothing is there, or something else than a namespace.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NetnsError> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let file = File::open(path).map_err(|e| NetnsError::new("open", &name, e))?;
        let kind = fstatfs(&file).map_err(|e| NetnsError::new("open", &name, e))?.filesystem_type();
        if kind != NSFS_MAGIC {
            let what = io::Error::new(io::ErrorKind::InvalidInput, "not a namespace");
            return Err(NetnsError::new("open", name, what));
        }
        Ok(Self { file: Arc::new(file), name: name.into() })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace's identity: equal for two handles of one namespace.
    ///
    /// # Errors
    /// When the kernel will not say.
    pub fn inode(&self) -> Result<u64, NetnsError> {
        self.file.metadata().map(|m| m.ino()).map_err(|e| NetnsError::new("open", &*self.name, e))
    }

    /// The cookie by which eBPF programs know the namespace, never given to another while the machine runs.
    ///
    /// # Errors
    /// When the namespace can't be entered, or on a kernel older than 5.14.
    pub fn cookie(&self) -> Result<u64, NetnsError> {
        self.run(current_cookie)?.map_err(|e| NetnsError::new("read the cookie of", &*self.name, e))
    }

    /// Runs `work` inside the namespace, on a thread of its own, and waits for it. A panic in `work` is
    /// passed on to the caller.
    ///
    /// # Errors
    /// When the namespace can't be entered; `work` has not run then.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter_thread()?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Starts a thread named `name` that runs `work` inside the namespace: for servers and event loops.
    ///
    /// # Errors
    /// When the thread can't be started. Failing to enter the namespace is the thread's own result.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<Result<T, NetnsError>>> {
        let netns = self.clone();
        thread::Builder::new().name(name.into()).spawn(move || {
            netns.enter_thread()?;
            Ok(work())
        })
    }

    /// Makes `command`'s process start inside the namespace.
    pub fn enter<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec the closure only makes the setns system call on a descriptor that the
        // closure itself keeps open; it allocates nothing, takes no lock, and io::Error::from(Errno) neither.
        unsafe { command.pre_exec(move || setns(&*file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)) }
    }

    fn enter_thread(&self) -> Result<(), NetnsError> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).map_err(|e| NetnsError::new("enter", &*self.name, e))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The cookie of the calling thread's namespace.
///
/// # Errors
/// On a kernel older than 5.14.
pub fn current_cookie() -> io::Result<u64> {
    let open = |family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = open(AddressFamily::Inet).or_else(|_| open(AddressFamily::Inet6))?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut len,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// A namespace bound to a name under [`NAMED`], removed on drop: also when a test panics.
///
/// Removing the name destroys the namespace once no process and no [`Netns`] is left in it.
#[derive(Debug)]
pub struct NamedNetns {
    netns: Netns,
    name: String,
}

impl NamedNetns {
    /// Makes a new namespace called `name`, its loopback interface up.
    ///
    /// # Errors
    /// When the name is taken, or without the privilege.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let failed = |e: io::Error| NetnsError::new("create", name, e);
        fs::create_dir_all(NAMED).map_err(failed)?;
        let path = Self::path_of(name);
        File::options().write(true).create_new(true).open(&path).map_err(failed)?;
        thread::scope(|scope| scope.spawn(|| bind_new_namespace(&path)).join())
            .unwrap_or_else(|panic| resume_unwind(panic))
            .and_then(|()| Netns::open(&path).map_err(|e| e.source))
            .map(|netns| Self { netns, name: name.into() })
            .map_err(|e| {
                // The name is ours (create_new): what is half made must go; the first error is the one to tell.
                let _ = remove(name);
                failed(e)
            })
    }

    /// The name under [`NAMED`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace's path, as CNI_NETNS wants it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Self::path_of(&self.name)
    }

    /// A handle on the namespace itself.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Leaves the namespace in place when this guard goes: [`remove`] it by name later.
    #[must_use]
    pub fn keep(self) -> Netns {
        let netns = self.netns.clone();
        std::mem::forget(self);
        netns
    }

    fn path_of(name: &str) -> PathBuf {
        Path::new(NAMED).join(name)
    }
}

impl std::ops::Deref for NamedNetns {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Drop for NamedNetns {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            tracing::warn!(%error, "a namespace is left behind");
        }
    }
}

/// Removes the named namespace; does nothing if there is none.
///
/// # Errors
/// When the kernel refuses to unmount it or to remove its name.
pub fn remove(name: &str) -> Result<(), NetnsError> {
    let path = NamedNetns::path_of(name);
    // EINVAL: a plain file, left by a creation that was killed half way.
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::ENOENT | nix::Error::EINVAL) => {}
        Err(e) => return Err(NetnsError::new("remove", name, e)),
    }
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NetnsError::new("remove", name, e)),
        _ => Ok(()),
    }
}

fn bind_new_namespace(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    raise_loopback()?;
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

fn raise_loopback() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an ifreq of zeroes is a valid value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = (*from).cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call, through an open socket.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Vec<String> {
        nix::net::if_::if_nameindex()
            .expect("list interfaces")
            .iter()
            .map(|i| i.name().to_string_lossy().into_owned())
            .collect()
    }

    fn unique(what: &str) -> String {
        format!("fl-netns-{what}-{}", std::process::id())
    }

    #[test]
    fn something_else_than_a_namespace_is_refused_by_name() {
        let error = Netns::open("/proc/self/status").expect_err("a plain file");
        assert!(error.to_string().contains("/proc/self/status"), "{error}");
        let error = Netns::open("/run/netns/fl-no-such").expect_err("nothing there");
        assert_eq!(error.source.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let before = Netns::current().and_then(|n| n.inode()).expect("own namespace");
        let netns = NamedNetns::create(&unique("run")).expect("create");
        let inside = netns.run(|| Netns::current().and_then(|n| n.inode())).expect("enter").expect("inode");
        assert_eq!(inside, netns.inode().expect("inode"));
        assert_ne!(inside, before);
        assert_eq!(netns.run(interfaces).expect("enter"), ["lo"]);
        assert_eq!(Netns::current().and_then(|n| n.inode()).expect("own namespace"), before);
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn every_namespace_has_a_cookie_of_its_own() {
        let netns = NamedNetns::create(&unique("cookie")).expect("create");
        let cookie = netns.cookie().expect("a cookie");
        assert_eq!(netns.cookie().expect("a cookie"), cookie);
        assert_ne!(current_cookie().expect("a cookie"), cookie);
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn a_command_starts_inside() {
        let netns = NamedNetns::create(&unique("command")).expect("create");
        let output =
            netns.enter(Command::new("readlink").arg("/proc/self/ns/net")).output().expect("run readlink");
        let expected = format!("net:[{}]\n", netns.inode().expect("inode"));
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn the_loopback_of_a_new_namespace_answers() {
        let netns = NamedNetns::create(&unique("lo")).expect("create");
        netns
            .run(|| {
                let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
                std::net::TcpStream::connect(listener.local_addr()?)
            })
            .expect("enter")
            .expect("connect over loopback");
    }

    #[test]
    #[ignore = "needs root: run make test"]
    fn a_named_namespace_goes_with_its_guard_also_after_a_panic() {
        let name = unique("panic");
        let outcome = std::panic::catch_unwind(|| {
            let netns = NamedNetns::create(&name).expect("create");
            netns.run(|| panic!("inside")).expect("enter");
        });
        assert!(outcome.is_err());
        assert!(!NamedNetns::path_of(&name).exists());
        remove(&name).expect("removing twice is fine");
    }
}
