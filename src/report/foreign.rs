//! What readers of foreign KV got, as every format of the report shows it. Main function: [`foreign_rows`].

use super::words::{counted, nats, one_line};
use crate::foreign::{ForeignFindings, Meaning, ReadingOutcome};

/// A reader.
pub(super) struct ForeignRow {
    pub(super) differs_in: String,
    /// Tokens, or a dash.
    pub(super) served: String,
    pub(super) expected: u64,
    /// The largest movement of a letter in nats, or a dash.
    pub(super) movement: String,
    pub(super) kind: Meaning,
    /// What it means; of a reader that failed, why.
    pub(super) meaning: String,
}

/// The readers, in order.
pub(super) fn foreign_rows(findings: &ForeignFindings) -> Vec<ForeignRow> {
    let rows = findings.readings.iter().map(|reading| {
        let (served, movement, why) = match &reading.outcome {
            ReadingOutcome::Answered { served_tokens, largest_difference, .. } => {
                (served_tokens.to_string(), largest_difference.map(nats), String::new())
            }
            ReadingOutcome::Failed { message } | ReadingOutcome::NotStored { message } => {
                ("–".to_owned(), None, format!(": {}", one_line(message)))
            }
        };
        ForeignRow {
            differs_in: reading.words(),
            served,
            expected: reading.expected_tokens,
            movement: movement.unwrap_or_else(|| "–".to_owned()),
            kind: findings.meaning(reading),
            meaning: format!("{}{why}{}", findings.verdict_words(reading), one_line(&reading.mend_words())),
        }
    });
    rows.collect()
}

/// The whole in a few words.
pub(super) fn foreign_words(findings: &ForeignFindings) -> String {
    let found = findings.findings().len();
    let found = (found > 0).then(|| format!("{} about LMCache", counted(found, "finding")).to_uppercase());
    let void =
        (!findings.control_holds()).then(|| "PROVES NOTHING, since its control was not served".to_owned());
    let words: Vec<String> = found.into_iter().chain(void).collect();
    if words.is_empty() { "nothing served".to_owned() } else { words.join("; ") }
}
