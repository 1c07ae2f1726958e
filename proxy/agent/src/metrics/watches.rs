//! The watches of the API, and its servers.

use fairlead_daemon::exposition::Page;

use super::seconds;
use crate::agent::Agent;

pub(super) fn write(agent: &Agent, page: &mut Page) {
    let watches = agent.watches.states();
    page.gauge("fairlead_watch_connected", "Whether a watch's last answer was a good one.");
    for (kind, state) in &watches {
        page.sample(&[("kind", kind)], u8::from(state.connected));
    }
    page.gauge("fairlead_watch_listed", "Whether a watch's first list is done.");
    for (kind, state) in &watches {
        page.sample(&[("kind", kind)], u8::from(state.listed));
    }
    page.gauge(
        "fairlead_watch_last_heard_timestamp_seconds",
        "When a watch last had a word of the API server, bookmarks included.",
    );
    for (kind, state) in &watches {
        page.sample(&[("kind", kind)], seconds(state.heard));
    }
    page.counter("fairlead_watch_events_total", "Events and listed objects that came by a watch.");
    for (kind, state) in &watches {
        page.sample(&[("kind", kind)], state.events);
    }
    page.counter("fairlead_watch_failures_total", "How often a watch broke.");
    for (kind, state) in &watches {
        page.sample(&[("kind", kind)], state.failures);
    }
    agent.servers.write(page);
}
