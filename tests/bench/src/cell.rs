//! What is measured: the cells of the table, and the words in which a client worker is told about one.
//!
//! A cell is one kind of load. Run on one path (a *variant*) once, it yields a [`Sample`], from which the
//! metrics of [`Cell::metrics`] follow. Here is nothing but data; [`crate::crr`], [`crate::rr`],
//! [`crate::throughput`] and [`crate::udp`] make the load.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Requests in flight wherever a rate is measured, rather than a latency.
pub(crate) const IN_FLIGHT: usize = 16;

/// Bytes of a request, and of its answer: small, so that packets are counted and not bytes.
pub(crate) const MESSAGE: usize = 64;

/// One kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Cell {
    /// TCP connect, request, response, reset (SO_LINGER 0): no socket stays in TIME_WAIT on either side.
    Crr,
    /// The same with an ordinary close, the client's first: its ports are used again while in TIME_WAIT.
    CrrClose,
    /// Request and response on an open TCP connection, one in flight.
    Rr1,
    /// The same with [`IN_FLIGHT`] connections, one request in flight on each.
    Rr,
    /// One TCP connection, large writes.
    Throughput,
    /// Small UDP datagrams and their answers, [`IN_FLIGHT`] at a time.
    Udp,
}

/// What can be read off a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Quantity {
    /// Operations per second.
    Rate,
    /// Gigabits per second.
    Bits,
    /// Median latency in microseconds.
    Median,
    /// 99th percentile of the latency in microseconds.
    P99,
    /// Processor time of client, server and the kernel's softirqs per operation, in microseconds.
    CpuPerOperation,
}

/// A number of the report: `crr`, `rr_p99`, …; prefixed by a variant it is a name in the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Metric {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it is.
    pub(crate) quantity: Quantity,
}

impl Cell {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Self; 6] =
        [Self::Crr, Self::CrrClose, Self::Rr1, Self::Rr, Self::Throughput, Self::Udp];

    /// What a sample of this cell tells.
    pub(crate) const fn metrics(self) -> &'static [Metric] {
        const fn metric(name: &'static str, quantity: Quantity) -> Metric {
            Metric { name, quantity }
        }
        match self {
            Self::Crr => {
                const { &[metric("crr", Quantity::Rate), metric("crr_cpu_per_op", Quantity::CpuPerOperation)] }
            }
            Self::CrrClose => const { &[metric("crr_close", Quantity::Rate)] },
            Self::Rr1 => {
                const {
                    &[
                        metric("rr1", Quantity::Rate),
                        metric("rr_p50", Quantity::Median),
                        metric("rr_p99", Quantity::P99),
                    ]
                }
            }
            Self::Rr => {
                const { &[metric("rr", Quantity::Rate), metric("rr_cpu_per_op", Quantity::CpuPerOperation)] }
            }
            Self::Throughput => const { &[metric("throughput", Quantity::Bits)] },
            Self::Udp => {
                const { &[metric("udp", Quantity::Rate), metric("udp_cpu_per_op", Quantity::CpuPerOperation)] }
            }
        }
    }
}

impl Quantity {
    /// The unit as it is printed.
    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Rate => "op/s",
            Self::Bits => "Gbit/s",
            Self::Median | Self::P99 | Self::CpuPerOperation => "us",
        }
    }

    /// How much better `value` is than `base`: above 1 is better, whether large or small values are good.
    pub(crate) fn ratio(self, value: f64, base: f64) -> f64 {
        match self {
            Self::Rate | Self::Bits => value / base,
            Self::Median | Self::P99 | Self::CpuPerOperation => base / value,
        }
    }
}

/// Where a client finds the server's four services.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The address that is dialled.
    pub(crate) address: IpAddr,
    /// Port of the TCP server for many connections at once.
    pub(crate) many: u16,
    /// Port of the TCP server for one connection.
    pub(crate) single: u16,
    /// Port of the TCP server that counts what it is sent.
    pub(crate) sink: u16,
    /// Port of the UDP server.
    pub(crate) datagram: u16,
}

impl Target {
    /// A server dialled by its own address, at the ports where [`crate::server`] listens.
    pub(crate) const fn itself(address: IpAddr) -> Self {
        Self { address, many: 7001, single: 7002, sink: 7003, datagram: 7004 }
    }

    /// The socket address that a cell's client dials.
    pub(crate) const fn of(&self, cell: Cell) -> SocketAddr {
        let port = match cell {
            Cell::Crr | Cell::CrrClose | Cell::Rr => self.many,
            Cell::Rr1 => self.single,
            Cell::Throughput => self.sink,
            Cell::Udp => self.datagram,
        };
        SocketAddr::new(self.address, port)
    }
}

/// One run of a cell, as a client worker is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The kind of load.
    pub(crate) cell: Cell,
    /// What to dial.
    pub(crate) target: SocketAddr,
    /// Load before the measurement starts.
    pub(crate) warm_up: Duration,
    /// The measurement.
    pub(crate) measured: Duration,
}

/// What a client saw, warm-up left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Finished operations: transactions, or bytes of a throughput cell.
    pub(crate) operations: u64,
    /// Seconds that they took.
    pub(crate) seconds: f64,
    /// Requests without an answer (UDP).
    pub(crate) lost: u64,
    /// Median latency in nanoseconds; 0 where none was measured.
    pub(crate) p50: f64,
    /// 99th percentile of the latency in nanoseconds; 0 where none was measured.
    pub(crate) p99: f64,
    /// Operations of warm-up and measurement together: what processor time is divided by.
    pub(crate) operations_in_all: u64,
    /// Processor seconds of warm-up and measurement; filled in by [`crate::rounds`].
    pub(crate) cpu_seconds: f64,
}

impl Sample {
    /// The sample's value of a quantity, in its unit.
    pub(crate) fn value(&self, quantity: Quantity) -> f64 {
        match quantity {
            Quantity::Rate => self.operations as f64 / self.seconds,
            Quantity::Bits => self.operations as f64 * 8.0 / self.seconds / 1e9,
            Quantity::Median => self.p50 / 1e3,
            Quantity::P99 => self.p99 / 1e3,
            Quantity::CpuPerOperation => self.cpu_seconds * 1e6 / self.operations_in_all as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_better_for_rates_and_for_latencies() {
        assert_eq!(Quantity::Rate.ratio(30.0, 20.0), 1.5);
        assert_eq!(Quantity::P99.ratio(20.0, 30.0), 1.5);
        assert_eq!(Quantity::CpuPerOperation.ratio(20.0, 30.0), 1.5);
    }

    #[test]
    fn processor_time_is_shared_by_the_warm_ups_operations_too() {
        let sample = Sample { operations: 10, operations_in_all: 20, cpu_seconds: 1e-4, ..Sample::default() };
        assert_eq!(sample.value(Quantity::CpuPerOperation), 5.0);
    }

    #[test]
    fn no_two_metrics_share_a_name() {
        let mut names: Vec<_> = Cell::ALL.iter().flat_map(|cell| cell.metrics()).map(|m| m.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
