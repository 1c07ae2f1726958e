//! Processes of the cluster: started into a log file, signalled, awaited.

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The executable of that name, which cargo puts beside the harness: `$FAIRLEAD_BIN_DIR`, else the directory
/// of the running executable, or the one above it for a test.
///
/// # Errors
/// When it was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find the running executable")?;
    let beside = own.parent().context("the running executable has no directory")?;
    let dir = match env::var_os("FAIRLEAD_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None if beside.ends_with("deps") => beside.parent().unwrap_or(beside).to_owned(),
        None => beside.to_owned(),
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} is missing: run cargo build, or set FAIRLEAD_BIN_DIR", path.display());
    }
    Ok(path)
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts the command in a process group of its own, so that a terminal's Ctrl-C does not reach it; what it
    /// prints is appended to `log`.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::spawn_with(name, command, Stdio::null(), log)
    }

    /// Starts the command like [`spawn`](Self::spawn), with something on its standard input.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_with(name: &str, command: &mut Command, input: Stdio, log: &Path) -> Result<Self> {
        let file = open_log(log)?;
        command.stdout(file);
        Self::start(name, command, input, log)
    }

    /// Starts the command like [`spawn`](Self::spawn) and waits for the first line that it prints, its
    /// announcement that it is ready.
    ///
    /// # Errors
    /// When it can't be started, or ends without a word.
    pub fn announced(name: &str, command: &mut Command, log: &Path) -> Result<(Self, String)> {
        command.stdout(Stdio::piped());
        let mut process = Self::start(name, command, Stdio::null(), log)?;
        let mut line = String::new();
        if let Some(stdout) = process.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).with_context(|| format!("read from {name}"))?;
        }
        if line.is_empty() {
            let status = process.child.wait()?;
            bail!("{name} ended before it was ready ({status}): {}", process.last_words());
        }
        Ok((process, line.trim_end().to_owned()))
    }

    fn start(name: &str, command: &mut Command, input: Stdio, log: &Path) -> Result<Self> {
        let file = open_log(log)?;
        let child = command.stdin(input).stderr(file).process_group(0).spawn();
        let child = child.with_context(|| format!("start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that it logs to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Waits for the process's end, and kills it when that takes longer than `patience`.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("{} did not end within {patience:?} and was killed", self.name);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Checks that the process still runs.
    ///
    /// # Errors
    /// When it has ended; with the end of its log.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended ({status}): {}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    fn last_words(&self) -> String {
        tail(&self.log, 5)
    }
}

/// The last lines of a log; empty if there is none.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Says how many times as long everything may take, on a machine that is only emulated.
const PATIENCE: &str = "FAIRLEAD_PATIENCE";

/// Asks every few milliseconds until there is an answer.
///
/// # Errors
/// When asking fails for good, or nothing came within `patience`.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let times = env::var(PATIENCE).ok().and_then(|times| times.parse::<u32>().ok()).unwrap_or(1);
    let patience = patience.saturating_mul(times);
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn open_log(log: &Path) -> Result<File> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    File::options().create(true).append(true).open(log).with_context(|| format!("open {}", log.display()))
}
