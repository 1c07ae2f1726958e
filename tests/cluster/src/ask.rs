//! How requests shall go: answered by these pods, refused at once, or without any answer.
//!
//! A change needs a moment to reach every node. So what is expected may come late, within [`PATIENCE`]; but it must
//! hold for a whole series of requests to each target. All targets are asked at the same time.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::{Failure, FailureKind, Load, Place, Protocol, Report, Traffic};

/// How late what is expected may come.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A series of requests that misses one of two pods once in 10¹², one of three pods once in ten million times.
const SERIES: u32 = 40;
/// After how long a silence no answer is expected any more.
const SILENCE: Duration = Duration::from_millis(250);
/// A refusal that needs longer than this did not come at once.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Whom to ask, and how.
pub type Target = (Protocol, SocketAddr);

/// The targets of some of the protocols: [`Protocol::SOCKETS`] are those for which there are sockets that hooks see.
pub fn of(protocols: &[Protocol], targets: &[Target]) -> Vec<Target> {
    targets.iter().filter(|(protocol, _)| protocols.contains(protocol)).copied().collect()
}

/// Who asks, in words and in place.
pub type Asker<'a> = (&'static str, &'a Place);

/// Tries until the check succeeds, and says how it failed last when that takes too long.
///
/// # Errors
/// When it fails for [`PATIENCE`].
pub fn eventually<T>(mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match check() {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
            Ok(value) => return Ok(value),
        }
    }
}

/// At each of the targets exactly these pods answer, all of them, and no request fails.
///
/// # Errors
/// When it is otherwise for too long.
pub fn answered_by(asker: Asker<'_>, targets: &[Target], pods: &[&str]) -> Result<()> {
    answers_of(asker, targets, pods).map(drop)
}

fn answers_of((who, place): Asker<'_>, targets: &[Target], pods: &[&str]) -> Result<Vec<Report>> {
    let wanted: BTreeSet<&str> = pods.iter().copied().collect();
    let load = |protocol, target| Load::new(protocol, target).giving_up_after(2 * SILENCE);
    let begin = |protocol, target| load(protocol, target).times(1);
    let series = |protocol, target| load(protocol, target).times(SERIES).every(Duration::from_millis(1));
    eventually(|| {
        for (report, (protocol, target)) in all(place, targets, begin)?.iter().zip(targets) {
            let failure = report.failures();
            ensure!(failure.is_empty(), "{protocol} to {target}: {}, no answer of {wanted:?}", failure[0]);
        }
        let reports = all(place, targets, series)?;
        for (report, (protocol, target)) in reports.iter().zip(targets) {
            let (failures, by) = (report.failures(), report.pods());
            ensure!(
                failures.is_empty(),
                "{protocol} to {target}: of {SERIES} failed {failures:?}, {by:?} answered"
            );
            let answering: BTreeSet<&str> = report.pods().into_keys().collect();
            ensure!(answering == wanted, "{protocol} to {target}: {by:?} answered, not {wanted:?}");
        }
        Ok(reports)
    })
    .with_context(|| format!("from {who}"))
}

/// The same, and the pods see every request come from the address of `sources` of its family.
///
/// # Errors
/// When it is otherwise for too long.
pub fn answered_seeing(
    asker: Asker<'_>,
    targets: &[Target],
    pods: &[&str],
    sources: impl Fn(IpAddr) -> Result<IpAddr>,
) -> Result<()> {
    // A change may become effective in the middle of a series.
    eventually(|| {
        for (report, (protocol, target)) in answers_of(asker, targets, pods)?.iter().zip(targets) {
            let (seen, source) = (report.sources(), sources(target.ip())?);
            let right = seen == BTreeSet::from([source]);
            ensure!(right, "{protocol} from {} to {target}: {pods:?} saw {seen:?}, not {source}", asker.0);
        }
        Ok(())
    })
}

/// Every request is refused, and at once: the client need not wait to know that nobody is there.
///
/// # Errors
/// When it is otherwise for too long.
pub fn refused((who, place): Asker<'_>, targets: &[Target]) -> Result<()> {
    let load =
        |times| move |protocol, target| Load::new(protocol, target).times(times).giving_up_after(SILENCE);
    let check = |times| {
        let reports = all(place, targets, load(times))?;
        each_failed(&reports, targets, "refused at once", |failure| {
            failure.kind == FailureKind::Refused && failure.after < AT_ONCE
        })
    };
    eventually(|| check(1)).and_then(|()| check(5)).with_context(|| format!("from {who}"))
}

/// No request is answered or refused: packets vanish.
///
/// # Errors
/// When it is otherwise for too long.
pub fn unanswered(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    fails(asker, targets, "without an answer", |failure| failure.kind == FailureKind::TimedOut)
}

/// No request is answered: packets vanish, or the system says at once that there is no way, as it does on a node,
/// where connect() chooses the backend, and a raw socket hears that its packet was dropped on its way out.
///
/// # Errors
/// When it is otherwise for too long.
pub fn kept_out(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    let ways = [FailureKind::TimedOut, FailureKind::Unreachable];
    fails(asker, targets, "kept out", |failure| {
        ways.contains(&failure.kind) || failure.text.starts_with("No buffer space available")
    })
}

fn fails(
    (who, place): Asker<'_>,
    targets: &[Target],
    how: &str,
    fits: impl Fn(&Failure) -> bool + Copy,
) -> Result<()> {
    let load =
        |times| move |protocol, target| Load::new(protocol, target).times(times).giving_up_after(SILENCE);
    let check = |times| each_failed(&all(place, targets, load(times))?, targets, how, fits);
    eventually(|| check(1)).and_then(|()| check(2)).with_context(|| format!("from {who}"))
}

fn each_failed(
    reports: &[Report],
    targets: &[Target],
    how: &str,
    fits: impl Fn(&Failure) -> bool,
) -> Result<()> {
    for (report, (protocol, target)) in reports.iter().zip(targets) {
        for outcome in &report.outcomes {
            match outcome {
                Err(failure) if fits(failure) => {}
                Err(failure) => bail!("{protocol} to {target}: {failure}, not {how}"),
                Ok(reply) => bail!("{protocol} to {target}: {} answered, not {how}", reply.answer.pod),
            }
        }
    }
    Ok(())
}

/// Asks all targets at the same time, each as `load` says, which must end by itself.
///
/// # Errors
/// When a client can't be started or does not report.
pub fn all(
    place: &Place,
    targets: &[Target],
    load: impl Fn(Protocol, SocketAddr) -> Load,
) -> Result<Vec<Report>> {
    let clients = targets.iter().map(|&(protocol, target)| place.traffic(&load(protocol, target)));
    clients.collect::<Result<Vec<_>>>()?.into_iter().map(Traffic::stop).collect()
}
