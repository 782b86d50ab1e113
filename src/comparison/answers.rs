//! Rung 4: right and wrong answers, paired by question. Main type: [`Answers`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::{Choice, QuestionId};
use crate::stats::{
    HarmEvidence, Interval, PairOutcome, PairedTable, clopper_pearson, cluster_change_p_value,
    cluster_interval, cluster_standard_error, lower_bound, sign_flip_loss_p_value, sum_by_cluster,
    tango_change_p_value, tango_interval,
};

use super::criteria::{
    CONFIDENCE, Criteria, EQUIVALENCE_CONFIDENCE, FLIP_CORRELATION, LOSS_SHARE, MARGINS_ABOVE_GUESSING,
};
use super::difference::count;
use super::evidence::{Answered, Case};
use super::plan::count_needed;

/// How many answers are right, in each arm and pair by pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The letters that the models wrote. These decide.
    pub generated: Scoring,
    /// The letters with the largest log-probability as first token; always defined. These inform.
    pub most_likely: Scoring,
    /// Share of right answers that one letter, always given, would reach: at least a quarter.
    pub guessing: f64,
    /// The accuracy that the baseline's lower 95 % bound must exceed for answers to decide.
    pub needed_accuracy: f64,
    /// One-sided exact 95 % lower bound of the baseline's accuracy.
    pub baseline_at_least: f64,
    /// Questions that equivalence within the margin needs, counted as in the plan, at the larger of the assumed and the
    /// seen flip rate.
    pub questions_needed: u32,
    /// Every question whose generated letter differs between baseline and load pass.
    pub flips: Vec<Flip>,
}

/// One way of reading letters from answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scoring {
    /// Accuracy of the baseline.
    pub baseline: Accuracy,
    /// Accuracy of the control.
    pub control: Option<Accuracy>,
    /// Accuracy of the load pass.
    pub load: Accuracy,
    /// The load pass against the baseline: shows equivalence.
    pub against_baseline: PairedTest,
    /// The load pass against its reference, the matched control or else the baseline: shows a loss.
    pub against_reference: PairedTest,
    /// The repeat against the baseline: pure noise.
    pub repeat_noise: PairedTable,
    /// The control against the baseline: what vLLM's own prefix cache changes.
    pub control_noise: Option<PairedTable>,
}

/// Right, wrong and unparsable answers of one arm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Accuracy {
    /// Answers that name the published letter.
    pub right: u32,
    /// Answers that name another letter.
    pub wrong: u32,
    /// Answers that name no letter; never right.
    pub unparsable: u32,
    /// Right answers as a share of all.
    pub share: f64,
    /// Exact 95 % interval of that share.
    pub interval: Interval,
}

/// A paired table and all that is computed from it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PairedTest {
    /// The counts.
    pub table: PairedTable,
    /// (gains − harms) ÷ questions; a loss is negative.
    pub difference: f64,
    /// Its standard error if questions are independent.
    pub standard_error: f64,
    /// Tango's 90 % interval.
    pub interval: Interval,
    /// Number of subjects.
    pub subjects: u32,
    /// Standard error with subjects as clusters; `None` for fewer than two.
    pub cluster_standard_error: Option<f64>,
    /// 90 % interval with subjects as clusters; `None` for fewer than two.
    pub cluster_interval: Option<Interval>,
    /// Exact one-sided McNemar p-value for a loss.
    pub loss_p_value: f64,
    /// Exact two-sided McNemar p-value.
    pub two_sided_p_value: f64,
    /// Exact one-sided p-value for a loss that exchanges whole subjects; says nothing for a single one.
    pub subject_loss_p_value: f64,
    /// The larger of the p-values, by questions and by subjects, for a change that is no larger than the margin.
    #[serde(default)]
    pub change_p_value: f64,
    /// Evidence for harm that may be read at any time, over the questions in the order of their names.
    pub e_value: f64,
    /// Whether both intervals lie within the margin.
    pub within_margin: bool,
    /// Whether both intervals lie beyond the margin, on either side.
    pub beyond_margin: bool,
}

/// A question whose letter changed between baseline and load pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flip {
    /// Which question.
    pub question: QuestionId,
    /// What kind of change.
    pub kind: FlipKind,
    /// The published answer.
    pub published: Choice,
    /// The baseline's letter, `None` when unparsable.
    pub baseline: Option<Choice>,
    /// The load pass's letter, `None` when unparsable.
    pub load: Option<Choice>,
}

/// Kinds of changed letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlipKind {
    /// Right, then wrong.
    RightToWrong,
    /// Wrong, then right.
    WrongToRight,
    /// Wrong, then wrong otherwise.
    WrongToOtherWrong,
    /// A letter, then none.
    ToUnparsable,
    /// No letter, then one.
    FromUnparsable,
}

/// What a pair of answers shows; an unparsable answer is never right.
#[must_use]
pub fn pair_predictions(published: Choice, without: Option<Choice>, with: Option<Choice>) -> PairOutcome {
    match (without == Some(published), with == Some(published)) {
        (true, true) => PairOutcome::BothRight,
        (true, false) => PairOutcome::Harm,
        (false, true) => PairOutcome::Gain,
        (false, false) => PairOutcome::BothWrong,
    }
}

/// Scores every arm both ways and tests the pairs.
pub(super) fn score_answers(cases: &[Case<'_>], criteria: &Criteria) -> Answers {
    let generated = score(cases, criteria, |answered| answered.answer);
    let most_likely =
        score(cases, criteria, |answered| Some(most_likely_letter(&answered.observation.letters)));
    let published = |choice: Choice| count(cases.iter().filter(|case| case.asked.answer == choice).count());
    let commonest = Choice::ALL.into_iter().map(published).max().unwrap_or(0);
    let guessing = (f64::from(commonest) / f64::from(count(cases.len()))).max(0.25);
    let baseline_at_least = lower_bound(generated.baseline.right, count(cases.len()), CONFIDENCE);
    let flip_rate = generated.against_baseline.table.flip_rate().max(criteria.assumed_flip_rate);
    Answers {
        guessing,
        needed_accuracy: guessing + MARGINS_ABOVE_GUESSING * criteria.margin,
        baseline_at_least,
        questions_needed: count_needed(&subject_sizes(cases), flip_rate, criteria).questions,
        flips: cases.iter().filter_map(find_flip).collect(),
        generated,
        most_likely,
    }
}

/// Questions of each subject.
fn subject_sizes(cases: &[Case<'_>]) -> Vec<u32> {
    let pairs = cases.iter().map(|case| (&case.asked.id.subject, 0));
    sum_by_cluster(pairs).into_iter().map(|sum| sum.pairs).collect()
}

fn score<'a>(
    cases: &[Case<'a>],
    criteria: &Criteria,
    read: impl Fn(&'a Answered) -> Option<Choice>,
) -> Scoring {
    let letters = |arm: fn(&Case<'a>) -> &'a Answered| -> Vec<Option<Choice>> {
        cases.iter().map(|case| read(arm(case))).collect()
    };
    let (baseline, repeat) = (letters(|case| case.baseline), letters(|case| case.repeat));
    let (reference, load) = (letters(Case::reference), letters(|case| case.load));
    let control: Option<Vec<Option<Choice>>> = cases.iter().map(|case| case.control.map(&read)).collect();
    let pair = |without: &[Option<Choice>], with: &[Option<Choice>]| -> Vec<PairOutcome> {
        let pairs = cases.iter().zip(without.iter().zip(with));
        pairs.map(|(case, (without, with))| pair_predictions(case.asked.answer, *without, *with)).collect()
    };
    let test = |without: &[Option<Choice>]| PairedTest::of(cases, &pair(without, &load), criteria);
    Scoring {
        baseline: Accuracy::of(cases, &baseline),
        control: control.as_ref().map(|control| Accuracy::of(cases, control)),
        load: Accuracy::of(cases, &load),
        against_baseline: test(&baseline),
        against_reference: test(&reference),
        repeat_noise: pair(&baseline, &repeat).into_iter().collect(),
        control_noise: control.map(|control| pair(&baseline, &control).into_iter().collect()),
    }
}

impl Accuracy {
    fn of(cases: &[Case<'_>], letters: &[Option<Choice>]) -> Self {
        let right = count(
            cases.iter().zip(letters).filter(|(case, letter)| **letter == Some(case.asked.answer)).count(),
        );
        let unparsable = count(letters.iter().filter(|letter| letter.is_none()).count());
        let asked = count(letters.len());
        Self {
            right,
            wrong: asked - right - unparsable,
            unparsable,
            share: f64::from(right) / f64::from(asked.max(1)),
            interval: clopper_pearson(right, asked, CONFIDENCE),
        }
    }
}

impl PairedTest {
    fn of(cases: &[Case<'_>], outcomes: &[PairOutcome], criteria: &Criteria) -> Self {
        let table: PairedTable = outcomes.iter().copied().collect();
        let subjects = || cases.iter().map(|case| &case.asked.id.subject);
        let clusters = sum_by_cluster(subjects().zip(outcomes.iter().map(|outcome| outcome.change())));
        let mut evidence = HarmEvidence::new(FLIP_CORRELATION);
        subjects().zip(outcomes).for_each(|(subject, outcome)| evidence.observe(subject, *outcome));
        let by_subject = cluster_change_p_value(&clusters, criteria.margin).unwrap_or(0.0);
        let interval = tango_interval(table, EQUIVALENCE_CONFIDENCE);
        let cluster_interval = cluster_interval(&clusters, EQUIVALENCE_CONFIDENCE);
        let both = |holds: fn(Interval, f64) -> bool| {
            [Some(interval), cluster_interval]
                .into_iter()
                .flatten()
                .all(|interval| holds(interval, criteria.margin))
        };
        Self {
            table,
            difference: table.difference(),
            standard_error: table.standard_error(),
            interval,
            subjects: count(clusters.len()),
            cluster_standard_error: cluster_standard_error(&clusters),
            cluster_interval,
            loss_p_value: table.loss_p_value(),
            two_sided_p_value: table.two_sided_p_value(),
            subject_loss_p_value: sign_flip_loss_p_value(&clusters),
            change_p_value: tango_change_p_value(table, criteria.margin).max(by_subject),
            e_value: evidence.value(),
            within_margin: both(Interval::lies_within),
            beyond_margin: both(Interval::lies_outside),
        }
    }

    /// The p-value that stands for a loss: it must be seen both question by question and subject by subject, so a few
    /// subjects that move as one do not pass for many questions. A single subject leaves only the questions.
    #[must_use]
    pub fn robust_loss_p_value(self) -> f64 {
        if self.subjects < 2 { self.loss_p_value } else { self.loss_p_value.max(self.subject_loss_p_value) }
    }

    /// The p-value for "neither a loss nor a change beyond the margin", at which Holm's procedure looks: the smaller of both,
    /// each divided by its share of the chance of a false alarm.
    #[must_use]
    pub fn harm_p_value(self) -> f64 {
        (self.robust_loss_p_value() / LOSS_SHARE).min(self.change_p_value / (1.0 - LOSS_SHARE)).min(1.0)
    }

    /// Whether it is the loss that [`harm_p_value`](Self::harm_p_value) stands for, not the change beyond the margin.
    pub(super) fn shows_loss_first(self) -> bool {
        self.robust_loss_p_value() / LOSS_SHARE <= self.change_p_value / (1.0 - LOSS_SHARE)
    }
}

/// The letter with the largest log-probability; the first of equal ones.
fn most_likely_letter(letters: &[f64; 4]) -> Choice {
    let better =
        |best: Choice, next: Choice| if letters[next.index()] > letters[best.index()] { next } else { best };
    Choice::ALL.into_iter().fold(Choice::A, better)
}

fn find_flip(case: &Case<'_>) -> Option<Flip> {
    let published = case.asked.answer;
    let (baseline, load) = (case.baseline.answer, case.load.answer);
    let kind = match (baseline, load) {
        (None, None) => return None,
        (Some(before), Some(after)) if before == after => return None,
        (Some(_), None) => FlipKind::ToUnparsable,
        (None, Some(_)) => FlipKind::FromUnparsable,
        (Some(before), Some(_)) if before == published => FlipKind::RightToWrong,
        (Some(_), Some(after)) if after == published => FlipKind::WrongToRight,
        (Some(_), Some(_)) => FlipKind::WrongToOtherWrong,
    };
    Some(Flip { question: case.asked.id.clone(), kind, published, baseline, load })
}
