//! The load pass, and what is known of the passes with LMCache. Main types: [`LoadPass`], [`Passes`].

use std::cell::{Cell, RefCell};

use serde::{Deserialize, Serialize};

use super::order::slices;
use super::rounds::{DealtRound, Pass};
use super::{Context, EngineSpec, StageError};
use crate::comparison::EarlyStop;
use crate::dataset::Prompt;
use crate::engine::{EngineHits, Expectation, Handing, Plan, PrefixCache, ServerCounters, Worker};
use crate::model::{Route, SpoiltProbe};

/// What is known of the passes besides the observations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Passes {
    /// Questions that were asked in both passes.
    pub asked: usize,
    /// Whether it ended after the first round, since that round's load pass was served nothing at all.
    pub ended_unserved: bool,
    /// Why the load pass ended before the last question, if harm was beyond doubt.
    pub early_stop: Option<EarlyStop>,
    /// The server's counts, where the route has a server.
    pub server: Option<PassCounters>,
    /// What vLLM's own counters tell.
    pub hits: EngineHitsOfPasses,
    /// What a request with spoilt KV showed.
    pub spoilt: SpoiltProbe,
    /// Why no prefixes of prompts were asked, if none were.
    pub cuts_left_out: Option<String>,
}

/// Tokens that vLLM counts as served, over each pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EngineHitsOfPasses {
    /// Over the store pass.
    pub store: EngineHits,
    /// Over the load pass.
    pub load: EngineHits,
    /// Over the cut pass.
    pub cut: EngineHits,
}

/// The LMCache server's counts over each pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PassCounters {
    /// Over the store pass.
    pub store: ServerCounters,
    /// Over the load pass.
    pub load: ServerCounters,
    /// Over the cut pass.
    pub cut: ServerCounters,
}

impl PassCounters {
    pub(super) fn count(&mut self, store: ServerCounters, load: ServerCounters) {
        self.store = self.store.plus(store);
        self.load = self.load.plus(load);
    }

    pub(super) fn count_cut(&mut self, cut: ServerCounters) {
        self.cut = self.cut.plus(cut);
    }
}

/// A load pass under way.
pub(super) struct LoadPass<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) engine: &'a EngineSpec,
    pub(super) route: Route,
    pub(super) plan: &'a Plan,
    pub(super) pass: Pass<'a>,
    /// Tokens of a chunk.
    pub(super) chunk_tokens: u32,
    /// Why it ends before the last question, if it does.
    pub(super) end: Cell<Option<End>>,
    /// What a request with spoilt KV showed, once it was asked.
    pub(super) spoilt: RefCell<Option<SpoiltProbe>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// More right answers turned wrong than chance allows.
    Harmed {
        /// Within this round.
        round: usize,
        /// The evidence.
        stop: EarlyStop,
    },
    /// Nothing was served in the first round.
    Unserved,
}

impl LoadPass<'_> {
    /// Loads one round, unless the pass ends within it.
    pub(super) async fn load(&self, worker: &mut Worker, round: &DealtRound<'_>) -> Result<(), StageError> {
        self.load_left(worker, round, async |_| Ok(None)).await
    }

    /// The same, where `leave` has another engine leave the KV of some prompts before each is asked, and says where.
    pub(super) async fn load_left(
        &self,
        worker: &mut Worker,
        round: &DealtRound<'_>,
        mut leave: impl AsyncFnMut(&[Prompt]) -> Result<Option<Vec<serde_json::Value>>, StageError>,
    ) -> Result<(), StageError> {
        let (events, model) = (&self.context.desk.events, self.context.model_name());
        let mut hit_tokens = 0;
        for slice in slices(&round.prompts, self.engine) {
            // Another engine may have found the end.
            if self.end.get().is_some() {
                return Ok(());
            }
            let left = leave(&slice).await?;
            let handing = left.as_deref().map_or(Handing::None, Handing::From);
            let how = (PrefixCache::Read, handing);
            let observations = self.pass.score_handing(worker, round, &slice, how).await?;
            hit_tokens += observations.iter().map(|one| u64::from(one.cached_tokens)).sum::<u64>();
            self.end_on_harm();
        }
        let asked = round.prompts.len();
        let all = self.plan.expectations.len();
        if round.number == 0 && hit_tokens == 0 && asked < all && self.end.get().is_none() {
            self.end.set(Some(End::Unserved));
            events.warn(format!(
                "{model} over {}: the cache served nothing for the first {asked} questions; the rest is not asked",
                self.route
            ));
        }
        self.pass.is_over(round)?;
        // Answers of later rounds, by other engines, may have waited for this one.
        self.end_on_harm();
        Ok(())
    }

    /// Behind the first round, whose counts are taken by now: asks one of its questions again with a chunk of what it is served
    /// at zero, so that it is seen whether answers feel their KV. It is the last whole chunk, which the narrowest window
    /// reaches.
    pub(super) async fn spoil(&self, worker: &mut Worker, round: &DealtRound<'_>) -> Result<(), StageError> {
        self.spoil_left(worker, round, async |_| Ok(Vec::new())).await
    }

    /// The same, where `leave` has another engine leave the KV of some prompts, and says where.
    pub(super) async fn spoil_left(
        &self,
        worker: &mut Worker,
        round: &DealtRound<'_>,
        mut leave: impl AsyncFnMut(&[Prompt]) -> Result<Vec<serde_json::Value>, StageError>,
    ) -> Result<(), StageError> {
        if round.number > 0 || self.end.get().is_some() {
            return Ok(());
        }
        // The first round's prompts are the first of the plan.
        let mut asked = round.prompts.iter().zip(&self.plan.expectations);
        let served = |expected: &Expectation| (expected.load / self.chunk_tokens).checked_sub(1);
        let found = asked.find_map(|(prompt, expected)| Some((prompt, served(expected)?)));
        let probe = match found {
            Some((prompt, chunk)) => {
                let left = leave(&[prompt.clone(), prompt.clone(), prompt.clone()]).await?;
                worker.spoil(prompt, chunk, &left).await?
            }
            None => SpoiltProbe::NotAsked {
                reason:
                    "No prompt of the first round is served a whole chunk that it does not compute again."
                        .to_owned(),
            },
        };
        self.spoilt.replace(Some(probe));
        Ok(())
    }

    fn end_on_harm(&self) {
        let Some((round, stop)) = self.pass.harm().filter(|_| self.end.get().is_none()) else { return };
        self.end.set(Some(End::Harmed { round, stop }));
        self.context.desk.events.warn(format!(
            "{} over {}: {} of {} answers turned wrong; harm is beyond doubt, and the rest is not asked",
            self.context.model_name(),
            self.route,
            stop.harms,
            stop.pairs
        ));
    }

    /// What is known of it and of the store pass, in which so many questions were asked. After harm only the rounds up to it
    /// count: how many more were under way depends on the number of engines.
    pub(super) fn finish(
        self,
        asked: usize,
        server: Option<&PassCounters>,
        store_hits: EngineHits,
    ) -> Result<Passes, StageError> {
        let hits =
            EngineHitsOfPasses { store: store_hits, load: self.pass.hits(), cut: EngineHits::default() };
        self.pass.finish()?;
        let (ended_unserved, early_stop, asked) = match self.end.get() {
            None => (false, None, asked),
            Some(End::Unserved) => (true, None, asked),
            Some(End::Harmed { round, stop }) => {
                let rounds = &self.plan.rounds[..=round];
                (false, Some(stop), rounds.iter().map(|round| round.prompts).sum())
            }
        };
        let reason = "The load pass ended before a request was asked with spoilt KV.".to_owned();
        let spoilt = self.spoilt.into_inner().unwrap_or(SpoiltProbe::NotAsked { reason });
        Ok(Passes {
            asked,
            ended_unserved,
            early_stop,
            server: server.copied(),
            hits,
            spoilt,
            cuts_left_out: None,
        })
    }
}
