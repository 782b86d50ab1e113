//! Which questions of a finding are worth asking again. Main function: [`differing_questions`].

use super::Finding;
use crate::dataset::QuestionId;

/// The questions that a finding names, those first that the sharper rungs name: served wrongly, other KV than
/// was computed, no numbers, other bits than the control's or the baseline's, another token, other letters, another answer. None twice.
#[must_use]
pub fn differing_questions(finding: &Finding) -> Vec<QuestionId> {
    let comparison = &finding.comparison;
    let bits = &comparison.bit_exact;
    let without_numbers = comparison.without_numbers.iter().map(|without| &without.first);
    let wrong = comparison.kv.first.iter().map(|cell| &cell.question);
    let offenders = comparison.exercised.offenders.iter().map(|offender| &offender.question);
    let tallies = [&bits.against_control, &bits.store_pass, &bits.against_baseline];
    let differing = tallies.into_iter().flat_map(|tally| &tally.first).map(|difference| &difference.question);
    let parted = comparison.near_ties.first.iter().map(|parted| &parted.question);
    let flips = comparison.answers.flips.iter().map(|flip| &flip.question);
    let mut questions: Vec<QuestionId> = Vec::new();
    let sharper = offenders.chain(wrong).chain(without_numbers).chain(differing).chain(parted);
    for question in sharper.chain(&comparison.distribution.farthest).chain(flips) {
        if !questions.contains(question) {
            questions.push(question.clone());
        }
    }
    questions
}
