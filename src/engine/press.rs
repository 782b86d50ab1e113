//! An engine that is asked by a schedule which leaves it no peace. Main function: [`Worker::press`].

use super::engine_hits::EngineHits;
use super::error::EngineError;
use super::protocol::{NumberedPressed, Reply, Request};
use super::worker::Worker;
use crate::model::{ChunkDigests, PlannedRequest, PressedRequest, PressureEvents};

/// Whether vLLM's own prefix cache serves beside a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnCache {
    /// It serves, too.
    Serves,
    /// Nothing comes from it.
    Unread,
}

/// What an engine showed under pressure.
#[derive(Debug, Clone, PartialEq)]
pub struct Endured {
    /// Each request, in the order of the schedule.
    pub requests: Vec<PressedRequest>,
    /// The KV of each, in the same order; none of one that has no whole piece.
    pub chunks: Vec<Vec<ChunkDigests>>,
    /// What kept the KV from being observed, if anything did.
    pub problem: Option<String>,
    /// What happened.
    pub events: PressureEvents,
    /// Tokens that vLLM counts as served.
    pub hits: EngineHits,
}

impl Worker {
    /// Asks requests by a schedule. `unit` is what the connector stores as a whole, in tokens.
    ///
    /// # Errors
    /// When the worker dies, goes silent or fails, or a request is not told of.
    pub async fn press(
        &mut self,
        schedule: &[PlannedRequest],
        own_cache: OwnCache,
        unit: u32,
    ) -> Result<Endured, EngineError> {
        let prompts = (0..).zip(schedule).map(|(question, planned)| NumberedPressed {
            question,
            token_ids: &planned.token_ids,
            after: planned.after,
            answer_tokens: planned.answer_tokens,
            abort: planned.cut_off,
        });
        let own_cache = own_cache == OwnCache::Serves;
        self.send(&Request::Press { own_cache, unit, prompts: prompts.collect() }).await?;
        let mut requests: Vec<Option<PressedRequest>> = vec![None; schedule.len()];
        let mut chunks: Vec<Vec<ChunkDigests>> = vec![Vec::new(); schedule.len()];
        let place = |number: u32| usize::try_from(number).ok().filter(|&place| place < schedule.len());
        loop {
            match self.receive(self.answer_patience()).await? {
                Reply::Pressed(pressed) => {
                    let free = place(pressed.question).filter(|&place| requests[place].is_none());
                    let Some(free) = free else {
                        return Err(self.garbled(format!("request {} waits for nothing", pressed.question)));
                    };
                    requests[free] = Some(pressed);
                }
                Reply::Digested { question, chunks: digested } => match place(question) {
                    Some(place) if chunks[place].is_empty() => chunks[place] = digested,
                    _ => {
                        let problem = format!("digests came for request {question}, which waits for none");
                        return Err(self.garbled(problem));
                    }
                },
                Reply::Endured { events, counters, digest_problem } => {
                    if let Some(missing) = requests.iter().position(Option::is_none) {
                        return Err(self.garbled(format!("nothing came of request {missing}")));
                    }
                    let problem = self.digest_problem().or(digest_problem);
                    let hits = self.count(EngineHits::read(&counters));
                    let requests = requests.into_iter().flatten().collect();
                    return Ok(Endured { requests, chunks, problem, events, hits });
                }
                other => return Err(self.garbled(format!("{other:?} came instead of `pressed`"))),
            }
        }
    }
}
