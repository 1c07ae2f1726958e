//! The agent's end of the socket that [`fairlead_net::agent`] describes: a line in, a line out.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fairlead_daemon::repeated::Repeated;
use fairlead_net::agent::{Awaited, Reply, Request};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// The longest request.
const LONGEST: u64 = 64 * 1024;
/// How long a client may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whoever answers requests. Called on a thread that may block.
pub trait Answer: Send + Sync + 'static {
    /// The answer, or why there is none.
    fn answer(&self, request: Request) -> Result<Value, String>;

    /// The answer to [`Request::Wait`], which may take long and holds no thread meanwhile.
    fn wait(self: Arc<Self>, awaited: Awaited) -> impl Future<Output = Result<Value, String>> + Send;
}

/// Listens at `path`, for root alone. A socket that an agent left there is replaced; the caller makes sure
/// that no agent is at work.
///
/// # Errors
/// When the directory can't be made or the path is taken by something else than a socket.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there and is no socket")),
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers whoever connects, for ever.
pub async fn serve(listener: UnixListener, answer: Arc<impl Answer>) {
    let repeated = Repeated::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    if let Err(e) = converse(stream, answer).await {
                        tracing::debug!("client on the agent's socket: {e}");
                    }
                });
            }
            Err(e) => {
                repeated.warn(&format!("accept on the agent's socket: {e}"));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, answer: Arc<impl Answer>) -> io::Result<()> {
    let mut line = String::new();
    let read = async { BufReader::new((&mut stream).take(LONGEST)).read_line(&mut line).await };
    tokio::time::timeout(PATIENCE, read).await??;
    let reply = match serde_json::from_str::<Request>(&line) {
        Ok(Request::Wait(awaited)) => tokio::select! {
            result = answer.wait(awaited) => result.map_or_else(Reply::Error, Reply::Ok),
            () = hung_up(&mut stream) => return Ok(()),
        },
        Ok(request) => {
            let result = tokio::task::spawn_blocking(move || answer.answer(request)).await;
            match result.unwrap_or_else(|e| Err(format!("the agent failed at it: {e}"))) {
                Ok(value) => Reply::Ok(value),
                Err(why) => Reply::Error(why),
            }
        }
        Err(e) => Reply::Error(format!("understand the request: {e}")),
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

/// Waits until the client is gone. What it still says is nothing that was asked for.
async fn hung_up(stream: &mut UnixStream) {
    let mut rest = [0; 64];
    while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
}

#[cfg(test)]
mod tests {
    use fairlead_net::agent::{AgentError, AwaitedKind, ask};

    use super::*;

    struct Echo;

    impl Answer for Echo {
        fn answer(&self, request: Request) -> Result<Value, String> {
            match request {
                Request::Status => Ok("fine".into()),
                _ => Err("not now".into()),
            }
        }

        /// Says only when nobody waits any more.
        async fn wait(self: Arc<Self>, awaited: Awaited) -> Result<Value, String> {
            struct Told(String);
            impl Drop for Told {
                fn drop(&mut self) {
                    // The test looks whether it is there.
                    let _ = fs::write(&self.0, "");
                }
            }
            let _told = Told(awaited.name);
            std::future::pending().await
        }
    }

    /// Serves `Echo` on a socket in a fresh directory while `test` runs on another thread.
    fn with_server(test: impl FnOnce(&Path) + Send + 'static) {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/agent.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = listen(&path).expect("listening");
            let server = tokio::spawn(serve(listener, Arc::new(Echo)));
            tokio::task::spawn_blocking(move || test(&path)).await.expect("the test passes");
            server.abort();
        });
    }

    #[test]
    fn a_question_is_answered_and_a_refusal_says_why() {
        with_server(|path| {
            let answer = ask(path, &Request::Status, Duration::from_secs(5)).expect("answered");
            assert_eq!(answer, "fine");
            let refused = ask(path, &Request::Services, Duration::from_secs(5)).expect_err("refused");
            assert!(matches!(refused, AgentError::Refused(why) if why == "not now"));
        });
    }

    #[test]
    fn who_hangs_up_is_waited_for_no_more() {
        with_server(|path| {
            let told = path.with_file_name("told");
            let awaited = Awaited {
                kind: AwaitedKind::Service,
                namespace: String::new(),
                name: told.display().to_string(),
                resource_version: None,
                deleted: false,
                timeout_ms: 60_000,
            };
            ask(path, &Request::Wait(awaited), Duration::from_millis(200)).expect_err("nothing is said");
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !told.exists() {
                assert!(std::time::Instant::now() < deadline, "it is waited for yet");
                std::thread::sleep(Duration::from_millis(10));
            }
        });
    }

    #[test]
    fn nonsense_is_answered_with_an_error_and_the_agent_goes_on() {
        with_server(|path| {
            use std::io::{Read, Write};
            let mut stream = std::os::unix::net::UnixStream::connect(path).expect("connected");
            stream.write_all(b"{\"op\": 3}\n").expect("written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("read");
            assert!(answer.contains("understand the request"), "{answer}");
            ask(path, &Request::Status, Duration::from_secs(5)).expect("still answered");
        });
    }

    #[test]
    fn a_socket_left_by_an_earlier_agent_is_replaced_but_a_file_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _context = runtime.enter();
        listen(&path).expect("replaced");
        let file = directory.path().join("file");
        fs::write(&file, "precious").expect("written");
        listen(&file).expect_err("a file is not replaced");
        assert_eq!(fs::read_to_string(&file).expect("still there"), "precious");
    }
}
