//! Processor time: pinning, and who used how much of it.
//!
//! What an operation costs is the time of the client's and the server's process (getrusage) plus what the
//! kernel spent for them outside of any process: `ksoftirqd` of the measured processor, and its `irq` and
//! `softirq` columns of /proc/stat. Kernels without CONFIG_IRQ_TIME_ACCOUNTING bill a softirq to the
//! process it interrupts and show it in those columns once more, so the sum is capped by the time in
//! which the processor was not idle. /proc/stat counts in ticks of 10 ms.
//!
//! Client and server keep their processor busy throughout, except where they wait for something else, so
//! that on a quiet machine this is close to the inverse of the rate. It differs on a busy one, where it
//! is the steadier of the two.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;

/// The kernel's unit in /proc/stat (USER_HZ, which is part of its ABI).
const TICK: Duration = Duration::from_millis(10);

/// Confines this thread, and those it starts, to one processor.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// The processors that this process may use.
pub(crate) fn usable() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).collect())
}

/// User and system time of this process so far.
pub(crate) fn own_time() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let microseconds = |time: TimeVal| time.num_microseconds() as u64;
    Ok(Duration::from_micros(microseconds(usage.user_time()) + microseconds(usage.system_time())))
}

/// Columns of /proc/stat, for one processor or all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// Neither idle nor waiting for a disk, nor taken by the hypervisor.
    pub(crate) busy: Duration,
    /// In interrupts and softirqs; part of `busy`.
    pub(crate) interrupts: Duration,
    /// Taken by the hypervisor for someone else.
    pub(crate) stolen: Duration,
    /// All columns.
    pub(crate) total: Duration,
}

impl Times {
    /// Reads the line of one processor, or with `None` the sum of all.
    pub(crate) fn read(cpu: Option<usize>) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
        let label = cpu.map_or_else(|| "cpu".to_owned(), |number| format!("cpu{number}"));
        Self::parse(&stat, &label).with_context(|| format!("find {label} in /proc/stat"))
    }

    fn parse(stat: &str, label: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '))?;
        let columns: Vec<u32> = line.split_whitespace().map_while(|column| column.parse().ok()).collect();
        // Guest time, the columns after these, is contained in the first two.
        let &[user, nice, system, idle, iowait, irq, softirq, steal, ..] = &columns[..] else { return None };
        let busy = user + nice + system + irq + softirq;
        Some(Self {
            busy: TICK * busy,
            interrupts: TICK * (irq + softirq),
            stolen: TICK * steal,
            total: TICK * (busy + idle + iowait + steal),
        })
    }

    /// What has passed since an earlier reading.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            interrupts: self.interrupts.saturating_sub(earlier.interrupts),
            stolen: self.stolen.saturating_sub(earlier.stolen),
            total: self.total.saturating_sub(earlier.total),
        }
    }
}

/// The processor that is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Core {
    /// Its number.
    pub(crate) cpu: usize,
    ksoftirqd: Option<Pid>,
}

/// A reading of [`Core`]: what was used there outside of the workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CoreTime {
    times: Times,
    ksoftirqd: Duration,
}

impl Core {
    /// Finds the processor's kernel thread, which containers may not show.
    pub(crate) fn new(cpu: usize) -> Self {
        let name = format!("ksoftirqd/{cpu}\n");
        let ksoftirqd = fs::read_dir("/proc").ok().and_then(|processes| {
            processes.flatten().filter_map(|process| process.file_name().to_str()?.parse().ok()).find(
                |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm == name),
            )
        });
        Self { cpu, ksoftirqd: ksoftirqd.map(Pid::from_raw) }
    }

    /// Reads the clocks.
    pub(crate) fn read(&self) -> Result<CoreTime> {
        // The first field of schedstat is the thread's time on a processor, in nanoseconds.
        let nanoseconds = self.ksoftirqd.and_then(|pid| {
            fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?.split(' ').next()?.parse().ok()
        });
        Ok(CoreTime {
            times: Times::read(Some(self.cpu))?,
            ksoftirqd: Duration::from_nanos(nanoseconds.unwrap_or(0)),
        })
    }
}

impl CoreTime {
    /// Processor time that `workers` and the kernel on their behalf used between `earlier` and now.
    pub(crate) fn cost_since(self, earlier: Self, workers: Duration) -> Duration {
        let core = self.times.since(earlier.times);
        let own = workers + self.ksoftirqd.saturating_sub(earlier.ksoftirqd);
        // A tick's worth of rounding must not take away what getrusage is sure of.
        (own + core.interrupts).min(core.busy).max(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  10 0 20 60 1 2 7 5 3 0\ncpu0 1 1 1 1 1 1 1 1 0 0\ncpu1 9 0 1 50 0 0 0 0 0 0\n";

    fn core(busy: u64, interrupts: u64) -> CoreTime {
        let milliseconds = Duration::from_millis;
        let times =
            Times { busy: milliseconds(busy), interrupts: milliseconds(interrupts), ..Times::default() };
        CoreTime { times, ksoftirqd: Duration::ZERO }
    }

    #[test]
    fn guest_time_is_not_counted_twice() {
        let times = Times::parse(STAT, "cpu").unwrap();
        assert_eq!(times.busy, TICK * 39);
        assert_eq!(times.interrupts, TICK * 9);
        assert_eq!(times.stolen, TICK * 5);
        assert_eq!(times.total, TICK * 105);
    }

    #[test]
    fn a_processor_is_found_by_its_whole_name() {
        assert_eq!(Times::parse(STAT, "cpu1").unwrap().busy, TICK * 10);
        assert_eq!(Times::parse(STAT, "cpu11"), None);
    }

    #[test]
    fn softirqs_billed_to_a_process_already_are_not_billed_again() {
        let cost = |busy, interrupts, workers| {
            core(busy, interrupts).cost_since(core(0, 0), Duration::from_millis(workers)).as_millis()
        };
        assert_eq!(cost(1000, 300, 1000), 1000);
        assert_eq!(cost(1000, 300, 700), 1000);
        assert_eq!(cost(990, 0, 995), 995);
    }
}
