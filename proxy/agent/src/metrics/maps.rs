//! The kernel's tables, and what the programs counted.

use fairlead_daemon::exposition::Page;

use crate::agent::{Agent, lock};

pub(super) fn write(agent: &Agent, page: &mut Page) {
    page.counter("fairlead_drops_total", "Packets dropped or refused, by reason.");
    for (reason, count) in agent.drops() {
        page.sample(&[("reason", &reason)], count);
    }
    page.counter("fairlead_packets_total", "Packets that were not dropped, by what happened to them.");
    for (what, count) in agent.packets() {
        page.sample(&[("verdict", &what)], count);
    }
    let maps = agent.maps();
    page.gauge("fairlead_map_capacity", "Entries that a map has room for.");
    for map in &maps {
        page.sample(&[("map", &map.size.name)], map.size.capacity);
    }
    page.gauge("fairlead_map_wanted_capacity", "Entries that options ask a map to have room for.");
    for map in &maps {
        page.sample(&[("map", &map.size.name)], map.size.wanted);
    }
    page.gauge("fairlead_map_entries", "Entries that a map holds.");
    for map in &maps {
        if let Some(entries) = map.entries {
            page.sample(&[("map", &map.size.name)], entries);
        }
    }
    let progress = agent.progress();
    page.counter("fairlead_map_writes_total", "Writes to the maps of Services, by their end.")
        .sample(&[("result", "done")], progress.writes)
        .sample(&[("result", "failed")], progress.failed_writes);
    flows(agent, page);
}

fn flows(agent: &Agent, page: &mut Page) {
    let sweeps = lock(&agent.sweeps).clone();
    page.gauge("fairlead_flow_table_capacity", "Connections that the flow table has room for.")
        .sample(&[], sweeps.places);
    page.gauge("fairlead_flow_table_connections", "Live connections through Services, at the last sweep.");
    for ((protocol, state), count) in &sweeps.census.connections {
        page.sample(&[("protocol", protocol), ("state", state)], count);
    }
    page.gauge(
        "fairlead_flow_table_pressure_ratio",
        "The part of the flow table that live connections take.",
    )
    .sample(&[], sweeps.pressure());
    page.counter("fairlead_flow_table_swept_total", "Entries of ended connections that sweeps removed.")
        .sample(&[], sweeps.removed);
    page.histogram("fairlead_flow_table_sweep_seconds", "How long sweeps took.", &sweeps.durations);
}
