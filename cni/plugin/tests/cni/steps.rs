//! A process that is stopped before each of its steps, to kill it there: the system calls by which it changes something,
//! or after which it has.

use std::collections::BTreeSet;
use std::fs;
use std::process::Child;

use nix::Error;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The calls that are counted. Those between two of them (rename, fchmod, close, and all that only read) either change
/// nothing or are one change alone, which is then seen by being killed before the next.
const STEPS: [libc::c_long; 7] = [
    libc::SYS_openat,
    libc::SYS_write,
    libc::SYS_fdatasync,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_connect,
    libc::SYS_setns,
];

/// A child under trace, with all of its threads. Only the thread that seized it may go on with it.
pub(crate) struct Traced {
    child: Child,
    /// Its threads, and of each whether its next stop is at the end of a call.
    threads: BTreeSet<(Pid, bool)>,
}

/// What a traced child has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It has made as many steps as were asked for, and stands before the next.
    Stopped,
    /// It has ended before.
    Ended,
}

impl Traced {
    /// Seizes a child that waits for its input: what it does from then on is counted.
    pub(crate) fn seize(child: Child) -> Self {
        let pid = Pid::from_raw(child.id().cast_signed());
        let options =
            Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).expect("trace the plugin");
        ptrace::interrupt(pid).expect("stop the plugin");
        Self { child, threads: [(pid, false)].into() }
    }

    /// The child itself, for its input.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Lets it go on until it is about to take the step after `steps`, by all threads together.
    pub(crate) fn run(&mut self, steps: usize) -> Progress {
        let mut taken = 0;
        while !self.threads.is_empty() {
            for (thread, in_call) in self.threads.clone() {
                let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
                let mut next = in_call;
                let mut signal = None;
                match waitpid(thread, Some(flags)) {
                    Ok(WaitStatus::StillAlive) => continue,
                    Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Error::ECHILD) => {
                        self.threads.remove(&(thread, in_call));
                        continue;
                    }
                    Ok(WaitStatus::PtraceSyscall(_)) => {
                        next = !in_call;
                        let is_step = next && STEPS.contains(&self.call(thread));
                        if is_step && taken == steps {
                            return Progress::Stopped;
                        }
                        taken += usize::from(is_step);
                    }
                    Ok(WaitStatus::PtraceEvent(_, _, event)) if event == libc::PTRACE_EVENT_CLONE => {
                        let new = ptrace::getevent(thread).expect("the new thread");
                        self.threads
                            .insert((Pid::from_raw(i32::try_from(new).expect("a thread's id")), false));
                    }
                    Ok(WaitStatus::Stopped(_, other)) if other != Signal::SIGSTOP => signal = Some(other),
                    Ok(_) => {}
                    Err(error) => panic!("wait for the plugin: {error}"),
                }
                self.threads.remove(&(thread, in_call));
                self.threads.insert((thread, next));
                // It may be killed at any time, by others too.
                match ptrace::syscall(thread, signal) {
                    Ok(()) | Err(Error::ESRCH) => {}
                    Err(error) => panic!("go on with the plugin: {error}"),
                }
            }
        }
        Progress::Ended
    }

    /// The number of the call that a thread stands before.
    fn call(&self, thread: Pid) -> libc::c_long {
        let path = format!("/proc/{}/task/{thread}/syscall", self.child.id());
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(-1)
    }

    /// Kills it where it stands.
    pub(crate) fn kill(mut self) {
        // Fails if it has ended by itself.
        drop(self.child.kill());
        while !self.threads.is_empty() {
            self.threads.retain(|(thread, _)| {
                let outcome = waitpid(*thread, Some(WaitPidFlag::__WALL | WaitPidFlag::WNOHANG));
                !matches!(outcome, Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Error::ECHILD))
            });
        }
    }
}
