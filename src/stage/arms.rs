//! The arms without a connector. Output: observations as JSON lines, one a question, in the order of asking.

use serde::Serialize;

use super::cut_pass::CutRule;
use super::engine_run::{EngineRun, EngineSetup, EngineSpec, Holds, read_blocks};
use super::files::PassName;
use super::order::slices;
use super::prompts::count_prompts;
use super::rounds::{Pass, Rounds};
use super::{Context, StageError};
use crate::engine::{Capacity, PrefixCache, Round};
use crate::model::HitUnit;

/// vLLM alone, its own prefix caching off. Input: the prompts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Baseline {
    /// The engine.
    pub engine: EngineSpec,
    /// What bounds its rounds, where rounds decide what is computed together. Of one sequence at a time it is nothing that
    /// an observation depends on, and another size of a cache leaves the baseline as it is.
    pub rounds: Option<Capacity>,
}

/// vLLM alone, with its own prefix caching: each round first fills the emptied cache without reading it, which repeats the
/// baseline, then is served from it, which leaves the same tokens to compute as a hit does. Where whole prompts are served all but
/// their last token, so are they here. Then the prefixes are asked that the cut pass asks. Inputs: the prompts, and the baseline where chunks are its blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Control {
    /// The engine.
    pub engine: EngineSpec,
    /// What bounds its rounds, and the size of the chunks that it is served.
    pub capacity: Capacity,
}

impl Baseline {
    pub(crate) const SCHEMA: u32 = 3;

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let run = EngineRun::of(&self.engine, context);
        let total = count_prompts(run.prompts())?;
        let rounds = match self.rounds {
            Some(capacity) => run.plan(capacity)?.rounds,
            None => Round::divide(total, ROUND),
        };
        let rounds = Rounds::of(run.prompts(), &rounds)?;
        let pass = Pass::of(context, PassName::Baseline, total)?;
        rounds
            .share(context.engines, async |number| {
                let mut worker = run.start(EngineSetup::alone("baseline").numbered(number)).await?;
                while let Some(round) = rounds.take().await? {
                    pass.score(&mut worker, &round, &round.prompts, PrefixCache::Read).await?;
                    pass.is_over(&round)?;
                    rounds.is_over(&round);
                }
                Ok(worker.finish().await?)
            })
            .await?;
        pass.finish()
    }
}

/// Questions of a round that only divides work among engines.
const ROUND: usize = 8;

impl Control {
    pub(crate) const SCHEMA: u32 = 5;

    pub(crate) async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        let capacity = match self.capacity.hits.unit {
            HitUnit::Chunk => self.capacity,
            HitUnit::Block => self.capacity.with_blocks_of(read_blocks(context.inputs)?),
        };
        let run = EngineRun::of(&self.engine, context).digesting(capacity);
        let plan = run.plan(capacity)?;
        let (rounds, total) = (Rounds::of(run.prompts(), &plan.rounds)?, plan.expectations.len());
        let repeat = Pass::of(context, PassName::Repeat, total)?;
        let control = Pass::of(context, PassName::Control, total)?;
        let rule = CutRule::new(capacity.chunk_tokens, self.engine.seed);
        let cuts = Pass::of(context, PassName::CutControl, rule.count(&plan))?;
        rounds
            .share(context.engines, async |number| {
                let chunk_tokens = Some(capacity.chunk_tokens);
                let setup = EngineSetup {
                    hit_multiple: chunk_tokens,
                    whole_hits: capacity.hits.serves_whole_prompts(),
                    holds: Some(Holds::of(&plan, capacity)),
                    ..EngineSetup::alone("control")
                };
                let mut worker = run.start(setup.numbered(number)).await?;
                while let Some(round) = rounds.take().await? {
                    repeat.score(&mut worker, &round, &round.prompts, PrefixCache::FillOnly).await?;
                    for slice in slices(&round.prompts, &self.engine) {
                        control.score(&mut worker, &round, &slice, PrefixCache::Read).await?;
                    }
                    let prefixes = rule.cut(&round.prompts);
                    if !prefixes.is_empty() {
                        cuts.score(&mut worker, &round, &prefixes, PrefixCache::Read).await?;
                    }
                    cuts.is_over(&round)?;
                    repeat.is_over(&round)?;
                    control.is_over(&round)?;
                    rounds.is_over(&round);
                }
                Ok(worker.finish().await?)
            })
            .await?;
        repeat.finish()?;
        control.finish()?;
        cuts.finish()
    }
}
