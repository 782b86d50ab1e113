//! Evidence made up for tests: every arm alike and served as predicted, until a test edits it. Main type: [`Scene`].

use crate::dataset::{Choice, QuestionId, Split};
use crate::digest::{Digest, digest_json};
use crate::model::{
    ChunkDigests, KvRecord, LayerDigests, Observation, SpoiltAnswers, SpoiltProbe, Step, TokenLogprob,
};

use super::{
    Arm, ArmName, Asked, AskedCut, Batching, CutEvidence, Evidence, Expected, Fidelity, KvEvidence,
    ServerCounters, ServerEvidence,
};

/// A run in the making. Tokens 0 to 3 are the letters; any other token is read as no letter.
pub(crate) struct Scene {
    pub(crate) questions: Vec<Asked>,
    pub(crate) arms: [Vec<Observation>; 5],
    has_control: bool,
    kv: Option<KvEvidence>,
    cuts: Vec<AskedCut>,
}

impl Scene {
    /// `questions` questions over `subjects` subjects, of which the model answers the share `accuracy` right.
    pub(crate) fn new(questions: u32, subjects: u32, accuracy: f64) -> Self {
        let asked: Vec<Asked> = (0..questions).map(|number| ask(number, subjects)).collect();
        let observe = |arm: ArmName| -> Vec<Observation> {
            asked
                .iter()
                .enumerate()
                .map(|(number, asked)| {
                    let right = scatter(number, 1) < accuracy;
                    let off = usize::from(!right);
                    let letter = Choice::ALL[(asked.answer.index() + off) % 4];
                    answer(asked, number, cached(asked, arm), letter)
                })
                .collect()
        };
        let arms = [ArmName::Baseline, ArmName::Repeat, ArmName::Control, ArmName::Store, ArmName::Load]
            .map(observe);
        Self { questions: asked, arms, has_control: true, kv: None, cuts: Vec::new() }
    }

    /// Changes the observation of one question in one arm.
    pub(crate) fn edit(
        &mut self,
        arm: ArmName,
        number: usize,
        change: impl FnOnce(&mut Observation),
    ) -> &mut Self {
        change(&mut self.arms[arm as usize][number]);
        self
    }

    /// Changes every observation of one arm; the closure is told the question's number.
    pub(crate) fn edit_all(
        &mut self,
        arm: ArmName,
        mut change: impl FnMut(usize, &mut Observation),
    ) -> &mut Self {
        for (number, observation) in self.arms[arm as usize].iter_mut().enumerate() {
            change(number, observation);
        }
        self
    }

    /// Takes the control away.
    pub(crate) fn without_control(&mut self) -> &mut Self {
        self.has_control = false;
        self
    }

    /// Gives it back.
    pub(crate) fn with_control(&mut self) -> &mut Self {
        self.has_control = true;
        self
    }

    /// Observes the KV, too: two ranks with two layers, every served chunk a copy.
    pub(crate) fn with_kv(&mut self) -> &mut Self {
        let records = |arm: ArmName| self.arms[arm as usize].iter().zip(0..).map(kv_record).collect();
        let layers = ["layer 0", "layer 1"].map(str::to_owned).to_vec();
        self.kv = Some(KvEvidence {
            chunk_tokens: CHUNK_TOKENS,
            layers: vec![layers.clone(), layers],
            windows: Vec::new(),
            block_tokens: CHUNK_TOKENS,
            shared_by_ranks: false,
            loads_whole_chunks: true,
            prefixes: self.questions.iter().zip(0..).map(|(asked, number)| prefixes(asked, number)).collect(),
            store: records(ArmName::Store),
            load: records(ArmName::Load),
            cut: self
                .cuts
                .iter()
                .zip(0..)
                .map(|(cut, number)| kv_record((&cut.observation, number)))
                .collect(),
            baseline: records(ArmName::Baseline),
            repeat: records(ArmName::Repeat),
            looks: Vec::new(),
        });
        self
    }

    /// Asks prefixes of the first prompts, too, of a chunk and sixteen tokens each; before the KV is observed.
    pub(crate) fn with_cuts(&mut self, prompts: usize) -> &mut Self {
        let of_load = self.arms[ArmName::Load as usize].iter().take(prompts);
        let cut = |whole: &Observation| {
            let observation = Observation {
                prompt_tokens: CHUNK_TOKENS + 16,
                cached_tokens: CHUNK_TOKENS,
                ..whole.clone()
            };
            AskedCut { expected: CHUNK_TOKENS, control: Some(observation.clone()), observation }
        };
        self.cuts = of_load.map(cut).collect();
        self
    }

    /// What prefixes of prompts showed.
    pub(crate) fn cuts(&mut self) -> &mut Vec<AskedCut> {
        &mut self.cuts
    }

    /// What was seen of the KV in the store pass.
    pub(crate) fn kv_of_store(&mut self) -> &mut Vec<KvRecord> {
        &mut self.kv.as_mut().unwrap().store
    }

    /// What was seen of the KV in all passes, and what was looked at again.
    pub(crate) fn kv(&mut self) -> &mut KvEvidence {
        self.kv.as_mut().unwrap()
    }

    /// What was seen of the KV in the load pass.
    pub(crate) fn kv_of_load(&mut self) -> &mut Vec<KvRecord> {
        &mut self.kv.as_mut().unwrap().load
    }

    /// Changes what was seen of one chunk in the load pass, on rank 0.
    pub(crate) fn edit_kv(
        &mut self,
        question: usize,
        chunk: u32,
        change: impl FnOnce(&mut ChunkDigests),
    ) -> &mut Self {
        let record = &mut self.kv.as_mut().unwrap().load[question];
        let KvRecord::Request { chunks, .. } = record else { panic!("it was observed") };
        change(chunks.iter_mut().find(|one| one.chunk == chunk && one.rank == 0).unwrap());
        self
    }

    /// The evidence as it now stands, with a server whose counters agree.
    pub(crate) fn evidence(&self) -> Evidence {
        let cut = match self.cuts.as_slice() {
            [] => CutEvidence::LeftOut { reason: "nobody asks them here".to_owned() },
            cuts => CutEvidence::Asked(cuts.to_vec()),
        };
        let mut evidence =
            Evidence { kv: self.kv.clone(), cut, ..build(&self.questions, &self.arms, self.has_control) };
        if let Some(server) = &mut evidence.server {
            let served = self.cuts.iter().map(|cut| u64::from(cut.observation.cached_tokens));
            server.cut = counters(served.sum());
        }
        evidence
    }
}

const CHUNK_TOKENS: u32 = 256;

/// A digest that is made up: of a question's chunk in a layer on a rank.
pub(crate) fn made_up_kv(question: usize, chunk: u32, layer: u32, rank: u32) -> u128 {
    let parts = [number(question), chunk, layer, rank].map(|part| u128::from(part + 1));
    parts.into_iter().fold(0, |digest, part| (digest << 32) | part)
}

fn kv_record((observation, question): (&Observation, usize)) -> KvRecord {
    let chunks = (0..observation.prompt_tokens / CHUNK_TOKENS).flat_map(|chunk| {
        (0..2).map(move |rank| ChunkDigests {
            rank,
            chunk,
            served: chunk < observation.cached_tokens / CHUNK_TOKENS,
            first: LayerDigests::new((0..2).map(|layer| made_up_kv(question, chunk, layer, rank)).collect()),
            last: None,
            stored: None,
        })
    });
    KvRecord::Request { question: observation.question.clone(), chunks: chunks.collect() }
}

fn prefixes(asked: &Asked, question: u32) -> (QuestionId, Vec<Digest>) {
    let chunks = 0..asked.expected.prompt_tokens / CHUNK_TOKENS;
    (asked.id.clone(), chunks.map(|chunk| digest_json(&[question, chunk])).collect())
}

/// Makes a question's observation name another letter, as generated token and as most likely letter.
pub(crate) fn say(observation: &mut Observation, letter: Choice) {
    let was = observation.steps[0].chosen.token as usize;
    observation.letters.swap(was, letter.index());
    let step = &mut observation.steps[0];
    for listed in &mut step.top {
        listed.token = match listed.token as usize {
            token if token == was => number(letter.index()),
            token if token == letter.index() => number(was),
            _ => listed.token,
        };
    }
    step.chosen = step.top[0];
}

/// A number in 0 to 1 that looks random, fixed by two others.
pub(crate) fn scatter(number: usize, salt: u64) -> f64 {
    let mut bits =
        (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd1b5_4a32_d192_ed03);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    f64::from(u32::try_from((bits ^ (bits >> 31)) >> 32).unwrap()) / f64::from(u32::MAX)
}

fn ask(number: u32, subjects: u32) -> Asked {
    let id = QuestionId {
        subject: format!("subject_{:02}", number % subjects).parse().unwrap(),
        split: Split::Test,
        row: number / subjects + 1,
    };
    let prompt_tokens = 600 + number % 100;
    let expected = Expected { prompt_tokens, store_at_most: 0, load: 512, control: 512 };
    Asked { id, answer: Choice::ALL[number as usize % 4], expected }
}

fn cached(asked: &Asked, arm: ArmName) -> u32 {
    match arm {
        ArmName::Baseline | ArmName::Repeat => 0,
        ArmName::Control => asked.expected.control,
        ArmName::Store => asked.expected.store_at_most,
        ArmName::Load => asked.expected.load,
    }
}

fn answer(asked: &Asked, question: usize, cached_tokens: u32, letter: Choice) -> Observation {
    #[expect(clippy::cast_possible_truncation, reason = "an engine's log-probabilities are float32")]
    let logprob = |rank: usize| (-0.4 - 1.5 * f64::from(number(rank)) - 0.3 * scatter(question, 2)) as f32;
    let order: Vec<usize> =
        [letter.index()].into_iter().chain((0..4).filter(|other| *other != letter.index())).collect();
    let mut letters = [0.0; 4];
    for (rank, index) in order.iter().enumerate() {
        letters[*index] = f64::from(logprob(rank));
    }
    let top: Vec<TokenLogprob> = order
        .iter()
        .enumerate()
        .map(|(rank, index)| TokenLogprob { token: number(*index), logprob: logprob(rank) })
        .collect();
    let end = TokenLogprob { token: 9, logprob: -0.01 };
    Observation {
        question: asked.id.clone(),
        prompt_tokens: asked.expected.prompt_tokens,
        cached_tokens,
        preemptions: 0,
        served_again: Vec::new(),
        no_numbers: false,
        letters,
        steps: vec![
            Step { chosen: top[0], top },
            Step { chosen: end, top: vec![end, TokenLogprob { token: 8, logprob: -5.0 }] },
        ],
    }
}

fn counters(hit_tokens: u64) -> ServerCounters {
    let chunks_read = hit_tokens / u64::from(CHUNK_TOKENS);
    ServerCounters { hit_tokens, chunks_read, ..ServerCounters::default() }
}

fn build(questions: &[Asked], arms: &[Vec<Observation>; 5], has_control: bool) -> Evidence {
    let arm = |name: ArmName| Arm::new(name, arms[name as usize].clone(), read_letter).unwrap();
    let hits = |name: ArmName| {
        arms[name as usize].iter().map(|observation| u64::from(observation.cached_tokens)).sum()
    };
    Evidence {
        comparisons: 1,
        cache: "LMCache".to_owned(),
        questions: questions.to_vec(),
        batching: Batching::OneAtATime,
        fidelity: Fidelity::Exact,
        baseline: arm(ArmName::Baseline),
        repeat: arm(ArmName::Repeat),
        control: has_control.then(|| arm(ArmName::Control)),
        store: arm(ArmName::Store),
        load: arm(ArmName::Load),
        cut: CutEvidence::Asked(Vec::new()),
        server: Some(ServerEvidence {
            store: counters(hits(ArmName::Store)),
            load: counters(hits(ArmName::Load)),
            cut: counters(0),
            tier: None,
            sharding: None,
        }),
        kv: None,
        engine: None,
        store_tokens: None,
        spoilt: arms[ArmName::Load as usize].iter().min_by_key(|one| &one.question).map(spoilt_probe),
        loads_fail: false,
        early_stop: None,
    }
}

/// A request whose answer feels that a chunk of its KV is at zero.
pub(crate) fn spoilt_probe(served: &Observation) -> SpoiltProbe {
    let alone = Observation { cached_tokens: 512, ..served.clone() };
    let mut spoilt = alone.clone();
    spoilt.letters[0] -= 3.5;
    SpoiltProbe::Asked(Box::new(SpoiltAnswers { chunk: 1, cells: 4, again: alone.clone(), alone, spoilt }))
}

/// Reads the first generated token as a letter.
pub(crate) fn read_letter(observation: &Observation) -> Option<Choice> {
    Choice::ALL.get(observation.steps[0].chosen.token as usize).copied()
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap()
}
