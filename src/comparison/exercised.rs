//! Rung 0: whether `LMCache` served what it must, request by request. Main type: [`Exercised`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::Observation;

use super::arm_name::Pass;
use super::criteria::NAMED_OFFENDERS;
use super::evidence::{
    Bound, Case, CutEvidence, EngineEvidence, ServerCounters, ServerEvidence, ServingTier, SourceHits,
};

/// What the passes with `LMCache` were served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exercised {
    /// What it amounts to.
    pub service: Service,
    /// The first pass; its prediction is an upper limit.
    pub store: PassHits,
    /// The second pass; its prediction is exact.
    pub load: PassHits,
    /// Prefixes of prompts behind the second pass; there were none before there was this field.
    #[serde(default = "CutHits::not_asked")]
    pub cut: CutHits,
    /// Whether the server's own counters tell the same, where there is a server.
    pub server: Option<ServerAgreement>,
    /// Tokens that vLLM's own counters say were served, where these prove the service.
    #[serde(default)]
    pub external: Option<ExternalHits>,
    /// What came of loads that failed, where they were made to, or where several requests asked for a chunk at a time.
    #[serde(default)]
    pub failed: Option<FailedLoads>,
    /// The first requests that were not served as predicted, in the order of the questions.
    pub offenders: Vec<Offender>,
}

/// Loads that failed in the load pass, and what was computed instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FailedLoads {
    /// Chunks that the tier behind the server's memory had and did not give, each rank's shard counted; where there is no
    /// such count, none.
    pub loads: Option<u64>,
    /// Tokens that were stored and computed again: what was not loaded, and what follows it.
    pub recomputed_tokens: u64,
    /// Chunks that the tier was not asked for, since another request was just loading them.
    #[serde(default)]
    pub contended: u64,
}

impl FailedLoads {
    /// Both counts, for people.
    #[must_use]
    pub fn words(&self) -> String {
        let loads = match (self.contended, self.loads) {
            (0, None) => "loads failed".to_owned(),
            (0, Some(loads)) => format!("{loads} loads failed"),
            (contended, _) => format!("{contended} chunks were just being loaded for another request"),
        };
        format!("{loads}; {} tokens that were stored were computed again", self.recomputed_tokens)
    }
}

/// The ways in which a run can have been served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Every request as predicted, and all counters agree.
    AsPredicted,
    /// No token came from the cache in the load pass.
    NothingServed,
    /// A request was served more than any earlier request had stored: the cache claims KV that it cannot have.
    OverServed,
    /// A request was served less than was stored for it.
    UnderServed,
    /// vLLM's and `LMCache`'s counts of what was served differ.
    CountersDisagree,
    /// It was served from another tier than the route's, or by vLLM's own prefix cache.
    WrongTier,
    /// Loads failed, as they were made to: less was served than was stored, and the rest was computed.
    LoadsFailed,
    /// Loads were made to fail, and none did.
    NothingFailed,
    /// Requests asked for a chunk that another one was just loading from the tier behind the memory, were served less for it, and
    /// computed the rest: the server counts as many of these.
    Contended,
}

impl Service {
    /// Whether the cache was used as the route wants it.
    #[must_use]
    pub fn is_as_it_must_be(self) -> bool {
        matches!(self, Self::AsPredicted | Self::LoadsFailed | Self::Contended)
    }
}

/// What one pass was served, as vLLM reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PassHits {
    /// Number of requests.
    pub requests: u32,
    /// Sum of the predictions, tokens.
    pub predicted_tokens: u64,
    /// Sum of what was served, tokens.
    pub cached_tokens: u64,
    /// Requests that were served less than predicted; always 0 for the store pass, whose prediction is a limit.
    pub under_served: u32,
    /// Requests that were served more than predicted.
    pub over_served: u32,
    /// How often a request lost its blocks for lack of room and was taken up again.
    #[serde(default)]
    pub preemptions: u32,
    /// Sum of what such requests were served again, tokens; `cached_tokens` and the predictions are of the first time.
    #[serde(default)]
    pub served_again_tokens: u64,
}

/// What prefixes of stored prompts were served, as vLLM reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CutHits {
    /// They were asked; the prediction is exact.
    Asked(PassHits),
    /// None were.
    LeftOut {
        /// Why, in words.
        reason: String,
    },
}

impl CutHits {
    /// Of a comparison from before there was a cut pass.
    fn not_asked() -> Self {
        Self::LeftOut { reason: "no prefixes of prompts were asked then".to_owned() }
    }

    /// What those that were asked were served.
    #[must_use]
    pub fn hits(&self) -> PassHits {
        match self {
            Self::Asked(hits) => *hits,
            Self::LeftOut { .. } => PassHits::default(),
        }
    }
}

/// A request that was not served as predicted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Offender {
    /// Which question.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// Predicted tokens.
    pub predicted: u32,
    /// Served tokens.
    pub cached: u32,
}

/// vLLM's count of served tokens beside the server's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerAgreement {
    /// In the store pass.
    pub store: HitTotals,
    /// In the load pass.
    pub load: HitTotals,
    /// In the cut pass, where prefixes were asked; it was not held before there was this field.
    #[serde(default)]
    pub cut: Option<HitTotals>,
    /// What the server had to write and read, shard by shard, if known.
    pub shards: Option<ShardCounts>,
    /// The tier that served the load pass, where it matters.
    pub tier: Option<TierAgreement>,
}

/// Tokens that vLLM's counter `vllm:external_prefix_cache_hits` says its connector served, and what that of its own prefix cache says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalHits {
    /// In the store pass.
    pub store: u64,
    /// In the load pass.
    pub load: u64,
    /// What vLLM's own prefix cache served in both passes, by `vllm:prefix_cache_hits`: nothing, where the connector is what is
    /// tested.
    #[serde(default)]
    pub own: u64,
    /// What of the load pass came from the place that the route is of, where it is of one that vLLM names.
    #[serde(default)]
    pub source: Option<SourceHits>,
}

impl ExternalHits {
    fn new(engine: &EngineEvidence) -> Self {
        let EngineEvidence { external: [store, load], own, source } = engine;
        Self { store: *store, load: *load, own: own.iter().sum(), source: source.clone() }
    }

    /// Whether all came from where it had to.
    fn holds(&self) -> bool {
        self.own == 0 && self.source.as_ref().is_none_or(|source| source.tokens >= source.at_least)
    }

    /// What came from elsewhere, for people.
    #[must_use]
    pub fn wrong_words(&self) -> String {
        match &self.source {
            Some(SourceHits { name, at_least, tokens }) if self.own == 0 => format!(
                "at least {at_least} tokens were to come from what vLLM calls `{name}`; it counts {tokens} from there"
            ),
            _ => format!("vLLM's own prefix cache served {} tokens", self.own),
        }
    }
}

/// The tier that had to serve the load pass beside what the server counted of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TierAgreement {
    /// `memory`, or LMCache's name of the tier behind another server's memory: `fs`, `resp`, `p2p`.
    pub name: String,
    /// Tokens that had to come from behind the memory, at least; none where the memory serves.
    pub second_tier_at_least: Option<u64>,
    /// Tokens that came from behind the memory.
    pub second_tier_tokens: u64,
    /// Loads that the tier finished, told by its name; those of any tier where the memory serves.
    pub second_tier_loads: u64,
}

impl TierAgreement {
    fn new(tier: ServingTier, load: ServerCounters) -> Self {
        let (name, second_tier_at_least) = match tier {
            ServingTier::Memory => ("memory".to_owned(), None),
            ServingTier::Second { name, at_least } => (name, Some(at_least)),
        };
        Self {
            name,
            second_tier_at_least,
            second_tier_tokens: load.second_tier_tokens,
            second_tier_loads: load.second_tier_loads,
        }
    }

    /// Whether the right tier served.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.holds_but_for(0)
    }

    /// Whether the right tier served, but for so many tokens that nothing served.
    fn holds_but_for(&self, missing: u64) -> bool {
        match self.second_tier_at_least {
            None => self.second_tier_tokens == 0 && self.second_tier_loads == 0,
            Some(at_least) => self.second_tier_tokens + missing >= at_least && self.second_tier_loads > 0,
        }
    }
}

/// Shards that the server had to write and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardCounts {
    /// Shards that a chunk is written in.
    pub written_shards: u32,
    /// Shards that are read to serve a chunk: one for each rank.
    pub read_shards: u32,
    /// How the server's counts must relate to the next two.
    pub bound: Bound,
    /// In the store pass.
    pub written: u64,
    /// How many more may be written: chunks that generated tokens complete (LMCache up to 0.5.5 writes them, 0.5.6 does not),
    /// and what was copied from the tier behind the memory for requests that the store pass serves.
    #[serde(default)]
    pub written_again_at_most: u64,
    /// In the load pass, for what vLLM says that it was served.
    pub read: u64,
    /// In the cut pass, likewise.
    #[serde(default)]
    pub read_for_cuts: u64,
}

/// Totals of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HitTotals {
    /// Tokens served, as vLLM reports them: to each request the first time that it is taken up.
    pub engine_tokens: u64,
    /// Tokens served again to requests that had been preempted: they are looked up once more.
    #[serde(default)]
    pub served_again_tokens: u64,
    /// Tokens found, as the server counts them.
    pub server_tokens: u64,
    /// Tokens looked up, as the server counts them.
    pub server_requested_tokens: u64,
    /// How often a request was served whole: vLLM computes the last token again and counts one less than the server may.
    pub whole_prompts: u64,
    /// Chunks that the server wrote, shards counted.
    pub chunks_written: u64,
    /// Chunks that the server read, shards counted.
    pub chunks_read: u64,
}

impl HitTotals {
    fn new(hits: PassHits, whole_prompts: u64, counted: ServerCounters) -> Self {
        Self {
            engine_tokens: hits.cached_tokens,
            served_again_tokens: hits.served_again_tokens,
            server_tokens: counted.hit_tokens,
            server_requested_tokens: counted.requested_tokens,
            whole_prompts,
            chunks_written: counted.chunks_written,
            chunks_read: counted.chunks_read,
        }
    }

    fn disagreement(&self, pass: &str) -> Option<String> {
        let (first, again) = (self.engine_tokens, self.served_again_tokens);
        let least = first + again;
        let agree = (least..=least + self.whole_prompts).contains(&self.server_tokens);
        let again = if again == 0 {
            String::new()
        } else {
            format!(" and {again} again to requests that were preempted")
        };
        (!agree)
            .then(|| format!("{pass}: vLLM says {first} tokens{again}, the server {}", self.server_tokens))
    }
}

impl ServerAgreement {
    /// Whether both count the same hits, and every shard of what was stored and hit was written and read.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.disagreements().is_empty()
    }

    /// In words, each count that does not agree with the others.
    pub(super) fn disagreements(&self) -> Vec<String> {
        let loading = self.of_reading("load pass", self.load, |shards| shards.read);
        let cutting = self.cut.map(|cut| self.of_reading("cut pass", cut, |shards| shards.read_for_cuts));
        self.of_storing().into_iter().chain(loading).chain(cutting.unwrap_or_default()).collect()
    }

    /// Those of the store pass alone.
    fn of_storing(&self) -> Vec<String> {
        let tokens = self.store.disagreement("store pass");
        let shards = self.shards.and_then(|shards| {
            let most = shards.written + shards.written_again_at_most;
            shards.disagreement("store pass", [shards.written, most], "written", self.store.chunks_written)
        });
        tokens.into_iter().chain(shards).collect()
    }

    /// Those of a pass that is served.
    fn of_reading(&self, pass: &str, totals: HitTotals, read: impl Fn(ShardCounts) -> u64) -> Vec<String> {
        let shards = self.shards.and_then(|shards| {
            let read = read(shards);
            // Of a prompt that is served whole, the server may leave the last chunk alone or not.
            let most = read + totals.whole_prompts * u64::from(shards.read_shards);
            shards.disagreement(pass, [read, most], "read", totals.chunks_read)
        });
        totals.disagreement(pass).into_iter().chain(shards).collect()
    }
}

impl ShardCounts {
    fn disagreement(&self, pass: &str, [least, most]: [u64; 2], how: &str, counted: u64) -> Option<String> {
        let agree = (least..=most).contains(&counted) || (self.bound == Bound::AtLeast && counted > most);
        let wanted = if least == most { least.to_string() } else { format!("{least} to {most}") };
        (!agree).then(|| format!("{pass}: {wanted} chunks had to be {how}, the server counts {counted}"))
    }
}

/// Whole chunks that a request was served, each time that it was taken up.
fn chunks_served(seen: &Observation, chunk_tokens: u32) -> u64 {
    let times = std::iter::once(seen.cached_tokens).chain(seen.served_again.iter().copied());
    times.map(|tokens| u64::from(tokens / chunk_tokens)).sum()
}

/// How often a request was served whole. Taken up again, a prompt has grown by what was generated.
fn whole_times(seen: &Observation, chunk_tokens: u32) -> u64 {
    let again = seen.served_again.iter().filter(|&&tokens| (tokens + 1).is_multiple_of(chunk_tokens));
    u64::from(seen.cached_tokens + 1 == seen.prompt_tokens) + again.count() as u64
}

/// Holds every request of all passes against its prediction.
pub(super) fn check_service(
    cases: &[Case<'_>],
    cut: &CutEvidence,
    server: Option<&ServerEvidence>,
    engine: Option<&EngineEvidence>,
    loads_fail: bool,
) -> Exercised {
    let mut offenders = Vec::new();
    let mut hits = [PassHits::default(); 2];
    let mut whole_prompts = [0_u64; 2];
    let chunk_tokens = server.and_then(|server| server.sharding).map_or(1, |rule| rule.chunk_tokens.max(1));
    let (mut load_chunks, mut completed_chunks) = (0, 0);
    for case in cases {
        let expected = case.asked.expected;
        let seen = &case.load.observation;
        completed_chunks += completed(&case.store.observation, expected.prompt_tokens, chunk_tokens);
        load_chunks += chunks_served(seen, chunk_tokens);
        let store = (Pass::Store, &case.store.observation, expected.store_at_most);
        let load = (Pass::Load, seen, expected.load);
        for (pass, seen, predicted) in [store, load] {
            let cached = seen.cached_tokens;
            let offends = hits[pass as usize].add(seen, predicted, pass);
            whole_prompts[pass as usize] += whole_times(seen, chunk_tokens);
            if offends && offenders.len() < NAMED_OFFENDERS {
                offenders.push(Offender { question: case.asked.id.clone(), pass, predicted, cached });
            }
        }
    }
    let asked_cuts = cut.asked();
    let cut = count_cuts(cut, &mut offenders);
    let cut_hits = cut.hits();
    let whole_cuts = asked_cuts.iter().map(|cut| whole_times(&cut.observation, chunk_tokens)).sum();
    let cut_chunks = asked_cuts.iter().map(|cut| chunks_served(&cut.observation, chunk_tokens)).sum::<u64>();
    let [store, load] = hits;
    let counted_failures = server.map(|server| server.load.failed_loads);
    // Each rank that reads a chunk counts it.
    let readers =
        server.and_then(|server| server.sharding).map_or(1, |rule| u64::from(rule.read_shards.max(1)));
    let [contended, contended_cut] =
        server.map_or([0; 2], |server| [server.load, server.cut].map(|counted| counted.contended / readers));
    let server_of_cuts = server.map(|server| server.cut);
    let totals =
        |pass: Pass, counted| HitTotals::new(hits[pass as usize], whole_prompts[pass as usize], counted);
    let server = server.map(|server| ServerAgreement {
        store: totals(Pass::Store, server.store),
        load: totals(Pass::Load, server.load),
        cut: (cut_hits.requests > 0).then(|| HitTotals::new(cut_hits, whole_cuts, server.cut)),
        tier: server.tier.clone().map(|tier| TierAgreement::new(tier, server.load)),
        shards: server.sharding.map(|rule| ShardCounts {
            written_shards: rule.written_shards,
            read_shards: rule.read_shards,
            bound: rule.bound,
            written: rule.stored_chunks * u64::from(rule.written_shards),
            written_again_at_most: completed_chunks * u64::from(rule.written_shards) + server.store.given,
            read: load_chunks * u64::from(rule.read_shards),
            read_for_cuts: cut_chunks * u64::from(rule.read_shards),
        }),
    });
    let external = engine.map(ExternalHits::new);
    let counters_agree = engine
        .is_none_or(|counted| agree_with_requests(counted.external, [store, load], whole_prompts))
        && server.as_ref().is_none_or(ServerAgreement::holds);
    let service = if load.cached_tokens == 0 {
        Service::NothingServed
    } else if engine.is_some_and(|counted| counted.own != [0; 2]) {
        // Whatever else is off is nothing that the connector claimed.
        Service::WrongTier
    } else if store.over_served + load.over_served + cut_hits.over_served > 0 {
        Service::OverServed
    } else if loads_fail {
        let tier = server.as_ref().and_then(|server| server.tier.as_ref());
        if load.under_served == 0 {
            Service::NothingFailed
        } else if counted_failures.is_none_or(|failures| failures == 0) {
            // It was not for loads that failed.
            Service::UnderServed
        } else if tier.is_some_and(|tier| tier.second_tier_loads == 0) {
            Service::WrongTier
        } else if server.as_ref().is_some_and(|server| !server.of_storing().is_empty()) {
            // What was never stored is no load that failed.
            Service::CountersDisagree
        } else {
            Service::LoadsFailed
        }
    } else if cut_hits.under_served > 0 && !meets_excuse(cut_hits, contended_cut, server_of_cuts) {
        Service::UnderServed
    } else if load.under_served > 0 {
        let met = Met { chunks: contended, failed_loads: counted_failures, counters_agree };
        if met.excuses(load, server.as_ref(), external.as_ref()) {
            Service::Contended
        } else {
            Service::UnderServed
        }
    } else if external.as_ref().is_some_and(|external| !external.holds()) {
        Service::WrongTier
    } else if !counters_agree {
        Service::CountersDisagree
    } else if server.as_ref().and_then(|server| server.tier.as_ref()).is_some_and(|tier| !tier.holds()) {
        Service::WrongTier
    } else {
        Service::AsPredicted
    };
    let failed = (loads_fail || service == Service::Contended).then(|| FailedLoads {
        loads: counted_failures,
        contended: if loads_fail { 0 } else { contended },
        recomputed_tokens: load.predicted_tokens.saturating_sub(load.cached_tokens),
    });
    Exercised { service, store, load, cut, server, external, failed, offenders }
}

impl PassHits {
    /// Takes one request; whether it was not served as predicted.
    fn add(&mut self, seen: &Observation, predicted: u32, pass: Pass) -> bool {
        let cached = seen.cached_tokens;
        let under = pass != Pass::Store && cached < predicted;
        let over = cached > predicted;
        self.requests += 1;
        self.predicted_tokens += u64::from(predicted);
        self.cached_tokens += u64::from(cached);
        self.under_served += u32::from(under);
        self.over_served += u32::from(over);
        self.preemptions += seen.preemptions;
        self.served_again_tokens += seen.served_again.iter().copied().map(u64::from).sum::<u64>();
        under || over
    }
}

/// Whether prefixes were served less since another request was just loading the same chunk: so many chunks were counted, no load
/// failed, and most prefixes were served in full.
fn meets_excuse(cuts: PassHits, contended: u64, counted: Option<ServerCounters>) -> bool {
    contended >= u64::from(cuts.under_served)
        && counted.is_none_or(|counted| counted.failed_loads == 0)
        && cuts.under_served.saturating_mul(2) <= cuts.requests
}

/// Holds every prefix against its prediction.
fn count_cuts(cut: &CutEvidence, offenders: &mut Vec<Offender>) -> CutHits {
    let asked = match cut {
        CutEvidence::Asked(asked) => asked,
        CutEvidence::LeftOut { reason } => return CutHits::LeftOut { reason: reason.clone() },
    };
    if asked.is_empty() {
        let reason = "no prompt that was asked has a chunk that a shorter one could be served".to_owned();
        return CutHits::LeftOut { reason };
    }
    let mut hits = PassHits::default();
    for cut in asked {
        let (seen, pass, predicted) = (&cut.observation, Pass::Cut, cut.expected);
        if hits.add(seen, predicted, pass) && offenders.len() < NAMED_OFFENDERS {
            let (question, cached) = (seen.question.clone(), seen.cached_tokens);
            offenders.push(Offender { question, pass, predicted, cached });
        }
    }
    CutHits::Asked(hits)
}

/// Chunks that generated tokens have completed, behind the prompt's own. The KV of the last token is never computed.
fn completed(seen: &Observation, prompt_tokens: u32, chunk_tokens: u32) -> u64 {
    let generated = u32::try_from(seen.steps.len().saturating_sub(1)).unwrap_or(u32::MAX);
    u64::from(prompt_tokens.saturating_add(generated) / chunk_tokens - prompt_tokens / chunk_tokens)
}

/// What the load pass met of chunks that another request was just loading, and what else was counted.
struct Met {
    /// Such chunks.
    chunks: u64,
    /// Chunks that the tier had and did not give.
    failed_loads: Option<u64>,
    /// Whether vLLM's and the server's counts agree.
    counters_agree: bool,
}

impl Met {
    /// Whether all that was served less was so for them: each request that was served less met one, most met none, and all else is
    /// as predicted.
    fn excuses(
        &self,
        load: PassHits,
        server: Option<&ServerAgreement>,
        external: Option<&ExternalHits>,
    ) -> bool {
        let tier = server.and_then(|server| server.tier.as_ref());
        let missing = load.predicted_tokens.saturating_sub(load.cached_tokens);
        self.chunks >= u64::from(load.under_served)
            && load.under_served * 2 <= load.requests
            && self.counters_agree
            && self.failed_loads == Some(0)
            && external.is_none_or(ExternalHits::holds)
            && tier.is_none_or(|tier| tier.holds_but_for(missing))
    }
}

/// Whether vLLM's counter of what its connector served says the same as its requests, in both passes. Of a prompt that was
/// served whole the counter may count the last token, which is computed again.
fn agree_with_requests(counted: [u64; 2], hits: [PassHits; 2], whole_prompts: [u64; 2]) -> bool {
    let of_passes = counted.into_iter().zip(hits).zip(whole_prompts);
    let mut agreements = of_passes
        .map(|((counted, hits), whole)| (hits.cached_tokens..=hits.cached_tokens + whole).contains(&counted));
    agreements.all(|agree| agree)
}
