//! What the jobs of one model are made of: their parameters, out of the request, the model and the environment. Main type:
//! [`ArmsOf`].

use std::collections::BTreeSet;

use super::Request;
use crate::assets::Model;
use crate::carrier::{Carrier, RouteError, Topology, find_carrier};
use crate::comparison::Fidelity;
use crate::digest::Digest;
use crate::engine::Capacity;
use crate::engine::environment::Environment;
use crate::foreign::{Keeper, Own, ReaderGroup, readers};
use crate::job::Work;
use crate::machine::{Device, DeviceKind};
use crate::model::{HitRule, HitUnit, KvDtype, KvShape, Route};
use crate::options::StoringOptions;
use crate::stage::{
    Baseline, Cached, Compare, Control, EngineSpec, FOREIGN_PROMPTS, Faults, Foreign, Pressure, Prompts,
    Room, Shards, StageError, Turns, batching, capacity, kv_dtype, prompt_limits,
};
use crate::suite::{LmcacheSettings, PressureSettings};

/// Tokens of a chunk in conversations: so few that the last prompts have more than 128 of them.
const TURN_CHUNK: u32 = 32;
/// Tokens that each turn of a conversation generates: two chunks of them, at least one of which is of the answer alone.
const TURN_ANSWER: u32 = 64;
/// Tokens of a block that MLA's kernels for GPUs take.
const MLA_BLOCK: u32 = 64;
const CONVERSATIONS: usize = 2;
const TURNS: usize = 16;
/// The feature of a processor without which vLLM computes MLA by a reference.
const AMX: &str = "amx_tile";
/// Tokens of a block of that reference.
const REFERENCE_BLOCK: u32 = 16;

/// The prompts of a model with this tokenizer.
pub(super) fn prompts(request: &Request, tokenizer: Digest) -> Work {
    let suite = &request.suite;
    Work::Prompts(Prompts {
        subjects: suite.subjects,
        questions: suite.questions,
        template: suite.prompt.template.clone(),
        limits: prompt_limits(suite),
        tokenizer,
        excerpt: request.excerpt.clone(),
        shard: request.shard,
    })
}

/// What all jobs of one model with engines have in common.
pub(super) struct ArmsOf<'a> {
    request: &'a Request,
    model: &'a str,
    /// The engine of the arms without a connector.
    alone: EngineSpec,
    /// The engine of those with one.
    connected: EngineSpec,
    shape: KvShape,
    capacity: Capacity,
    kv_dtype: Option<KvDtype>,
    keeps_states: bool,
}

impl<'a> ArmsOf<'a> {
    pub(super) fn new(
        request: &'a Request,
        model: &'a Model,
        environment: &'a Environment,
    ) -> Result<Self, StageError> {
        let (suite, device) = (&request.suite, &request.device);
        Ok(Self {
            request,
            model: model.name(),
            alone: EngineSpec::of(suite, model, device, environment.identity_of_baseline()),
            connected: EngineSpec::of(suite, model, device, environment.identity().clone()),
            shape: model.files().kv_shape()?,
            capacity: capacity(suite, model.settings(), model.files())?,
            kv_dtype: kv_dtype(suite, model.settings()),
            keeps_states: model.files().state().is_some(),
        })
    }

    pub(super) fn baseline(&self) -> Work {
        let together = self.request.suite.engine.max_num_seqs > 1;
        let rounds = together.then_some(self.capacity);
        Work::Baseline(Box::new(Baseline { engine: self.alone.clone(), rounds }))
    }

    /// The control of routes with this rule for controls.
    pub(super) fn control(&self, hits: HitRule) -> Work {
        let capacity = Capacity { hits, ..self.capacity };
        Work::Control(Box::new(Control { engine: self.alone.clone(), capacity }))
    }

    fn capacity_on(&self, carrier: &dyn Carrier) -> Capacity {
        Capacity { hits: self.served_by(carrier.hits()), ..self.capacity }
    }

    /// What a rule comes to with this model: a state is kept at the ends of units alone, so the last token cannot be taken off one.
    pub(super) fn served_by(&self, hits: HitRule) -> HitRule {
        if self.keeps_states { HitRule { asked_less: hits.asked_less.max(1), ..hits } } else { hits }
    }

    pub(super) fn cached(&self, route: Route) -> Result<Work, RouteError> {
        let carrier = find_carrier(route)?;
        let engine = if carrier.needs_lmcache() { &self.connected } else { &self.alone };
        Ok(Work::Cached(Box::new(Cached {
            engine: engine.clone(),
            route,
            lmcache: self.request.suite.lmcache,
            capacity: self.capacity_on(carrier),
            carrier: carrier.content(),
            added_packages: carrier.added_packages(&engine.environment),
            early_stop_among: self.request.stops_early().then(|| self.request.early_stop_among()),
        })))
    }

    /// Engines that may share the rounds on a route.
    pub(super) fn engines(&self, route: Route) -> Result<usize, RouteError> {
        Ok(engines_of(find_carrier(route)?, self.request.engines_of_a_model()))
    }

    pub(super) fn compare(&self, route: Route, tokenizer: Digest) -> Result<Work, RouteError> {
        let suite = &self.request.suite;
        Ok(Work::Compare(Box::new(Compare {
            route,
            options: suite.lmcache.options,
            capacity: self.capacity_on(find_carrier(route)?),
            batching: batching(suite.engine.max_num_seqs),
            shards: Shards::of(&self.connected, self.shape),
            tokenizer,
            criteria: suite.criteria,
            comparisons: suite.comparisons(),
            shard: self.request.shard,
        })))
    }

    pub(super) fn faults(&self, route: Route) -> Result<Work, StageError> {
        let (suite, ranks) = (&self.request.suite, self.connected.ranks);
        Ok(Work::Faults(Box::new(Faults {
            engine: self.connected.clone(),
            route,
            lmcache: LmcacheSettings { slow: false, ..suite.lmcache },
            capacity: self.capacity,
            criteria: suite.criteria,
            settings: suite.faults,
            variants: Faults::variants(self.model, route, ranks, self.shape, suite.faults)?,
        })))
    }

    /// Conversations over a route, with words for the label: answers not stored and stored. None where vLLM's blocks are what a
    /// carrier serves, where loads fail, and where one engine receives from another.
    pub(super) fn turns(&self, route: Route) -> Result<Vec<(&'static str, Work)>, RouteError> {
        let (suite, carrier) = (&self.request.suite, find_carrier(route)?);
        let options = suite.lmcache.options;
        let has_no_arithmetic = options.fidelity() == Fidelity::Lossy && options.stored_as().is_none();
        let is_apart = carrier.hits().unit == HitUnit::Block
            || carrier.topology() == Topology::ProducerAndConsumer
            || carrier.loads_fail()
            || has_no_arithmetic;
        if is_apart || !carrier.needs_lmcache() {
            return Ok(Vec::new());
        }
        let is_on_gpu = self.request.device.kind() == DeviceKind::Cuda;
        let chunk_tokens =
            if is_on_gpu && matches!(self.shape, KvShape::Mla { .. }) { MLA_BLOCK } else { TURN_CHUNK };
        let work = |save_decode_cache| {
            let options = StoringOptions { save_decode_cache, ..suite.lmcache.options };
            let lmcache = LmcacheSettings { chunk_tokens, options, slow: false, ..suite.lmcache };
            let capacity = Capacity { chunk_tokens, ..self.capacity };
            let mut engine = self.connected.clone();
            engine.arguments.insert("block_size".to_owned(), chunk_tokens.into());
            let engine = EngineSpec { max_tokens: TURN_ANSWER, digest_chunk_tokens: chunk_tokens, ..engine };
            Work::Turns(Box::new(Turns {
                engine,
                route,
                lmcache,
                capacity,
                conversations: CONVERSATIONS,
                turns: TURNS,
                restarts: carrier.proof().is_of_a_server(),
                max_model_len: suite.engine.max_model_len,
                tolerance: suite.criteria.near_tie_gap,
                carrier: carrier.content(),
                added_packages: carrier.added_packages(&self.connected.environment),
            }))
        };
        Ok(vec![(", turns", work(false)), (", turns with answers stored", work(true))])
    }

    /// The engine and LMCache with too little room for what is asked.
    pub(super) fn pressure(&self, settings: PressureSettings, route: Route) -> Result<Work, RouteError> {
        let carrier = find_carrier(route)?;
        let max_model_len = settings.max_model_len.min(self.request.suite.engine.max_model_len);
        let settings = self.in_blocks_here(PressureSettings { max_model_len, ..settings });
        let engine = if carrier.needs_lmcache() { &self.connected } else { &self.alone };
        let engine = engine.under_pressure(settings, room_of(carrier));
        let capacity = self.capacity_on(carrier);
        let chunk_tokens = settings.chunk_tokens;
        let lmcache = LmcacheSettings { chunk_tokens, slow: false, ..self.request.suite.lmcache };
        Ok(Work::Pressure(Box::new(Pressure {
            route,
            lmcache,
            capacity: Capacity { chunk_tokens: settings.chunk_tokens, ..capacity },
            carrier: carrier.content(),
            added_packages: carrier.added_packages(&engine.environment),
            shards: Shards::of(&engine, self.shape),
            settings,
            engine,
        })))
    }

    /// The same room in the blocks that attention takes here: on a processor without AMX vLLM's MLA takes blocks of 16 tokens, whatever it
    /// is asked for, and some of its kernels for GPUs take no smaller ones than 64.
    fn in_blocks_here(&self, settings: PressureSettings) -> PressureSettings {
        let block_tokens = match &self.request.device {
            _ if !matches!(self.shape, KvShape::Mla { .. }) => return settings,
            Device::Cpu { features, .. } if !features.contains(AMX) => REFERENCE_BLOCK,
            Device::Cuda { .. } if settings.chunk_tokens.is_multiple_of(MLA_BLOCK) => {
                settings.block_tokens.next_multiple_of(MLA_BLOCK)
            }
            Device::Cpu { .. } | Device::Cuda { .. } => return settings,
        };
        let tokens = settings.blocks.saturating_mul(settings.block_tokens);
        PressureSettings { block_tokens, blocks: tokens.div_ceil(block_tokens), ..settings }
    }

    /// KV of another identity, kept so and read by these groups of readers; none where they have nobody who could ask.
    pub(super) fn foreign(&self, groups: &BTreeSet<ReaderGroup>, keeper: Keeper) -> Option<Work> {
        let suite = &self.request.suite;
        let own = Own {
            chunk_tokens: suite.lmcache.chunk_tokens,
            dtype: suite.engine.dtype,
            kv_dtype: self.kv_dtype,
            ranks: self.connected.ranks.tensor,
        };
        let readers = readers(groups, own, keeper);
        if readers.is_empty() {
            return None;
        }
        Some(Work::Foreign(Box::new(Foreign {
            engine: self.connected.clone(),
            lmcache: LmcacheSettings { slow: false, ..suite.lmcache },
            capacity: self.capacity,
            prompts: FOREIGN_PROMPTS,
            readers,
            salts: self.request.foreign_salts,
        })))
    }
}

/// What a carrier bears of an engine under pressure.
fn room_of(carrier: &dyn Carrier) -> Room {
    Room { in_pieces: carrier.takes_pieces(), for_all_sequences: carrier.refuses_resumption().is_some() }
}

/// How many of so many engines may share a carrier's rounds.
fn engines_of(carrier: &dyn Carrier, most: usize) -> usize {
    match carrier.topology() {
        // The folder, ports and memory of a described connector are there once.
        Topology::SameEngine if carrier.connector_class().is_some() => 1,
        Topology::SameEngine => most,
        Topology::AnotherEngine | Topology::ProducerAndConsumer => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_share_what_has_a_side_for_each() {
        for (route, engines) in [("mp", 4), ("in-process+disk", 4), ("offload", 1), ("mp+fs", 1), ("nixl", 1)]
        {
            assert_eq!(engines_of(find_carrier(Route::named(route)).unwrap(), 4), engines, "{route}");
        }
    }
}
