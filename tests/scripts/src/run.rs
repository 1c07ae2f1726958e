//! Running a script, as it stands and disturbed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fairlead_core::dataplane::{FaultyMaps, MemoryMaps};
use fairlead_core::decide::{Outcome, decide};
use fairlead_core::reconcile::{Capacity, Reconciler};

use crate::script::{Event, Script, Step};

/// More reconciles than any script needs, even with every third write failing.
const PATIENCE: usize = 200;

/// Runs the script as it stands.
///
/// # Errors
/// At the first step whose outcome is not the expected one.
pub fn in_order(script: &Script) -> Result<()> {
    let mut run = Run::new(script, 0, 0);
    for (number, step) in script.steps.iter().enumerate() {
        for event in &step.events {
            run.feed(event);
        }
        run.settle()?;
        run.expect(step, |_| true).with_context(|| format!("step {}", number + 1))?;
        if run.reconciler.pending().next().is_none() {
            run.expect_restart_to_change_nothing().with_context(|| format!("step {}", number + 1))?;
        }
    }
    Ok(())
}

/// Runs the script with events shuffled and repeated, reconciles in between, writes that fail and restarts
/// of the proxy, all as `seed` decides.
///
/// Which backends linger depends on which ones were ever in use, and so on the order: that is not compared.
///
/// # Errors
/// At the first step whose outcome is not the expected one.
pub fn disturbed(script: &Script, seed: u64) -> Result<()> {
    let mut run = Run::new(script, seed, 250);
    for (number, step) in script.steps.iter().enumerate() {
        let mut events: Vec<&Event> = step.events.iter().collect();
        for index in (1..events.len()).rev() {
            events.swap(index, run.random(index + 1));
        }
        for index in 0..events.len() {
            run.feed(events[index]);
            if run.random(3) == 0 {
                run.feed(events[run.pick(index + 1)]);
            }
            match run.random(4) {
                0 => run.reconcile(),
                1 => run.restart()?,
                _ => {}
            }
        }
        run.settle()?;
        run.expect(step, |line| !line.starts_with("lingering"))
            .with_context(|| format!("step {}", number + 1))?;
        run.expect_restart_to_change_nothing().with_context(|| format!("step {}", number + 1))?;
    }
    Ok(())
}

/// A script under way.
struct Run<'a> {
    script: &'a Script,
    reconciler: Reconciler,
    maps: FaultyMaps<MemoryMaps>,
    now: Instant,
    /// What the API holds: the last event of each object, in the order of their first.
    fed: Vec<Event>,
    state: u64,
    picked: u64,
}

impl<'a> Run<'a> {
    fn new(script: &'a Script, seed: u64, failures_per_mille: u32) -> Self {
        let memory = script.frontends.map_or_else(MemoryMaps::default, MemoryMaps::with_room_for);
        let mut reconciler = fresh(script);
        reconciler.set_synced();
        Self {
            script,
            reconciler,
            maps: FaultyMaps::new(memory, seed, failures_per_mille),
            now: Instant::now(),
            fed: Vec::new(),
            state: seed.wrapping_mul(2).wrapping_add(1),
            picked: 0,
        }
    }

    fn random(&mut self, below: usize) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.picked = self.state >> 33;
        self.picked as usize % below
    }

    /// The last random number, below another bound.
    fn pick(&self, below: usize) -> usize {
        self.picked as usize % below
    }

    fn feed(&mut self, event: &Event) {
        event.feed(self.reconciler.index_mut());
        self.fed.push(event.clone());
    }

    fn reconcile(&mut self) {
        self.reconciler.reconcile(self.now, &mut self.maps);
    }

    /// Reconciles until nothing is pending, or nothing more can be done.
    fn settle(&mut self) -> Result<()> {
        self.reconcile();
        for _ in 0..PATIENCE {
            let Some(deadline) = self.reconciler.next_deadline() else { return Ok(()) };
            self.now = self.now.max(deadline) + Duration::from_millis(1);
            self.reconcile();
        }
        ensure!(
            self.script.fixed_order,
            "still pending: {:?}",
            self.reconciler.pending().collect::<Vec<_>>()
        );
        Ok(())
    }

    /// The proxy dies, and another one starts on the same maps.
    fn restart(&mut self) -> Result<()> {
        self.reconciler = fresh(self.script);
        self.reconciler.adopt(&self.maps)?;
        for event in &self.fed {
            event.feed(self.reconciler.index_mut());
        }
        self.reconciler.reconcile(self.now, &mut self.maps);
        self.reconciler.set_synced();
        self.reconcile();
        Ok(())
    }

    /// Another proxy that starts on a copy of these maps finds them as it would have them.
    fn expect_restart_to_change_nothing(&self) -> Result<()> {
        let before = &self.maps.inner;
        let mut other = fresh(self.script);
        other.adopt(before)?;
        for event in &self.fed {
            event.feed(other.index_mut());
        }
        other.set_synced();
        let mut after = before.clone();
        other.reconcile(self.now, &mut after);
        ensure!(
            after.writes == before.writes,
            "a restart wrote {} times; before:\n{}{:?}\nafter:\n{}{:?}",
            after.writes - before.writes,
            before.dump(),
            before.lingering(),
            after.dump(),
            after.lingering()
        );
        Ok(())
    }

    fn expect(&self, step: &Step, compared: impl Fn(&str) -> bool) -> Result<()> {
        self.expect_flows(step)?;
        let Some(expected) = &step.expected else { return Ok(()) };
        let mut lines: Vec<String> = self.maps.inner.dump().lines().map(str::to_owned).collect();
        if self.script.shows_ranges {
            lines.extend(self.maps.inner.cidrs().iter().map(|range| format!("range {range}")));
        }
        lines.extend(self.maps.inner.lingering().iter().map(|label| format!("lingering {label}")));
        let checks = self.reconciler.health_checks().into_iter();
        lines.extend(checks.map(|check| {
            format!("health {} {}: {} local endpoints", check.port, check.service, check.local_endpoints)
        }));
        let mut problems: Vec<String> =
            self.reconciler.problems().iter().map(|problem| format!("problem {problem}")).collect();
        problems.sort();
        lines.extend(problems);
        lines.extend(self.reconciler.pending().map(|(name, error)| format!("pending {name}: {error}")));
        let expected: Vec<&String> = expected.iter().filter(|line| compared(line)).collect();
        let actual: Vec<&String> = lines.iter().filter(|line| compared(line)).collect();
        ensure!(actual == expected, "expected:\n{}\n\nbut got:\n{}", join(&expected), join(&actual));
        Ok(())
    }

    fn expect_flows(&self, step: &Step) -> Result<()> {
        let node = self.reconciler.index().node().map(|node| node.addresses.clone()).unwrap_or_default();
        for expected in &step.flows {
            let outcome = decide(&self.maps.inner, &node, &expected.flow);
            let text = outcome.to_string();
            ensure!(text == expected.outcome, "flow {:?}: {text}", expected.line);
            if expected.kube_proxy_masquerades {
                let is_plain = |choices: &[fairlead_core::decide::Choice]| {
                    choices.iter().all(|choice| !choice.masquerade)
                };
                let differs = matches!(&outcome, Outcome::Forward(choices) if is_plain(choices));
                ensure!(differs, "flow {:?}: kube-proxy does not differ", expected.line);
            }
        }
        Ok(())
    }
}

fn fresh(script: &Script) -> Reconciler {
    let capacity = Capacity { slots: script.slots, backends: script.backends };
    let mut reconciler = Reconciler::new(script.node.as_str(), capacity, script.settings.clone());
    reconciler.index_mut().set_local_addresses(script.local_addresses.clone());
    reconciler
}

fn join(lines: &[&String]) -> String {
    lines.iter().map(|line| line.as_str()).collect::<Vec<_>>().join("\n")
}
