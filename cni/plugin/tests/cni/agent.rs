//! A stand-in for the agent: it listens on the socket, records every request and answers as it is told.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use fairlead_net::agent::{Reply, Request};

/// How the stand-in answers an AddEndpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Yes.
    Willing,
    /// An error.
    Refusing,
    /// It hangs up without an answer.
    Breaking,
}

/// The listening stand-in; it stops when dropped.
pub(crate) struct FakeAgent {
    socket: PathBuf,
    requests: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeAgent {
    pub(crate) fn listen(socket: &Path, mood: Mood) -> Self {
        let listener = UnixListener::bind(socket).expect("bind the agent's socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&requests);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).expect("read a request");
                if line.is_empty() {
                    return;
                }
                let request: Request = serde_json::from_str(&line).expect("a request");
                let add = matches!(request, Request::AddEndpoint(_));
                recorded.lock().expect("requests").push(request);
                let reply = match mood {
                    Mood::Refusing if add => Reply::Error("the map is full".into()),
                    Mood::Breaking if add => continue,
                    _ => Reply::Ok(serde_json::Value::Null),
                };
                let reply = serde_json::to_string(&reply).expect("JSON");
                writeln!(&stream, "{reply}").expect("answer");
            }
        });
        Self { socket: socket.into(), requests, thread: Some(thread) }
    }

    /// Everything asked so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("requests").clone()
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
