//! A simulated study of the verdict: made-up runs with a known effect, judged by the program as real ones are.
//!
//! Shared by the test (few runs) and the bench (many). Only answers can decide here: bits differ everywhere, there is
//! no control, and the tolerances of the rungs between are out of reach. Main type: [`Study`].

use std::collections::HashMap;

use kv_correctness::comparison::{
    Arm, ArmName, Asked, Batching, Criteria, Evidence, Expected, Fidelity, HarmMonitor, Tolerance, Verdict,
    compare, conclude, pair_predictions, shuffle_questions,
};
use kv_correctness::dataset::{Choice, QuestionId, Split};
use kv_correctness::model::{Observation, Step, TokenLogprob};

/// One cell of the study.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Study {
    /// Questions in a run.
    pub(crate) questions: u32,
    /// Subjects in a run, of uneven size.
    pub(crate) subjects: u32,
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
    /// Whether a run may end before its last question.
    pub(crate) stopping: Stopping,
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

/// Whether a run may end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopping {
    /// Every question is asked.
    Never,
    /// The run ends when harm is beyond doubt.
    OnHarm,
}

/// How the runs of a study ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Endings {
    /// Runs.
    pub(crate) runs: u32,
    /// Called degraded.
    pub(crate) degraded: u32,
    /// Called equivalent.
    pub(crate) equivalent: u32,
    /// Called inconclusive.
    pub(crate) inconclusive: u32,
    /// Ended early; all of these are called degraded too.
    pub(crate) stopped: u32,
    /// Sum of the questions asked.
    pub(crate) asked: u64,
}

impl Study {
    /// Makes and judges all runs.
    pub(crate) fn run(&self) -> Endings {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let asked: Vec<Asked> = (0..self.questions).map(|number| self.ask(number)).collect();
        let right: Vec<bool> = asked.iter().map(|_| random.f64() < self.accuracy).collect();
        let letters = right.iter().zip(&asked).map(|(right, asked)| letter(asked.answer, *right));
        let baseline: Vec<Observation> =
            asked.iter().zip(letters).map(|(asked, letter)| observe(asked, 0, letter, -0.5)).collect();
        let arm = |name| arm(name, baseline.clone());
        let mut evidence = Evidence {
            baseline: arm(ArmName::Baseline),
            repeat: arm(ArmName::Repeat),
            control: None,
            store: arm(ArmName::Store),
            load: arm(ArmName::Load),
            server: None,
            kv: None,
            early_stop: None,
            batching: Batching::OneAtATime,
            fidelity: Fidelity::Exact,
            questions: asked,
        };
        let numbers: HashMap<QuestionId, usize> =
            evidence.questions.iter().enumerate().map(|(number, asked)| (asked.id.clone(), number)).collect();
        let order: Vec<usize> = shuffle_questions(numbers.keys().cloned().collect(), self.seed)
            .iter()
            .map(|id| numbers[id])
            .collect();
        let mut endings = Endings::default();
        for _ in 0..self.runs {
            self.judge_one_run(&mut random, &right, &order, &mut evidence, &mut endings);
        }
        endings
    }

    fn judge_one_run(
        &self,
        random: &mut fastrand::Rng,
        right: &[bool],
        order: &[usize],
        evidence: &mut Evidence,
        endings: &mut Endings,
    ) {
        let loaded = self.flip(random, right, &evidence.questions);
        let mut monitor = HarmMonitor::new(1);
        let mut load = Vec::new();
        evidence.early_stop = None;
        for &number in order {
            let asked = &evidence.questions[number];
            let (before, after) = (letter(asked.answer, right[number]), letter(asked.answer, loaded[number]));
            load.push(observe(asked, asked.expected.load, after, -0.6));
            let stop = monitor.observe(pair_predictions(asked.answer, Some(before), Some(after)));
            if stop.is_some() && self.stopping == Stopping::OnHarm {
                evidence.early_stop = stop;
                break;
            }
        }
        endings.runs += 1;
        endings.stopped += u32::from(evidence.early_stop.is_some());
        endings.asked += load.len() as u64;
        evidence.load = arm(ArmName::Load, load);
        let comparison = compare(evidence, &self.criteria()).expect("the evidence belongs together");
        match conclude([&comparison]).overall {
            Verdict::Degraded => endings.degraded += 1,
            Verdict::Equivalent => endings.equivalent += 1,
            Verdict::Inconclusive => endings.inconclusive += 1,
            Verdict::NotExercised | Verdict::Insensitive => unreachable!("all hits are as predicted"),
        }
    }

    /// Which answers are right after loading: each flips with its chance, so that on average harms and gains make up the
    /// flip rate and their difference the loss, whatever the number of right answers happens to be.
    fn flip(&self, random: &mut fastrand::Rng, right: &[bool], asked: &[Asked]) -> Vec<bool> {
        let common = f64::midpoint(1.0, self.loss / self.flip_rate);
        let rights: f64 = right.iter().map(|&right| f64::from(u8::from(right))).sum();
        let accuracy = rights / f64::from(self.questions);
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

    /// Questions of each subject.
    pub(crate) fn subject_sizes(&self) -> Vec<u32> {
        let mut sizes = vec![0; self.subjects as usize];
        (0..self.questions).for_each(|number| sizes[self.subject(number)] += 1);
        sizes
    }

    /// The subject of the question with this number; later ones are larger, up to twice the mean.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a small count")]
    fn subject(&self, number: u32) -> usize {
        let place = (f64::from(number) + 0.5) / f64::from(self.questions);
        (place.sqrt() * f64::from(self.subjects)) as usize
    }

    /// The question with this number.
    fn ask(&self, number: u32) -> Asked {
        let subject = format!("subject_{:02}", self.subject(number)).parse().expect("a subject's name");
        let id = QuestionId { subject, split: Split::Test, row: number + 1 };
        let expected = Expected { prompt_tokens: 600, store_at_most: 0, load: 512, control: 512 };
        Asked { id, answer: Choice::ALL[number as usize % 4], expected }
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
    Observation { question: asked.id.clone(), prompt_tokens, cached_tokens, letters, steps: vec![step] }
}

fn arm(name: ArmName, observations: Vec<Observation>) -> Arm {
    Arm::new(name, observations, |observation| {
        Choice::ALL.get(observation.steps[0].chosen.token as usize).copied()
    })
    .expect("one finite observation a question")
}
