//! What was seen under pressure, as every format of the report shows it. Main functions: [`pressure_rows`], [`seed_rows`].

use super::UnderPressure;
use super::words::counted;
use crate::pressure::{Demand, PressureFindings, SeedFindings};

/// Wrong cells that are shown of a seed.
const SHOWN_CELLS: usize = 5;

/// An event, how often it happened, and what that means.
pub(super) struct EventRow {
    pub(super) event: &'static str,
    pub(super) times: String,
    pub(super) remark: String,
    /// Whether it had to happen and did not.
    pub(super) is_missing: bool,
}

/// What one seed's schedule showed.
pub(super) struct SeedRow {
    pub(super) seed: String,
    pub(super) caches: &'static str,
    pub(super) requests: String,
    pub(super) hits: String,
    pub(super) kv: String,
    /// Requests outside their bounds.
    pub(super) bounds: String,
    pub(super) is_harmed: bool,
}

/// Model and route, and of a run in parts which one.
pub(super) fn pressure_name(pressed: &UnderPressure) -> String {
    let part = pressed.shard.map_or_else(String::new, |shard| format!(", shard {shard}"));
    format!("{} over {} under pressure{part}", pressed.model, pressed.route)
}

/// The events that must happen.
pub(super) fn event_rows(findings: &PressureFindings) -> Vec<EventRow> {
    let rows = findings.demands().into_iter().map(|(event, demand)| match demand {
        Demand::Demanded(times) => EventRow {
            event: event.name(),
            times: times.to_string(),
            remark: if times == 0 { "NOT SEEN: proves nothing" } else { "" }.to_owned(),
            is_missing: times == 0,
        },
        Demand::Impossible(reason) => EventRow {
            event: event.name(),
            times: "–".to_owned(),
            remark: format!("not demanded: {reason}"),
            is_missing: false,
        },
    });
    rows.collect()
}

/// The seeds, in order.
pub(super) fn seed_rows(findings: &PressureFindings) -> Vec<SeedRow> {
    findings.seeds.iter().map(seed_row).collect()
}

fn seed_row(seed: &SeedFindings) -> SeedRow {
    let kv = &seed.kv;
    let outside = [(seed.served_beyond, "beyond"), (seed.served_short, "short of")];
    let outside: Vec<String> = outside
        .into_iter()
        .filter(|(requests, _)| *requests > 0)
        .map(|(requests, how)| format!("{} {how} bounds", counted_requests(requests)))
        .collect();
    SeedRow {
        seed: seed.seed.to_string(),
        caches: if seed.own_cache { "connector and vLLM's own" } else { "connector" },
        requests: seed.requests.to_string(),
        hits: format!("{} + {}", seed.hits.connector, seed.hits.own),
        kv: format!("{} of {} served cells right", kv.served.saturating_sub(kv.wrong_cells()), kv.served),
        bounds: if outside.is_empty() { "within bounds".to_owned() } else { outside.join(", ") },
        is_harmed: seed.is_harmed(),
    }
}

fn counted_requests(requests: u32) -> String {
    counted(usize::try_from(requests).unwrap_or(usize::MAX), "request")
}

/// The first wrong cells and requests beyond their bounds, each with its seed.
pub(super) fn offender_lines(findings: &PressureFindings) -> Vec<String> {
    let of_seed = |seed: &SeedFindings| {
        let number = seed.seed;
        let cells = seed.kv.first.iter().take(SHOWN_CELLS);
        let cells = cells.map(|cell| format!("seed {number}, {}", findings.cell_words(cell)));
        let beyond = seed.beyond.iter().take(SHOWN_CELLS).map(|one| {
            let (request, served, at_most) = (one.request, one.served, one.at_most);
            format!("seed {number}, request {request}: {served} tokens served, {at_most} computed before")
        });
        let short = seed.short.iter().take(SHOWN_CELLS).map(|one| {
            let (request, served, at_least) = (one.request, one.served, one.at_least);
            format!("seed {number}, request {request}: {served} tokens served, {at_least} stored")
        });
        cells.chain(beyond).chain(short).collect::<Vec<String>>()
    };
    findings.seeds.iter().flat_map(of_seed).collect()
}
