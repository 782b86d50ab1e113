//! A simulated study of the verdict: made-up runs with a known effect, judged by the program as real ones are.
//!
//! Shared by the test (few runs) and the bench (many). Only answers can decide here: bits differ everywhere, there is
//! no control, and the tolerances of the rungs between are out of reach. Main type: [`Study`].

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;

use kv_correctness::comparison::{
    Arm, ArmName, Asked, Batching, Comparison, Criteria, CutEvidence, EarlyStop, Evidence, Expected,
    Fidelity, HarmMonitor, Tolerance, Verdict, compare, conclude, pair_predictions, shuffle_questions,
};
use kv_correctness::dataset::{Choice, Prompt, QuestionId, Shard, Split, Subject};
use kv_correctness::engine::{Capacity, Plan, Round};
use kv_correctness::model::{HitRule, Observation, Step, TokenLogprob};

/// One cell of the study.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Study {
    /// Questions of each subject.
    pub(crate) sizes: &'static [u32],
    /// Comparisons in a run, all of one baseline. The first has the loss, the others have none.
    pub(crate) comparisons: u32,
    /// Parts that the questions are asked in, each with its share of the budget for early stops, and judged together.
    pub(crate) shards: u32,
    /// Share of right answers of the baseline.
    pub(crate) accuracy: f64,
    /// Share of questions that flip between right and wrong, either way.
    pub(crate) flip_rate: f64,
    /// Harms minus gains, a share of all questions.
    pub(crate) loss: f64,
    /// Whether the flips of a subject tend to go the same way.
    pub(crate) flips: Flips,
    /// Largest difference that counts as none.
    pub(crate) margin: f64,
    /// Number of runs.
    pub(crate) runs: u32,
    /// Where the random numbers start.
    pub(crate) seed: u64,
}

/// How the flips of one subject hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flips {
    /// Not at all.
    Independent,
    /// Each subject has its own share of harms, from a Beta(2, 2) distribution around the common one: without an effect
    /// the directions of two flips of a subject have correlation 0.2.
    BySubject,
}

/// How the runs of a study ended, each judged twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct BothEndings {
    /// Where every question is asked.
    pub(crate) without_stop: Endings,
    /// Where a comparison ends when harm is beyond doubt.
    pub(crate) with_stop: Endings,
}

/// How the runs of a study ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Endings {
    /// Runs.
    pub(crate) runs: u32,
    /// Runs that are called degraded.
    pub(crate) degraded: u32,
    /// Runs whose first comparison is called degraded.
    pub(crate) found: u32,
    /// Runs that are called equivalent.
    pub(crate) equivalent: u32,
    /// Runs that are called inconclusive.
    pub(crate) inconclusive: u32,
    /// Runs of which a comparison ended early; all of these are called degraded too.
    pub(crate) stopped: u32,
    /// Sum of the questions that first comparisons asked.
    pub(crate) asked: u64,
}

impl Endings {
    fn count(&mut self, compared: &[Comparison]) {
        let conclusion = conclude(compared);
        self.runs += 1;
        self.stopped += u32::from(compared.iter().any(|comparison| comparison.early_stop.is_some()));
        self.asked += u64::from(compared[0].questions);
        self.found += u32::from(conclusion.judgements[0].verdict == Verdict::Degraded);
        match conclusion.overall {
            Verdict::Degraded => self.degraded += 1,
            Verdict::Equivalent => self.equivalent += 1,
            Verdict::Inconclusive => self.inconclusive += 1,
            Verdict::NotExercised | Verdict::Insensitive => unreachable!("all hits are as predicted"),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            degraded: self.degraded + other.degraded,
            found: self.found + other.found,
            equivalent: self.equivalent + other.equivalent,
            inconclusive: self.inconclusive + other.inconclusive,
            stopped: self.stopped + other.stopped,
            asked: self.asked + other.asked,
        }
    }
}

/// What all runs of a study share.
struct Ground {
    evidence: Evidence,
    /// Whether the baseline is right, in the order of the questions.
    right: Vec<bool>,
    /// Of each part, numbers of the questions in the order in which the pipeline asks them.
    orders: Vec<Vec<usize>>,
}

/// Questions of a round, about; the first is a short probe.
const ROUND: u64 = 300;
/// Questions between two looks at the evidence for harm.
const SLICE: usize = 32;

impl Study {
    /// Makes and judges all runs.
    pub(crate) fn run(&self) -> BothEndings {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut ground = self.ground(&mut random);
        let mut endings = BothEndings::default();
        for _ in 0..self.runs {
            self.judge_one_run(&mut random, &mut ground, &mut endings);
        }
        endings
    }

    /// The same, shared among all cores; each takes the random numbers of another seed.
    #[allow(dead_code, reason = "the bench's alone")]
    pub(crate) fn run_on_all_cores(&self) -> BothEndings {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let cores = u32::try_from(cores).unwrap_or(1);
        std::thread::scope(|scope| {
            let parts: Vec<_> = (0..cores)
                .map(|core| Study {
                    runs: (self.runs + core) / cores,
                    seed: self.seed + u64::from(core),
                    ..*self
                })
                .map(|part| scope.spawn(move || part.run()))
                .collect();
            parts.into_iter().map(|part| part.join().expect("a part ends")).fold(
                BothEndings::default(),
                |sum, part| BothEndings {
                    without_stop: sum.without_stop.plus(part.without_stop),
                    with_stop: sum.with_stop.plus(part.with_stop),
                },
            )
        })
    }

    fn ground(&self, random: &mut fastrand::Rng) -> Ground {
        let asked = self.questions();
        let right: Vec<bool> = asked.iter().map(|_| random.f64() < self.accuracy).collect();
        let letters = right.iter().zip(&asked).map(|(right, asked)| letter(asked.answer, *right));
        let baseline: Vec<Observation> =
            asked.iter().zip(letters).map(|(asked, letter)| observe(asked, 0, letter, -0.5)).collect();
        let arm = |name| arm(name, baseline.clone());
        let orders = self.orders_of_asking(&asked);
        let evidence = Evidence {
            comparisons: self.comparisons,
            cache: "LMCache".to_owned(),
            baseline: arm(ArmName::Baseline),
            repeat: arm(ArmName::Repeat),
            control: None,
            store: arm(ArmName::Store),
            load: arm(ArmName::Load),
            cut: CutEvidence::LeftOut { reason: "only answers are simulated".to_owned() },
            server: None,
            kv: None,
            engine: None,
            store_tokens: None,
            spoilt: None,
            loads_fail: false,
            early_stop: None,
            batching: Batching::OneAtATime,
            fidelity: Fidelity::Exact,
            questions: asked,
        };
        Ground { evidence, right, orders }
    }

    fn judge_one_run(&self, random: &mut fastrand::Rng, ground: &mut Ground, endings: &mut BothEndings) {
        let mut whole = Vec::new();
        let mut stopped = Vec::new();
        for number in 0..self.comparisons {
            let loss = if number == 0 { self.loss } else { 0.0 };
            let (load, stop) = self.load(random, ground, loss);
            let evidence = &mut ground.evidence;
            let mut judged = |load: &[Observation], stop: Option<EarlyStop>| {
                evidence.load = arm(ArmName::Load, load.to_vec());
                evidence.early_stop = stop;
                compare(evidence, &self.criteria()).expect("the evidence belongs together")
            };
            whole.push(judged(&load, None));
            stopped.push(stop.map(|(stop, asked)| judged(&asked, Some(stop))));
        }
        endings.without_stop.count(&whole);
        let stopped: Vec<Comparison> =
            stopped.into_iter().zip(whole).map(|(stopped, whole)| stopped.unwrap_or(whole)).collect();
        endings.with_stop.count(&stopped);
    }

    /// The questions of each part, in the order of asking.
    fn orders_of_asking(&self, asked: &[Asked]) -> Vec<Vec<usize>> {
        let mut sizes: BTreeMap<&Subject, usize> = BTreeMap::new();
        for asked in asked {
            *sizes.entry(&asked.id.subject).or_default() += 1;
        }
        let part = |number: u32| {
            let shard: Shard = format!("{number}/{}", self.shards).parse().expect("a part");
            let subjects = shard.subjects(sizes.iter().map(|(subject, size)| (*subject, *size)));
            let numbers: Vec<usize> =
                (0..asked.len()).filter(|&at| subjects.contains(&asked[at].id.subject)).collect();
            let of_part: Vec<Asked> = numbers.iter().map(|&at| asked[at].clone()).collect();
            order_of_asking(&of_part, self.seed).into_iter().map(|at| numbers[at]).collect()
        };
        (1..=self.shards).map(part).collect()
    }

    /// The load passes of all parts, and if a watch over one of them would end it, the first such end and what was asked until then.
    fn load(
        &self,
        random: &mut fastrand::Rng,
        ground: &Ground,
        loss: f64,
    ) -> (Vec<Observation>, Option<(EarlyStop, Vec<Observation>)>) {
        let Ground { evidence, right, orders } = ground;
        let loaded = self.flip(random, right, &evidence.questions, loss);
        let (mut all, mut until_stop, mut first_stop) = (Vec::new(), Vec::new(), None);
        for order in orders {
            let mut monitor = HarmMonitor::new(self.comparisons * self.shards);
            let mut load = Vec::new();
            let mut stop = None;
            for &number in order {
                let asked = &evidence.questions[number];
                let (before, after) =
                    (letter(asked.answer, right[number]), letter(asked.answer, loaded[number]));
                load.push(observe(asked, asked.expected.load, after, -0.6));
                if stop.is_none() {
                    let outcome = pair_predictions(asked.answer, Some(before), Some(after));
                    stop = monitor.observe(&asked.id.subject, outcome).map(|stop| (stop, load.len()));
                }
            }
            // What was asked together is asked to its end.
            let asked = stop.map_or(load.len(), |(_, asked)| asked.next_multiple_of(SLICE).min(load.len()));
            until_stop.extend_from_slice(&load[..asked]);
            first_stop = first_stop.or(stop.map(|(stop, _)| stop));
            all.append(&mut load);
        }
        (all, first_stop.map(|stop| (stop, until_stop)))
    }

    /// Which answers are right after loading: each flips with its chance, so that on average harms and gains make up the
    /// flip rate and their difference the loss, whatever the number of right answers happens to be.
    fn flip(&self, random: &mut fastrand::Rng, right: &[bool], asked: &[Asked], loss: f64) -> Vec<bool> {
        let common = f64::midpoint(1.0, loss / self.flip_rate);
        let rights: f64 = right.iter().map(|&right| f64::from(u8::from(right))).sum();
        let accuracy = rights / right.iter().map(|_| 1.0).sum::<f64>();
        let mut subject = None;
        let mut harm_share = common;
        right
            .iter()
            .zip(asked)
            .map(|(&right, asked)| {
                if self.flips == Flips::BySubject && subject != Some(&asked.id.subject) {
                    subject = Some(&asked.id.subject);
                    // The middle one of three uniform numbers has the Beta(2, 2) distribution.
                    let mut thirds = [random.f64(), random.f64(), random.f64()];
                    thirds.sort_by(f64::total_cmp);
                    harm_share = common + (2.0 * thirds[1] - 1.0) * common.min(1.0 - common);
                }
                let (share, of) =
                    if right { (harm_share, accuracy) } else { (1.0 - harm_share, 1.0 - accuracy) };
                right != (random.f64() < self.flip_rate * share / of)
            })
            .collect()
    }

    /// All questions, in the order of their names.
    fn questions(&self) -> Vec<Asked> {
        let expected = Expected { prompt_tokens: 600, store_at_most: 0, load: 512, control: 512 };
        let of_subject = |(number, &size): (usize, &u32)| {
            let subject: Subject = format!("subject_{number:02}").parse().expect("a subject's name");
            (1..=size).map(move |row| {
                let id = QuestionId { subject: subject.clone(), split: Split::Test, row };
                Asked { answer: Choice::ALL[row as usize % 4], id, expected }
            })
        };
        self.sizes.iter().enumerate().flat_map(of_subject).collect()
    }

    fn criteria(&self) -> Criteria {
        let tolerance = Tolerance {
            beyond_gap_rate: 0.9,
            mean_divergence: 99.0,
            letter_difference: 99.0,
            flip_rate: 0.9,
        };
        Criteria { margin: self.margin, assumed_flip_rate: self.flip_rate, tolerance, ..Criteria::default() }
    }
}

/// The order in which a load pass asks: rounds as they are really planned, subject after subject, each shuffled. The prompts of
/// a subject share their first chunk.
fn order_of_asking(asked: &[Asked], seed: u64) -> Vec<usize> {
    let prompts = (0_u32..).zip(asked).map(|(number, asked)| {
        let shared = asked.id.subject.to_string().bytes().map(u32::from).sum();
        let token_ids = [[shared; 4], [1000 + number; 4]].concat();
        Ok::<_, Infallible>(Prompt { question: asked.id.clone(), examples: 0, token_ids })
    });
    let capacity = Capacity {
        chunk_tokens: 4,
        bytes_per_token: 1,
        lmcache_bytes: ROUND * 16 / 3,
        engine_bytes: 1 << 40,
        hits: HitRule::default(),
    };
    let Ok(planned) = Plan::make(prompts, capacity);
    let numbers: HashMap<&QuestionId, usize> =
        asked.iter().enumerate().map(|(number, asked)| (&asked.id, number)).collect();
    let mut left = asked.iter().map(|asked| asked.id.clone());
    let rounds = planned.expect("each prompt fits").rounds;
    let round = |round: &Round| shuffle_questions(left.by_ref().take(round.prompts).collect(), seed);
    rounds.iter().flat_map(round).map(|id| numbers[&id]).collect()
}

fn letter(published: Choice, right: bool) -> Choice {
    Choice::ALL[(published.index() + usize::from(!right)) % 4]
}

fn observe(asked: &Asked, cached_tokens: u32, letter: Choice, logprob: f32) -> Observation {
    let mut letters = [-3.0; 4];
    letters[letter.index()] = f64::from(logprob);
    let token = u32::try_from(letter.index()).expect("one of four");
    let chosen = TokenLogprob { token, logprob };
    let step = Step { chosen, top: vec![chosen] };
    let prompt_tokens = asked.expected.prompt_tokens;
    Observation {
        question: asked.id.clone(),
        prompt_tokens,
        cached_tokens,
        preemptions: 0,
        served_again: Vec::new(),
        no_numbers: false,
        letters,
        steps: vec![step],
    }
}

fn arm(name: ArmName, observations: Vec<Observation>) -> Arm {
    Arm::new(name, observations, |observation| {
        Choice::ALL.get(observation.steps[0].chosen.token as usize).copied()
    })
    .expect("one finite observation a question")
}
