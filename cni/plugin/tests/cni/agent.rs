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

use crate::host::kernel_state;

/// How the stand-in answers an AddEndpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Yes.
    Willing,
    /// An error.
    Refusing,
    /// It hangs up without an answer.
    Breaking,
    /// Yes; but to a CheckEndpoint it names a difference.
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
    pub(crate) fn listen(socket: &Path, host: &Netns, mood: Mood) -> Self {
        let listener = UnixListener::bind(socket).expect("bind the agent's socket");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (recorded, host) = (Arc::clone(&heard), host.clone());
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("read a request");
                if line.is_empty() {
                    return;
                }
                let request: Request = serde_json::from_str(&line).expect("a request");
                let check = matches!(request, Request::CheckEndpoint(_));
                let add = matches!(request, Request::AddEndpoint(_));
                let heard = Heard { request, host: kernel_state(&host) };
                recorded.lock().expect("requests").push(heard);
                let reply = match mood {
                    Mood::Refusing if add => {
                        Reply::Error("the policies of shop/web are not known yet".into())
                    }
                    Mood::Breaking if add => continue,
                    Mood::Differing if check => Reply::Error("its program is not attached".into()),
                    _ => Reply::Ok(serde_json::Value::Null),
                };
                let reply = serde_json::to_string(&reply).expect("JSON");
                writeln!(&stream, "{reply}").expect("answer");
            }
        });
        Self { socket: socket.into(), heard, thread: Some(thread) }
    }

    /// Everything asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.heard().into_iter().map(|heard| heard.request).collect()
    }

    /// The same, with what was in the host's kernel.
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("requests").clone()
    }
}

impl Drop for FakeAgent {
    fn drop(&mut self) {
        // An empty connection is the sign to stop.
        drop(UnixStream::connect(&self.socket));
        let outcome = self.thread.take().map(JoinHandle::join);
        fs::remove_file(&self.socket).expect("remove the agent's socket");
        assert!(thread::panicking() || matches!(outcome, Some(Ok(()))), "the stand-in agent panicked");
    }
}
