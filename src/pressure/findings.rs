//! What engines showed under pressure. Main type: [`PressureFindings`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bounds::{Beyond, Short};
use crate::comparison::Provenance;
use crate::model::PressureEvents;

/// What one model over one route showed under pressure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PressureFindings {
    /// Tokens of a piece whose KV is held against what was computed: a block of vLLM's cache.
    pub piece_tokens: u32,
    /// Tokens of what the connector stores as a whole.
    pub stored_tokens: u32,
    /// Why what is stored is never given up for others, where that is so.
    pub never_evicts: Option<String>,
    /// Why the engine has room for all requests, where it has.
    #[serde(default)]
    pub never_preempts: Option<String>,
    /// Why no request is broken off while its KV is loaded, where none is.
    #[serde(default)]
    pub never_aborts_loads: Option<String>,
    /// Whether loads are made to fail on this route, so that nothing it shows is a pass.
    #[serde(default)]
    pub loads_fail: bool,
    /// What each seed's schedule showed, in their order.
    pub seeds: Vec<SeedFindings>,
}

/// What one schedule showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SeedFindings {
    /// Its seed.
    pub seed: u32,
    /// Whether vLLM's own prefix cache served, too.
    pub own_cache: bool,
    /// Requests that were asked.
    pub requests: u32,
    /// What happened.
    pub events: PressureEvents,
    /// Chunks that LMCache's memory gave up for others; none where nothing counts them.
    pub evicted_chunks: Option<u64>,
    /// Chunks that a tier behind a server's memory had found and did not give.
    pub failed_chunks: u64,
    /// Tokens that were served under pressure: without those of the calm requests.
    pub hits: HitsApart,
    /// Whether what was served is a copy of what was computed.
    pub kv: Provenance,
    /// Requests that were served more than anything computed before.
    pub served_beyond: u32,
    /// The first of them.
    pub beyond: Vec<Beyond>,
    /// Requests that were served less than they must be, before there was any pressure.
    pub served_short: u32,
    /// The first of them.
    pub short: Vec<Short>,
}

/// Tokens that were served, by what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HitsApart {
    /// By the connector.
    pub connector: u64,
    /// By vLLM's own prefix cache.
    pub own: u64,
}

/// Something that must happen for a verdict to mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PressureEvent {
    /// A request lost its blocks.
    Preemption,
    /// One that had lost its blocks was served when it was taken up again.
    ResumedLoad,
    /// What was stored was given up for others.
    Eviction,
    /// A request was broken off while it was stored.
    AbortWhileStoring,
    /// A request was broken off while it was loaded.
    AbortWhileLoading,
    /// One request was stored while another one was loaded.
    OverlappingStore,
    /// The connector served.
    ConnectorHit,
    /// vLLM's own prefix cache served beside it.
    OwnHit,
}

/// Whether something had to happen, and how often it did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Demand {
    /// It had to.
    Demanded(u64),
    /// It cannot, for this reason.
    Impossible(String),
}

impl PressureEvent {
    const ALL: [Self; 8] = [
        Self::Preemption,
        Self::ResumedLoad,
        Self::Eviction,
        Self::AbortWhileStoring,
        Self::AbortWhileLoading,
        Self::OverlappingStore,
        Self::ConnectorHit,
        Self::OwnHit,
    ];

    /// Its plural, for tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Preemption => "preemptions",
            Self::ResumedLoad => "resumed loads",
            Self::Eviction => "evicted chunks",
            Self::AbortWhileStoring => "aborts while storing",
            Self::AbortWhileLoading => "aborts while loading",
            Self::OverlappingStore => "stores beside loads",
            Self::ConnectorHit => "tokens from the connector",
            Self::OwnHit => "tokens from vLLM's own cache",
        }
    }
}

impl PressureFindings {
    /// What happened over all seeds.
    #[must_use]
    pub fn events(&self) -> PressureEvents {
        self.seeds.iter().fold(PressureEvents::default(), |sum, seed| sum.plus(seed.events))
    }

    /// Each event, and how often it happened.
    #[must_use]
    pub fn demands(&self) -> Vec<(PressureEvent, Demand)> {
        PressureEvent::ALL.into_iter().map(|event| (event, self.demand(event))).collect()
    }

    fn demand(&self, event: PressureEvent) -> Demand {
        if let (PressureEvent::Preemption | PressureEvent::ResumedLoad, Some(reason)) =
            (event, &self.never_preempts)
        {
            return Demand::Impossible(reason.clone());
        }
        if let (PressureEvent::AbortWhileLoading, Some(reason)) = (event, &self.never_aborts_loads) {
            return Demand::Impossible(reason.clone());
        }
        let events = self.events();
        let sum = |of: fn(&SeedFindings) -> u64| self.seeds.iter().map(of).sum();
        Demand::Demanded(match event {
            PressureEvent::Preemption => events.preemptions,
            PressureEvent::ResumedLoad => events.resumed_loads,
            PressureEvent::Eviction => match &self.never_evicts {
                Some(reason) => return Demand::Impossible(reason.clone()),
                None => sum(|seed| seed.evicted_chunks.unwrap_or(0)),
            },
            PressureEvent::AbortWhileStoring => events.aborted_storing,
            PressureEvent::AbortWhileLoading if events.loads > 0 && !events.asynchronous_loads => {
                return Demand::Impossible("each load is part of a step of the engine".to_owned());
            }
            PressureEvent::AbortWhileLoading => events.aborted_loading,
            PressureEvent::OverlappingStore => events.overlaps,
            PressureEvent::ConnectorHit => sum(|seed| seed.hits.connector),
            PressureEvent::OwnHit if !self.seeds.iter().any(|seed| seed.own_cache) => {
                return Demand::Impossible("it is asked under even seeds".to_owned());
            }
            PressureEvent::OwnHit => sum(|seed| seed.hits.own),
        })
    }

    /// What had to happen and did not.
    #[must_use]
    pub fn missing(&self) -> Vec<PressureEvent> {
        let missing =
            |(event, demand): (PressureEvent, Demand)| (demand == Demand::Demanded(0)).then_some(event);
        self.demands().into_iter().filter_map(missing).collect()
    }
}

impl SeedFindings {
    /// Whether it shows harm.
    #[must_use]
    pub fn is_harmed(&self) -> bool {
        self.kv.wrong_cells() + self.kv.changed > 0 || self.served_beyond > 0
    }
}
