//! What every process says of itself, under the names that Prometheus' own clients give it
//! (prometheus.io, "Writing client libraries", process metrics).

use std::fs;

use nix::unistd::{SysconfVar, sysconf};

use crate::exposition::Page;

/// Writes what /proc says of this process; nothing of what can't be read.
pub fn write(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
    if let Some(stat) = Stat::parse(&stat, limit(SysconfVar::CLK_TCK), limit(SysconfVar::PAGE_SIZE)) {
        page.counter("process_cpu_seconds_total", "Processor time, of the program and of the kernel for it.")
            .sample(&[], stat.cpu);
        page.gauge("process_resident_memory_bytes", "Memory that is in use.").sample(&[], stat.resident);
        if let Some(booted) = boot_time(&boot) {
            page.gauge("process_start_time_seconds", "When it was started, in seconds since 1970.")
                .sample(&[], booted + stat.started);
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        page.gauge("process_open_fds", "Open file descriptors.").sample(&[], files.count());
    }
}

fn limit(which: SysconfVar) -> f64 {
    sysconf(which).ok().flatten().unwrap_or(1) as f64
}

/// Of proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    /// Seconds.
    cpu: f64,
    /// Seconds since boot.
    started: f64,
    /// Bytes.
    resident: f64,
}

impl Stat {
    fn parse(text: &str, ticks: f64, page: f64) -> Option<Self> {
        // The name before it may hold anything; the third field comes first.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        Some(Self {
            cpu: (field(14)? + field(15)?) / ticks,
            started: field(22)? / ticks,
            resident: field(24)? * page,
        })
    }
}

/// `btime` of proc_stat(5), in seconds since 1970.
fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 4 0 1000 9999 25 18446744073709551615";
        let expected = Stat { cpu: 2.0, started: 10.0, resident: 102_400.0 };
        assert_eq!(Stat::parse(text, 100.0, 4096.0), Some(expected));
        assert_eq!(Stat::parse("7 (a) S", 100.0, 4096.0), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1_700_000_000.0));
    }

    #[test]
    fn this_process_is_told_of() {
        let mut page = Page::default();
        write(&mut page);
        let text = page.finish();
        for name in ["process_cpu_seconds_total ", "process_resident_memory_bytes ", "process_open_fds "] {
            assert!(text.contains(name), "{name} is not in\n{text}");
        }
    }
}
