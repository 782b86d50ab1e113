//! A part of a run with a verdict of its own, as every format of the report shows it. Main type: [`Section`].

use super::Talk;
use super::words::counted;
use crate::comparison::{Judgement, nats};
use crate::turns::Turn;

/// A verdict, why, and a table. Cells that are numbers stand at the right.
pub(super) struct Section {
    pub(super) title: String,
    pub(super) judgement: Judgement,
    /// How it was made, in a sentence or two.
    pub(super) explanation: String,
    pub(super) head: &'static [&'static str],
    pub(super) rows: Vec<Vec<String>>,
    pub(super) log: String,
}

const TURNS_HEAD: &[&str] = &[
    "Turn",
    "Prompt tokens",
    "Tokens served",
    "Served cells",
    "Of answers",
    "Wrong",
    "As an engine that kept its KV",
    "Off one that computed afresh, nats",
];

impl Section {
    /// What conversations over a route showed, turn by turn.
    pub(super) fn of_talk(talk: &Talk) -> Self {
        let findings = &talk.findings;
        let last = findings.turns.iter().map(|turn| turn.turn).max().unwrap_or(0);
        let rows = (1..=last).map(|number| {
            let of_turn: Vec<&Turn> = findings.turns.iter().filter(|turn| turn.turn == number).collect();
            turn_row(number, &of_turn, findings.restarted_before == Some(number))
        });
        let talks = findings.turns.iter().map(|turn| turn.conversation).max().unwrap_or(0);
        let stored = if findings.saves_answers { "answers stored" } else { "answers not stored" };
        Self {
            title: format!(
                "{} over {}, {}, {stored}",
                talk.model,
                talk.route,
                counted(findings.turns.len(), "turn")
            ),
            judgement: talk.judgement.clone(),
            explanation: format!(
                "{}, in chunks of {} tokens. Each prompt holds the one before it, the {} tokens that were answered, and a follow-up.{}",
                counted(usize::try_from(talks).unwrap_or(usize::MAX), "conversation"),
                findings.chunk_tokens,
                findings.answer_tokens,
                findings.restarted_before.map_or_else(String::new, |turn| format!(
                    " Ahead of turn {turn} the engine was ended, and another one went on."
                ))
            ),
            head: TURNS_HEAD,
            rows: rows.collect(),
            log: talk.log.to_string(),
        }
    }
}

fn turn_row(number: u32, turns: &[&Turn], is_restarted: bool) -> Vec<String> {
    let sum = |of: fn(&Turn) -> u64| turns.iter().map(|turn| of(turn)).sum::<u64>();
    let kept: Vec<_> = turns.iter().filter_map(|turn| turn.kept).collect();
    let equal = kept.iter().filter(|kept| kept.is_equal).count();
    let farthest = kept.iter().map(|kept| kept.farthest()).fold(0.0, f64::max);
    let kept = match kept.len() {
        0 => "–".to_owned(),
        count if count == equal => format!("{equal} of {count} equal"),
        count => format!("{equal} of {count} equal, {} nats off", nats(farthest)),
    };
    vec![
        format!("{number}{}", if is_restarted { " (another engine)" } else { "" }),
        sum(|turn| turn.prompt_tokens.into()).to_string(),
        format!("{} of {}", sum(|turn| turn.served_tokens.into()), sum(|turn| turn.expected_tokens.into())),
        sum(|turn| turn.cells.served).to_string(),
        sum(|turn| turn.cells.generated).to_string(),
        sum(|turn| turn.cells.wrong).to_string(),
        kept,
        nats(turns.iter().map(|turn| turn.fresh.letters).fold(0.0, f64::max)),
    ]
}
