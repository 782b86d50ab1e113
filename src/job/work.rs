//! What a job does: one of the stages, with its parameters. Main type: [`Work`].

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest::Digest;
use crate::event::Effort;
use crate::stage::{
    Baseline, Cached, Compare, Context, Control, Cut, EngineSpec, Extract, Faults, Foreign, Inputs, Pressure,
    Prompts, StageError, Turns, about_cuts,
};
use crate::stage_name::StageName;
use crate::store::StageKey;

/// A stage with its parameters: all but the inputs that its output depends on.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Archive to questions.
    Extract(Extract),
    /// Questions to token ids.
    Prompts(Prompts),
    /// One prompt, cut behind each chunk.
    Cut(Cut),
    /// vLLM alone.
    Baseline(Box<Baseline>),
    /// vLLM alone, repeated and served by its own prefix cache.
    Control(Box<Control>),
    /// vLLM with a carrier.
    Cached(Box<Cached>),
    /// What the arms have in common.
    Compare(Box<Compare>),
    /// The same of planted faults.
    Faults(Box<Faults>),
    /// What readers of another identity are served.
    Foreign(Box<Foreign>),
    /// Conversations over a carrier.
    Turns(Box<Turns>),
    /// vLLM with a carrier under pressure.
    Pressure(Box<Pressure>),
}

/// What a key holds.
#[derive(Serialize)]
struct Fields<'a, T> {
    /// Digests of what it is made from, by the stages that made that.
    inputs: BTreeMap<StageName, Digest>,
    parameters: &'a T,
}

impl Work {
    /// The stage that the artifact is of.
    #[must_use]
    pub fn stage(&self) -> StageName {
        match self {
            Self::Extract(_) => StageName::Extract,
            Self::Prompts(_) | Self::Cut(_) => StageName::Prompts,
            Self::Baseline(_) => StageName::Baseline,
            Self::Control(_) => StageName::Control,
            Self::Cached(_) => StageName::Cached,
            Self::Compare(_) => StageName::Compare,
            Self::Faults(_) => StageName::Faults,
            Self::Foreign(_) => StageName::Foreign,
            Self::Turns(_) => StageName::Turns,
            Self::Pressure(_) => StageName::Pressure,
        }
    }

    /// The engines that it starts; none where it starts none.
    fn engine(&self) -> Option<&EngineSpec> {
        match self {
            Self::Extract(_) | Self::Prompts(_) | Self::Cut(_) | Self::Compare(_) => None,
            Self::Baseline(work) => Some(&work.engine),
            Self::Control(work) => Some(&work.engine),
            Self::Cached(work) => Some(&work.engine),
            Self::Faults(work) => Some(&work.engine),
            Self::Foreign(work) => Some(&work.engine),
            Self::Turns(work) => Some(&work.engine),
            Self::Pressure(work) => Some(&work.engine),
        }
    }

    /// Whether it starts engines.
    #[must_use]
    pub fn has_engines(&self) -> bool {
        self.engine().is_some()
    }

    /// What it takes time for, with so many prompts; none where it takes none to speak of.
    #[must_use]
    pub fn effort(&self, prompts: usize) -> Option<Effort> {
        let arm = Effort { engines: 1, computed: prompts, ..Effort::default() };
        let effort = match self {
            Self::Extract(_) | Self::Prompts(_) | Self::Cut(_) | Self::Compare(_) => None,
            Self::Baseline(_) => Some(arm),
            Self::Control(_) => Some(Effort { served: prompts + about_cuts(prompts), ..arm }),
            Self::Cached(work) => Some(work.effort(prompts)),
            Self::Faults(work) => Some(work.effort()),
            Self::Foreign(work) => Some(work.effort()),
            Self::Turns(work) => Some(work.effort()),
            Self::Pressure(work) => Some(work.effort()),
        };
        let ranks = self.engine().map_or(1, |engine| engine.ranks.ranks());
        effort.map(|effort| Effort { further_ranks: effort.engines * further(ranks), ..effort })
    }

    /// The key of its artifact, made from these inputs.
    #[must_use]
    pub fn key(&self, inputs: &Inputs) -> StageKey {
        self.key_of(inputs.digests())
    }

    /// The same from the output digests of the inputs, by the stages that made them.
    #[must_use]
    pub fn key_of(&self, inputs: BTreeMap<StageName, Digest>) -> StageKey {
        let stage = self.stage();
        match self {
            Self::Extract(work) => key(Extract::SCHEMA, stage, inputs, work),
            Self::Prompts(work) => key(Prompts::SCHEMA, stage, inputs, work),
            Self::Cut(work) => key(Cut::SCHEMA, stage, inputs, work),
            Self::Baseline(work) => key(Baseline::SCHEMA, stage, inputs, work),
            Self::Control(work) => key(Control::SCHEMA, stage, inputs, work),
            Self::Cached(work) => key(Cached::SCHEMA, stage, inputs, work),
            Self::Compare(work) => key(Compare::SCHEMA, stage, inputs, work),
            Self::Faults(work) => key(Faults::SCHEMA, stage, inputs, work),
            Self::Foreign(work) => key(Foreign::SCHEMA, stage, inputs, work),
            Self::Turns(work) => key(Turns::SCHEMA, stage, inputs, work),
            Self::Pressure(work) => key(Pressure::SCHEMA, stage, inputs, work),
        }
    }

    /// Makes its output.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn fill(&self, context: &Context<'_>) -> Result<(), StageError> {
        match self {
            Self::Extract(work) => work.fill(context),
            Self::Prompts(work) => work.fill(context),
            Self::Cut(work) => work.fill(context),
            Self::Baseline(work) => work.fill(context).await,
            Self::Control(work) => work.fill(context).await,
            Self::Cached(work) => work.fill(context).await,
            Self::Compare(work) => work.fill(context),
            Self::Faults(work) => work.fill(context).await,
            Self::Foreign(work) => work.fill(context).await,
            Self::Turns(work) => work.fill(context).await,
            Self::Pressure(work) => work.fill(context).await,
        }
    }
}

fn key(
    schema: u32,
    stage: StageName,
    inputs: BTreeMap<StageName, Digest>,
    parameters: &impl Serialize,
) -> StageKey {
    StageKey::new(schema, stage, &Fields { inputs, parameters })
}

/// Ranks besides the first one.
fn further(ranks: u32) -> usize {
    usize::try_from(ranks.saturating_sub(1)).unwrap_or(usize::MAX)
}
