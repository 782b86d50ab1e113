//! The stored chunks of a few questions, to damage and to restore. Main type: [`Ground`].

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;

use super::StageError;
use super::prompts::read_prompts;
use crate::dataset::{Prompt, QuestionId, Subject};
use crate::engine::{PrefixCache, Worker};
use crate::fault::{
    Arrangement, Changed, ChunkName, Damage, Fault, FaultError, Flip, Layout, MemoryTier, Must, Place,
    PlantedCell, PlantedTier, Probe, Shard, Tier, Variant, plantings, sample_flips,
};
use crate::store::Artifact;

const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Prompts of whole chunks that faults are planted in besides the others.
const WHOLE_PROMPTS: usize = 3;
/// Tokens behind the last whole chunk of a probe.
const PROBE_REST: usize = 8;

/// Chunks in the tiers of a server.
pub(super) struct Ground {
    /// Of a shard.
    layout: Layout,
    /// In how many shards a chunk is stored.
    shards_of_chunk: u32,
    /// Whole chunks of each prompt that is more than these; they are asked before the others.
    prompts: Vec<Vec<ChunkName>>,
    /// Those of prompts that are nothing else.
    whole_prompts: Vec<Vec<ChunkName>>,
    shards: BTreeSet<Shard>,
    second: PlantedTier,
    memory: Option<MemoryTier>,
    planted: BTreeSet<Shard>,
    /// How long no chunk may arrive in the second tier once a pass has its last answer.
    patience: Duration,
}

impl Ground {
    /// Waits until all chunks of the prompts, which were just stored, are in the second tier, and keeps a copy of them.
    pub(super) async fn prepare(
        mut second: PlantedTier,
        layout: Layout,
        shards_of_chunk: u32,
        prompts: &[Prompt],
        (chunk_tokens, patience): (u32, Duration),
    ) -> Result<Self, StageError> {
        let chunks_of = |prompt: &Prompt| ChunkName::of_prompt(&prompt.token_ids, chunk_tokens);
        let (whole_prompts, prompts): (Vec<&Prompt>, Vec<&Prompt>) =
            prompts.iter().partition(|prompt| prompt.is_whole_chunks(chunk_tokens));
        let [whole_prompts, prompts] = [whole_prompts, prompts]
            .map(|prompts| prompts.into_iter().map(chunks_of).collect::<Vec<Vec<ChunkName>>>());
        let of_chunk = |chunk| Shard::of_chunk(chunk, shards_of_chunk);
        let shards: BTreeSet<Shard> =
            prompts.iter().chain(&whole_prompts).flatten().flat_map(of_chunk).collect();
        await_shards(&mut second, &shards, layout, patience).await?;
        second.keep_pristine()?;
        let (memory, planted) = (None, BTreeSet::new());
        Ok(Self {
            layout,
            shards_of_chunk,
            prompts,
            whole_prompts,
            shards,
            second,
            memory,
            planted,
            patience,
        })
    }

    /// Has the engine store the second chunk of the first prompt behind two other prefixes, and finds the arrangement that
    /// what comes out has.
    pub(super) async fn recognise_layout(
        &mut self,
        worker: &mut Worker,
        prompts: &[Prompt],
        chunk_tokens: u32,
        arrangements: &[Arrangement],
    ) -> Result<Layout, StageError> {
        let rows = self.layout.rows;
        let tokens =
            |prompt: usize, chunk: usize| &prompts[prompt].token_ids[chunk * rows..(chunk + 1) * rows];
        let other = (1..prompts.len()).find(|other| tokens(*other, 0) != tokens(0, 0));
        let other = other.ok_or(FaultError::TooShort { chunk_tokens })?;
        let rest = &prompts[0].token_ids[2 * rows..];
        let rest = &rest[..rest.len().min(PROBE_REST)];
        let probe = |chunks: &[&[u32]]| Prompt { token_ids: chunks.concat(), ..prompts[0].clone() };
        let behind_other = probe(&[tokens(other, 0), tokens(0, 1), rest]);
        let later = probe(&[tokens(0, 0), tokens(other, 0), tokens(0, 1), rest]);
        let names = [&behind_other, &later].map(|prompt| {
            let mut names = ChunkName::of_prompt(&prompt.token_ids, chunk_tokens);
            names.truncate(prompt.token_ids.len() / rows);
            names.pop().expect("a probe has whole chunks")
        });
        worker.score(&[behind_other, later], PrefixCache::Read, || {}).await?;
        let of_chunk = |chunk| Shard::of_chunk(chunk, self.shards_of_chunk);
        let probes: BTreeSet<Shard> = names.iter().flat_map(of_chunk).collect();
        await_shards(&mut self.second, &probes, self.layout, self.patience).await?;
        self.second.keep_pristine()?;
        let chunks = [&self.prompts[0][1], &names[0], &names[1]];
        let mut shards = Vec::new();
        for rank in 0..self.shards_of_chunk {
            for &chunk in &chunks {
                shards.push(self.second.pristine(&Shard { chunk: chunk.clone(), rank })?);
            }
        }
        let probes: Vec<Probe<'_>> = shards
            .chunks_exact(chunks.len())
            .map(|shards| Probe { chunk: &shards[0], other_prefix: &shards[1], later: &shards[2] })
            .collect();
        self.layout = self.layout.recognise(arrangements, &probes).map_err(FaultError::from)?;
        Ok(self.layout)
    }

    /// Looks for the chunks in the server's memory. Without all of them no fault is planted there.
    pub(super) fn search_memory(&mut self, segment: Utf8PathBuf) -> Result<(), StageError> {
        self.memory = Some(MemoryTier::search(segment, &self.shards, |shard| self.second.pristine(shard))?);
        Ok(())
    }

    pub(super) fn memory_is_reached(&self) -> bool {
        self.memory.as_ref().is_some_and(|memory| memory.found() == self.shards.len())
    }

    /// Whether a variant has a prompt that it can be planted in.
    pub(super) fn has_place_for(&self, variant: &Variant) -> bool {
        variant.place != Place::LastOfWhole || !self.whole_prompts.is_empty()
    }

    /// Distinct chunks.
    pub(super) fn chunks(&self) -> u64 {
        self.shards.len() as u64 / u64::from(self.shards_of_chunk)
    }

    /// Distinct shards of chunks, and those of them that were found in memory.
    pub(super) fn counts(&self) -> (u32, u32) {
        let count = |number| u32::try_from(number).expect("a few questions have few chunks");
        (count(self.shards.len()), count(self.memory.as_ref().map_or(0, MemoryTier::found)))
    }

    /// The places of so many single bits, in turns.
    pub(super) fn sample_flips(&self, count: u16) -> Vec<Vec<Flip>> {
        sample_flips(usize::from(count), &self.layout, &self.prompts, self.shards_of_chunk)
    }

    /// Flips these bits in the second tier.
    pub(super) fn plant_flips(&mut self, flips: &[Flip]) -> Result<Damage, StageError> {
        let mut damage = Damage::default();
        for flip in flips {
            let pristine = self.second.pristine(&flip.shard)?;
            let bytes = flip.apply(&self.layout, &pristine);
            self.note(&mut damage, &flip.shard, &pristine, &bytes);
            self.second.plant(&flip.shard, Some(&bytes))?;
            self.planted.insert(flip.shard.clone());
        }
        Ok(damage)
    }

    /// The chunks and layers of each prompt that a variant is about.
    pub(super) fn spots(&self, variant: &Variant) -> (Vec<(usize, usize)>, Range<usize>) {
        let of_prompt = |(prompt, chunks): (usize, &Vec<ChunkName>)| {
            variant.place.of(chunks.len()).map(move |chunk| (prompt, chunk))
        };
        let chunks = self.prompts.iter().enumerate().flat_map(of_prompt).collect();
        (chunks, variant.layers.of(self.layout.layers()))
    }

    /// Takes everything out of the second tier, until it is restored.
    pub(super) fn empty(&mut self) -> Result<(), StageError> {
        for shard in &self.shards {
            self.second.plant(shard, None)?;
        }
        self.planted.clone_from(&self.shards);
        Ok(())
    }

    /// Waits until everything is in the second tier again; whether that was so.
    pub(super) async fn is_filled(&mut self) -> Result<bool, StageError> {
        match await_shards(&mut self.second, &self.shards, self.layout, self.patience).await {
            Err(StageError::Fault(FaultError::Missing { .. })) => Ok(false),
            filled => filled.map(|()| true),
        }
    }

    /// Damages every shard that the variant is about.
    pub(super) fn plant(&mut self, variant: &Variant) -> Result<Damage, StageError> {
        let mut damage = Damage::default();
        let Fault { ranks, donor, .. } = *variant.fault;
        let all = [&self.prompts[..], &self.whole_prompts].concat();
        let prompts = match (variant.place, variant.fault.must) {
            (Place::LastOfWhole, _) => &self.whole_prompts,
            (_, Must::ServeNothing) => &all,
            _ => &self.prompts,
        };
        let plantings = plantings(variant.place, ranks, donor, prompts, self.shards_of_chunk);
        if variant.operator.misreading().is_some() {
            let chunks = u32::try_from(plantings.len()).unwrap_or(u32::MAX);
            return Ok(Damage { chunks, ..Damage::default() });
        }
        for planting in plantings {
            let pristine = self.second.pristine(&planting.shard)?;
            let donor = self.second.pristine(&planting.donor)?;
            let layers = variant.layers.of(self.layout.layers());
            let bytes = variant.operator.apply(&self.layout, layers, &pristine, &donor);
            self.note(&mut damage, &planting.shard, &pristine, bytes.as_deref().unwrap_or_default());
            match (variant.tier, &mut self.memory) {
                (Tier::Memory, Some(memory)) => {
                    let bytes = bytes.filter(|bytes| bytes.len() == pristine.len());
                    memory.plant(&planting.shard, &bytes.unwrap_or(pristine))?;
                }
                _ => self.second.plant(&planting.shard, bytes.as_deref())?,
            }
            self.planted.insert(planting.shard);
        }
        Ok(damage)
    }

    /// Adds what becomes of a shard when these bytes take its place. One that is too short is not read.
    fn note(&self, damage: &mut Damage, shard: &Shard, pristine: &[u8], planted: &[u8]) {
        damage.chunks += 1;
        damage.changed_bits = damage.changed_bits.max(changed_bits(pristine, planted));
        let Some(planted) = planted.get(..pristine.len()) else { return };
        let [before, after] = [pristine, planted].map(|bytes| self.layout.by_layers(bytes));
        for layer in (0..self.layout.layers()).filter(|layer| {
            let bytes = self.layout.layer(*layer);
            before[bytes.clone()] != after[bytes]
        }) {
            damage.cells.certain.extend(cells_of(
                shard,
                layer,
                self.prompts.iter().chain(&self.whole_prompts),
            ));
        }
    }

    /// What prompts read of cells that requests stored wrongly; `computed` are the chunks that each request computed.
    pub(super) fn read_by(
        &self,
        wrongly: &BTreeSet<PlantedCell>,
        computed: &BTreeSet<(usize, usize)>,
    ) -> Changed {
        let prompts = [&self.prompts[..], &self.whole_prompts].concat();
        Changed::stored(wrongly, computed, &prompts)
    }

    /// Puts back what was stored. Where files were deleted, the engine has stored the chunks again by now or will soon, and
    /// that must not come later than what is put back.
    pub(super) async fn restore(&mut self) -> Result<(), StageError> {
        let planted = std::mem::take(&mut self.planted);
        let mut waiting = Waiting::at_most(self.patience);
        while waiting.goes_on(self.second.absent(&planted)) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        if let Some(memory) = &mut self.memory {
            memory.restore(|shard| self.second.pristine(shard))?;
        }
        Ok(self.second.restore()?)
    }
}

/// The cells in which prompts, in the order in which they are asked, read a layer of a shard.
fn cells_of<'a>(
    shard: &Shard,
    layer: usize,
    prompts: impl Iterator<Item = &'a Vec<ChunkName>>,
) -> Vec<PlantedCell> {
    let of_prompt = |(prompt, chunks): (usize, &Vec<ChunkName>)| {
        let places = chunks.iter().enumerate().filter(|(_, chunk)| **chunk == shard.chunk);
        let cell = |(chunk, _)| PlantedCell { prompt, chunk, layer, rank: shard.rank };
        places.map(cell).collect::<Vec<_>>()
    };
    prompts.enumerate().flat_map(of_prompt).collect()
}

/// Bits by which what is read of a chunk differs; a byte that is not there differs whole, and one too many is not read.
fn changed_bits(pristine: &[u8], planted: &[u8]) -> u64 {
    let differing = pristine.iter().zip(planted).map(|(one, other)| u64::from((one ^ other).count_ones()));
    differing.sum::<u64>() + 8 * pristine.len().saturating_sub(planted.len()) as u64
}

async fn await_shards(
    second: &mut PlantedTier,
    shards: &BTreeSet<Shard>,
    layout: Layout,
    patience: Duration,
) -> Result<(), StageError> {
    let mut waiting = Waiting::at_most(patience);
    loop {
        let missing = second.missing(shards, layout.bytes())?;
        if missing == 0 {
            return Ok(());
        }
        if !waiting.goes_on(missing) {
            let folder = second.place();
            return Err(FaultError::Missing { folder, missing, wanted: shards.len() }.into());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Waits for chunks as long as more arrive.
struct Waiting {
    patience: Duration,
    /// How many were missing, and since when.
    last: Option<(usize, Instant)>,
}

impl Waiting {
    /// For so long without another one.
    fn at_most(patience: Duration) -> Self {
        Self { patience, last: None }
    }

    /// Whether some are missing, and others arrived not long ago.
    fn goes_on(&mut self, missing: usize) -> bool {
        let since = match self.last {
            Some((before, since)) if before == missing => since,
            _ => Instant::now(),
        };
        self.last = Some((missing, since));
        missing > 0 && since.elapsed() < self.patience
    }
}

/// So many questions, spread over the subjects, whose prompts have at least two whole chunks and a rest, and a few whose prompts
/// are whole chunks and nothing else, if there are any.
pub(super) fn choose_questions(
    prompts: &Artifact,
    chunk_tokens: u32,
    wanted: usize,
) -> Result<Vec<Prompt>, StageError> {
    let chunk = usize::try_from(chunk_tokens).expect("a chunk fits into memory");
    let mut by_subject: BTreeMap<Subject, Vec<QuestionId>> = BTreeMap::new();
    let mut whole = Vec::new();
    for prompt in read_prompts(prompts)? {
        let prompt = prompt?;
        if prompt.token_ids.len() / chunk < 2 {
            continue;
        }
        if prompt.is_whole_chunks(chunk_tokens) {
            whole.push(prompt.question);
        } else {
            by_subject.entry(prompt.question.subject.clone()).or_default().push(prompt.question);
        }
    }
    let longest = by_subject.values().map(Vec::len).max().unwrap_or(0);
    let in_turn = (0..longest).flat_map(|row| by_subject.values().filter_map(move |ids| ids.get(row)));
    let mut chosen: BTreeSet<&QuestionId> = in_turn.take(wanted).collect();
    if chosen.len() < 2 {
        return Err(FaultError::TooShort { chunk_tokens }.into());
    }
    chosen.extend(whole.iter().take(WHOLE_PROMPTS));
    let mut prompts: Vec<Prompt> = read_prompts(prompts)?
        .filter(|prompt| prompt.as_ref().map_or(true, |prompt| chosen.contains(&prompt.question)))
        .collect::<Result<_, _>>()?;
    prompts.sort_by_key(|prompt| prompt.is_whole_chunks(chunk_tokens));
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_read_by_every_prompt_that_holds_it_those_of_whole_chunks_behind_the_others() {
        let names = |tokens: &[u32]| ChunkName::of_prompt(tokens, 2);
        let (prompts, whole) = ([names(&[1, 2, 3, 4, 5])], [names(&[1, 2, 3, 4]), names(&[1, 2, 9, 9])]);
        let cells = |chunk: &ChunkName| -> Vec<(usize, usize)> {
            let shard = Shard { chunk: chunk.clone(), rank: 1 };
            let cells = cells_of(&shard, 3, prompts.iter().chain(&whole));
            assert!(cells.iter().all(|cell| (cell.layer, cell.rank) == (3, 1)));
            cells.iter().map(|cell| (cell.prompt, cell.chunk)).collect()
        };
        assert_eq!(cells(&whole[0][0]), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(cells(&whole[0][1]), [(0, 1), (1, 1)]);
        assert_eq!(cells(&whole[1][1]), [(2, 1)]);
    }

    #[test]
    fn chunks_are_waited_for_as_long_as_the_suite_says_from_the_last_one_that_came() {
        let mut waiting = Waiting::at_most(Duration::from_hours(1));
        assert!(waiting.goes_on(2) && waiting.goes_on(1) && !waiting.goes_on(0));
        let long_ago = Instant::now().checked_sub(Duration::from_mins(1));
        waiting.last = long_ago.map(|since| (1, since));
        assert!(waiting.goes_on(1), "a minute is less than an hour");
        waiting.patience = Duration::from_secs(30);
        assert!(!waiting.goes_on(1));
        waiting.last = long_ago.map(|since| (2, since));
        assert!(waiting.goes_on(1), "one has just come");
    }
}
