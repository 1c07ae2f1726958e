//! A stand-in for the agent: it listens on the socket, records every request and how the host was at that moment, and
//! answers as it is told.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use fairlead_net::agent::{Reply, Request};
use fairlead_net::netns::Netns;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::Pid;
use serde_json::Value;

use crate::host::kernel_state;

/// What tells the stand-in to stop.
const STOP: &str = "stop\n";

/// How the stand-in answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Yes to everything.
    Willing,
    /// To an AddEndpoint, an error.
    Refusing,
    /// To an AddEndpoint, it hangs up without an answer.
    Breaking,
    /// To a CheckEndpoint, it names a difference.
    Differing,
}

/// A request, and what was in the host's kernel when it came.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) request: Request,
    pub(crate) host: BTreeSet<String>,
}

/// The listening stand-in; it stops when dropped.
pub(crate) struct FakeAgent {
    socket: PathBuf,
    heard: Arc<Mutex<Vec<Heard>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    /// One that answers in its mood.
    pub(crate) fn listen(socket: &Path, host: &Netns, mood: Mood) -> Self {
        Self::listen_with(socket, host, move |request, _| match (mood, request) {
            (Mood::Refusing, Request::AddEndpoint(_)) => {
                Some(Reply::Error("the policies of shop/web are not known yet".into()))
            }
            (Mood::Breaking, Request::AddEndpoint(_)) => None,
            (Mood::Differing, Request::CheckEndpoint(_)) => {
                Some(Reply::Error("its program is not attached".into()))
            }
            _ => Some(Reply::Ok(Value::Null)),
        })
    }

    /// One that answers with what `answer` says to a request from a process; None hangs up.
    pub(crate) fn listen_with(
        socket: &Path,
        host: &Netns,
        mut answer: impl FnMut(&Request, Pid) -> Option<Reply> + Send + 'static,
    ) -> Self {
        let listener = UnixListener::bind(socket).expect("bind the agent's socket");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (recorded, host) = (Arc::clone(&heard), host.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                let peer = getsockopt(&stream, PeerCredentials).expect("who asks").pid();
                let mut line = String::new();
                // Who asks may be killed at any moment.
                let read = BufReader::new(&stream).read_line(&mut line);
                if line == STOP {
                    return;
                }
                if read.is_err() || !line.ends_with('\n') {
                    continue;
                }
                let request: Request = serde_json::from_str(&line).expect("a request");
                let now = Heard { request: request.clone(), host: kernel_state(&host) };
                recorded.lock().expect("requests").push(now);
                if let Some(reply) = answer(&request, Pid::from_raw(peer)) {
                    let reply = serde_json::to_string(&reply).expect("JSON");
                    drop(writeln!(&stream, "{reply}"));
                }
            }
        });
        Self { socket: socket.into(), heard, thread: Some(thread) }
    }

    /// Everything asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.heard().into_iter().map(|heard| heard.request).collect()
    }

    /// The containers that were added and not deleted since.
    pub(crate) fn endpoints(&self) -> BTreeSet<String> {
        let mut endpoints = BTreeSet::new();
        for request in self.requests() {
            match request {
                Request::AddEndpoint(told) => drop(endpoints.insert(told.container_id)),
                Request::DeleteEndpoint { container_id, .. } => drop(endpoints.remove(&container_id)),
                _ => {}
            }
        }
        endpoints
    }

    /// Everything asked so far, with what was in the host's kernel.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("requests").clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        drop(UnixStream::connect(&self.socket).and_then(|mut stream| stream.write_all(STOP.as_bytes())));
        let outcome = self.thread.take().map(JoinHandle::join);
        fs::remove_file(&self.socket).expect("remove the agent's socket");
        assert!(thread::panicking() || matches!(outcome, Some(Ok(()))), "the stand-in agent panicked");
    }
}
