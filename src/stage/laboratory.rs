//! Plants one fault after the other and has each load pass judged. Main type: [`Laboratory`].

use std::cell::Cell;
use std::collections::BTreeSet;

use super::StageError;
use super::answer::read_answer;
use super::compare::counters;
use super::planting_ground::Ground;
use super::planting_stack::Started;
use crate::comparison::{
    Arm, ArmName, Criteria, Evidence, KvEvidence, ServerEvidence, WrongWhen, compare, find_wrong_cells,
};
use crate::dataset::{Prompt, QuestionId, Tokenizer};
use crate::engine::{ChangedCell, PrefixCache, ServerCounters, TimingFault};
use crate::fault::{Damage, Flip, Located, Operator, PlantedCell, Reading, Tier, Trial, Variant};
use crate::model::{KvRecord, Observation};

/// What stays the same from one variant to the next.
pub(super) struct Laboratory<'a> {
    pub(super) criteria: &'a Criteria,
    pub(super) prompts: &'a [Prompt],
    /// Tokens of a chunk.
    pub(super) chunk_tokens: usize,
    /// The places of single bits, in turns.
    pub(super) flips: Vec<Vec<Flip>>,
    /// With the store pass in place of a load pass.
    pub(super) evidence: Evidence,
    pub(super) tokenizer: Tokenizer,
    /// Whether an answer was no number since this was looked at.
    pub(super) saw_no_number: Cell<bool>,
}

/// Why a fault of timing could not be planted, in words.
pub(super) struct NotPlanted(pub(super) String);

/// What a load pass gave.
struct Answers {
    loaded: Vec<Observation>,
    counted: ServerCounters,
    kv: Vec<KvRecord>,
}

impl Laboratory<'_> {
    /// Plants a variant, asks, judges, and puts back what was stored.
    pub(super) async fn attempt(
        &self,
        stack: &mut Started,
        ground: &mut Ground,
        variant: &Variant,
    ) -> Result<Result<Trial, NotPlanted>, StageError> {
        match variant.operator {
            Operator::FlipPlaces => self.attempt_flips(stack, ground, variant).await.map(Ok),
            Operator::ComeLate => self.attempt_late(stack, ground, variant).await,
            Operator::ReuseBlocks { others } => self.attempt_reuse(stack, ground, variant, others).await,
            _ => {
                let damage = ground.plant(variant)?;
                stack.worker.misread(variant.operator.misreading());
                let answers = self.ask(stack, variant.tier).await?;
                stack.worker.misread(None);
                ground.restore().await?;
                self.judge(variant, &damage, answers, Vec::new()).map(Ok)
            }
        }
    }

    /// Flips the sampled bits in turns.
    async fn attempt_flips(
        &self,
        stack: &mut Started,
        ground: &mut Ground,
        variant: &Variant,
    ) -> Result<Trial, StageError> {
        let mut turns = Vec::new();
        for flips in &self.flips {
            let damage = ground.plant_flips(flips)?;
            let answers = self.ask(stack, variant.tier).await?;
            ground.restore().await?;
            turns.push(self.judge(variant, &damage, answers, Vec::new())?);
        }
        Ok(Trial::joined(&turns).expect("a model has a place to flip a bit at"))
    }

    /// Has the engine read chunks before they are there.
    async fn attempt_late(
        &self,
        stack: &mut Started,
        ground: &Ground,
        variant: &Variant,
    ) -> Result<Result<Trial, NotPlanted>, StageError> {
        let (chunks, layers) = ground.spots(variant);
        let fault = TimingFault::Late {
            chunks: chunks.iter().map(|(prompt, chunk)| (small(*prompt), small(*chunk))).collect(),
            layers: layers.map(small).collect(),
        };
        if let Some(problem) = stack.worker.plant(&fault).await? {
            return Ok(Err(NotPlanted(problem)));
        }
        let answers = self.ask(stack, variant.tier).await?;
        let damage = self.end_fault(stack).await?;
        if damage.changed_bits == 0 {
            return Ok(Err(NotPlanted("the same bytes lay in the blocks before".to_owned())));
        }
        self.judge(variant, &damage, answers, Vec::new()).map(Ok)
    }

    /// Has everything stored once more, from blocks that other requests have written into, and loads that.
    async fn attempt_reuse(
        &self,
        stack: &mut Started,
        ground: &mut Ground,
        variant: &Variant,
        others: usize,
    ) -> Result<Result<Trial, NotPlanted>, StageError> {
        if let Some(problem) = stack.worker.plant(&TimingFault::Reused).await? {
            return Ok(Err(NotPlanted(problem)));
        }
        ground.empty()?;
        let stored = self.ask(stack, variant.tier).await?;
        stack.worker.score(&self.fillers(others), PrefixCache::Read, || {}).await?;
        let mut damage = self.end_fault(stack).await?;
        damage.cells = ground.read_by(&damage.cells.certain, &self.computed_chunks(&stored.kv));
        let is_filled = ground.is_filled().await?;
        if damage.changed_bits == 0 {
            ground.restore().await?;
            return Ok(Err(NotPlanted("no other request took the blocks".to_owned())));
        }
        if !is_filled {
            ground.restore().await?;
            return Ok(Err(NotPlanted("what was held back did not arrive in the second tier".to_owned())));
        }
        let answers = self.ask(stack, variant.tier).await?;
        ground.restore().await?;
        self.judge(variant, &damage, answers, stored.kv).map(Ok)
    }

    /// The chunks that requests computed: places of prompts, and in them.
    fn computed_chunks(&self, records: &[KvRecord]) -> BTreeSet<(usize, usize)> {
        let place = |asked: &QuestionId| self.prompts.iter().position(|prompt| prompt.question == *asked);
        let mut computed = BTreeSet::new();
        for record in records {
            if let KvRecord::Request { question, chunks } = record
                && let Some(prompt) = place(question)
            {
                let own = chunks.iter().filter(|chunk| !chunk.served);
                computed.extend(own.map(|chunk| (prompt, size(chunk.chunk))));
            }
        }
        computed
    }

    /// So many prompts, at most, of a little more than a chunk that nobody has asked, to write into the blocks that others had.
    fn fillers(&self, count: usize) -> Vec<Prompt> {
        let filler = |prompt: &Prompt| {
            let backwards = prompt.token_ids.iter().rev().copied();
            Prompt { token_ids: backwards.take(self.chunk_tokens * 5 / 4).collect(), ..prompt.clone() }
        };
        self.prompts.iter().take(count).map(filler).collect()
    }

    /// Ends a fault of timing and returns what it did.
    async fn end_fault(&self, stack: &mut Started) -> Result<Damage, StageError> {
        let mut damage = Damage::default();
        let mut bits_of_chunk = std::collections::BTreeMap::<_, u64>::new();
        let is_shared = self.evidence.kv.as_ref().is_some_and(|kv| kv.shared_by_ranks);
        for ChangedCell { question, chunk, layer, rank, bits } in stack.worker.end_fault().await? {
            *bits_of_chunk.entry((question, chunk, rank)).or_default() += bits;
            damage.cells.certain.insert(PlantedCell {
                prompt: size(question),
                chunk: size(chunk),
                layer: size(layer),
                rank: if is_shared { 0 } else { rank },
            });
        }
        damage.chunks = small(bits_of_chunk.len());
        damage.changed_bits = bits_of_chunk.into_values().max().unwrap_or(0);
        Ok(damage)
    }

    async fn ask(&self, stack: &mut Started, tier: Tier) -> Result<Answers, StageError> {
        if tier == Tier::Disk {
            stack.server.clear().await?;
        }
        let before = stack.server.counters().await?;
        let loaded = stack.worker.score(self.prompts, PrefixCache::Read, || {}).await?;
        let counted = stack.server.counters().await?.since(before);
        Ok(Answers { loaded, counted, kv: stack.worker.take_kv_records() })
    }

    /// Judges a load pass; `computed` is what engines computed for the same prompts besides the store pass.
    fn judge(
        &self,
        variant: &Variant,
        damage: &Damage,
        answers: Answers,
        computed: Vec<KvRecord>,
    ) -> Result<Trial, StageError> {
        let Answers { loaded, counted, kv: load_records } = answers;
        let load = Arm::new(ArmName::Load, loaded, |observation| read_answer(&self.tokenizer, observation))?;
        let server =
            self.evidence.server.clone().map(|server| ServerEvidence { load: counters(counted), ..server });
        let kv = self.evidence.kv.clone().map(|kv| {
            let store = kv.store.into_iter().chain(computed).collect();
            KvEvidence { store, load: load_records, ..kv }
        });
        let evidence = Evidence { load, server, kv, ..self.evidence.clone() };
        let comparison = compare(&evidence, self.criteria)?;
        self.saw_no_number.set(self.saw_no_number.get() || comparison.without_numbers.is_some());
        let wrong = find_wrong_cells(&evidence)?;
        let when = match variant.operator {
            Operator::ComeLate => WrongWhen::WhenRead,
            _ => WrongWhen::Throughout,
        };
        let located =
            evidence.kv.as_ref().map(|kv| Located::of(&damage.cells, self.prompts, kv, (&wrong, when)));
        Ok(Trial::judge(variant, damage, Reading { comparison: &comparison, counted, located }))
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).expect("a few questions have few chunks")
}

fn size(number: u32) -> usize {
    usize::try_from(number).expect("a number of 32 bits fits")
}
