//! The load pass, and what is known of both passes with LMCache. Main types: [`LoadPass`], [`Passes`].

use std::cell::{Cell, RefCell};

use serde::{Deserialize, Serialize};

use super::order::shuffle;
use super::rounds::{DealtRound, Pass};
use super::watch::Watch;
use super::{Context, StageError};
use crate::comparison::EarlyStop;
use crate::engine::{PrefixCache, ServerCounters, Worker};
use crate::model::Route;

/// Questions of a load pass between two looks at the evidence for harm.
const SLICE: usize = 32;

/// What is known of the two passes besides the observations.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
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
}

/// The LMCache server's counts over each pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PassCounters {
    /// Over the store pass.
    pub store: ServerCounters,
    /// Over the load pass.
    pub load: ServerCounters,
}

impl PassCounters {
    pub(super) fn count(&mut self, store: ServerCounters, load: ServerCounters) {
        self.store = self.store.plus(store);
        self.load = self.load.plus(load);
    }
}

/// A load pass under way.
pub(super) struct LoadPass<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) route: Route,
    pub(super) total: usize,
    /// Of the order in which a round is asked.
    pub(super) seed: u64,
    /// Questions that are computed together.
    pub(super) batch: usize,
    pub(super) watch: RefCell<Option<Watch>>,
    pub(super) pass: Pass<'a>,
    /// Why it ends before the last question, if it does.
    pub(super) end: Cell<Option<End>>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// More right answers turned wrong than chance allows.
    Harmed(EarlyStop),
    /// Nothing was served in the first round.
    Unserved,
}

impl LoadPass<'_> {
    /// Loads one round, unless the pass ends within it.
    pub(super) async fn load(&self, worker: &mut Worker, round: &DealtRound<'_>) -> Result<(), StageError> {
        let (events, model) = (&self.context.desk.events, self.context.model_name());
        let mut hit_tokens = 0;
        for slice in shuffle(&round.prompts, self.seed).chunks(SLICE * self.batch) {
            // Another engine may have found the end.
            if self.end.get().is_some() {
                return Ok(());
            }
            let observations = self.pass.score(worker, round, slice, PrefixCache::Read).await?;
            hit_tokens += observations.iter().map(|one| u64::from(one.cached_tokens)).sum::<u64>();
            let stop = self.watch.borrow_mut().as_mut().and_then(|watch| watch.observe(&observations));
            if let Some(stop) = stop.filter(|_| self.end.get().is_none()) {
                self.end.set(Some(End::Harmed(stop)));
                events.warn(format!(
                    "{model} over {}: {} of {} answers turned wrong; harm is beyond doubt, and the rest is not asked",
                    self.route, stop.harms, stop.pairs
                ));
            }
        }
        let asked = round.prompts.len();
        if round.number == 0 && hit_tokens == 0 && asked < self.total && self.end.get().is_none() {
            self.end.set(Some(End::Unserved));
            events.warn(format!(
                "{model} over {}: LMCache served nothing for the first {asked} questions; the rest is not asked",
                self.route
            ));
        }
        self.pass.is_over(round)
    }

    /// What is known of it and of the store pass, in which so many questions were asked.
    pub(super) fn finish(self, asked: usize, server: Option<PassCounters>) -> Result<Passes, StageError> {
        self.pass.finish()?;
        let (ended_unserved, early_stop) = match self.end.get() {
            None => (false, None),
            Some(End::Unserved) => (true, None),
            Some(End::Harmed(stop)) => (false, Some(stop)),
        };
        Ok(Passes { asked, ended_unserved, early_stop, server })
    }
}
