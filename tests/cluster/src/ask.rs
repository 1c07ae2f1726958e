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
/// How many requests make a series, and how many more for each pod that is to answer: enough to find each of them, or
/// another one, but once in a hundred thousand times.
const SERIES: (usize, usize) = (12, 10);
/// An answer that needs longer than this is none.
const SLOW: Duration = Duration::from_millis(500);
/// How long to wait for the first answer before asking again: what was sent too early is lost.
const FIRST: Duration = Duration::from_millis(100);
/// After how long a silence no answer is expected any more.
const SILENCE: Duration = Duration::from_millis(150);
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
pub fn eventually<T>(check: impl FnMut() -> Result<T>) -> Result<T> {
    within(PATIENCE, check)
}

/// The same with another patience.
///
/// # Errors
/// When it fails for that long.
pub fn within<T>(patience: Duration, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
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

/// Each of the targets answers, whoever it may be.
///
/// # Errors
/// When it is otherwise for too long.
pub fn answered((who, place): Asker<'_>, targets: &[Target]) -> Result<()> {
    eventually(|| first_answers(place, targets)).with_context(|| format!("from {who}"))
}

fn first_answers(place: &Place, targets: &[Target]) -> Result<()> {
    let load = |protocol, target| Load::new(protocol, target).times(1).giving_up_after(FIRST);
    for (report, (protocol, target)) in all(place, targets, load)?.iter().zip(targets) {
        report.all_answered().with_context(|| format!("{protocol} to {target}"))?;
    }
    Ok(())
}

fn answers_of((who, place): Asker<'_>, targets: &[Target], pods: &[&str]) -> Result<Vec<Report>> {
    let wanted: BTreeSet<&str> = pods.iter().copied().collect();
    let many = u32::try_from(SERIES.0 + SERIES.1 * pods.len())?;
    let series = |protocol, target| {
        let load = Load::new(protocol, target).giving_up_after(SLOW);
        load.times(many).every(Duration::from_millis(1))
    };
    eventually(|| {
        first_answers(place, targets)?;
        let reports = all(place, targets, series)?;
        for (report, (protocol, target)) in reports.iter().zip(targets) {
            let (failures, by) = (report.failures(), report.pods());
            ensure!(
                failures.is_empty(),
                "{protocol} to {target}: of {many} failed {failures:?}, {by:?} answered"
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
pub fn refused(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    fails(asker, targets, AT_ONCE, "refused at once", |failure| failure.kind == FailureKind::Refused)
}

/// No request is answered or refused: packets vanish.
///
/// # Errors
/// When it is otherwise for too long.
pub fn unanswered(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    fails(asker, targets, SILENCE, "without an answer", |failure| failure.kind == FailureKind::TimedOut)
}

/// No request is answered: packets vanish, or the system says at once that there is no way, as it does on a node,
/// where connect() chooses the backend, and a raw socket hears that its packet was dropped on its way out.
///
/// # Errors
/// When it is otherwise for too long.
pub fn kept_out(asker: Asker<'_>, targets: &[Target]) -> Result<()> {
    let ways = [FailureKind::TimedOut, FailureKind::Unreachable];
    fails(asker, targets, SILENCE, "kept out", |failure| {
        ways.contains(&failure.kind) || failure.text.starts_with("No buffer space available")
    })
}

/// Once a request fails as it shall, all do.
fn fails(
    (who, place): Asker<'_>,
    targets: &[Target],
    patience: Duration,
    how: &str,
    fits: impl Fn(&Failure) -> bool,
) -> Result<()> {
    let check = |times| {
        let load = |protocol, target| Load::new(protocol, target).times(times).giving_up_after(patience);
        for (report, (protocol, target)) in all(place, targets, load)?.iter().zip(targets) {
            for outcome in &report.outcomes {
                match outcome {
                    Err(failure) if fits(failure) => {}
                    Err(failure) => bail!("{protocol} to {target}: {failure}, not {how}"),
                    Ok(reply) => bail!("{protocol} to {target}: {} answered, not {how}", reply.answer.pod),
                }
            }
        }
        Ok(())
    };
    eventually(|| check(1)).and_then(|()| check(2)).with_context(|| format!("from {who}"))
}

/// Asks all targets at the same time, each as `load` says, which must end by itself; the reports come in their order.
///
/// # Errors
/// When a client can't be started or does not report.
pub fn all(
    place: &Place,
    targets: &[Target],
    load: impl Fn(Protocol, SocketAddr) -> Load,
) -> Result<Vec<Report>> {
    reports(place, targets.iter().map(|&(protocol, target)| load(protocol, target)))
}

/// Does all loads at the same time, which must end by themselves; the reports come in their order.
///
/// # Errors
/// When a client can't be started or does not report.
pub fn reports(place: &Place, loads: impl IntoIterator<Item = Load>) -> Result<Vec<Report>> {
    let clients = loads.into_iter().map(|load| place.traffic(&load)).collect::<Result<Vec<_>>>()?;
    clients.into_iter().map(Traffic::stop).collect()
}

/// Clients that go on asking while something happens; dropped, they are killed.
#[derive(Default)]
pub struct Lasting(Vec<(String, Traffic)>);

impl Lasting {
    /// Starts one more, which `what` describes.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn begin(&mut self, what: String, place: &Place, load: &Load) -> Result<()> {
        let traffic = place.traffic(load).with_context(|| what.clone())?;
        self.0.push((what, traffic));
        Ok(())
    }

    /// Ends them; returns what each saw.
    ///
    /// # Errors
    /// When one does not report.
    pub fn end(self) -> Result<Vec<(String, Report)>> {
        let end = |(what, traffic): (String, Traffic)| {
            let report = traffic.stop().with_context(|| what.clone())?;
            Ok((what, report))
        };
        self.0.into_iter().map(end).collect()
    }

    /// Ends them; every request of each was answered, by one pod.
    ///
    /// # Errors
    /// When not, or when one made less than `least` requests.
    pub fn were_undisturbed(self, least: usize) -> Result<()> {
        for (what, report) in self.end()? {
            report.all_answered().with_context(|| what.clone())?;
            ensure!(report.pods().len() == 1, "{what}: one flow was answered by {:?}", report.pods());
            ensure!(report.outcomes.len() >= least, "{what}: only {} requests", report.outcomes.len());
        }
        Ok(())
    }
}
