//! Names and numbers as every format of the report writes them.

pub(super) use crate::comparison::nats;
use crate::comparison::{Flip, FlipKind, Rung, reach};
use crate::dataset::Choice;
use crate::suite::Suite;

/// A rung, and what it looks at.
pub(super) fn rung(rung: Rung) -> &'static str {
    match rung {
        Rung::Exercised => "hits: what was served against what must be",
        Rung::Kv => "kv: the bytes that were served against those that an engine computed",
        Rung::BitExact => "bits: log-probabilities against the control's",
        Rung::NearTies => "near ties: tokens that differ and were not nearly tied",
        Rung::Distribution => "distribution of the four letters",
        Rung::Answers => "answers: paired, against the margin",
        Rung::EarlyStop => "answers: harm beyond doubt",
        Rung::Faults => "planted faults",
    }
}

/// A rung in a word or two.
pub(super) fn short_rung(rung: Rung) -> &'static str {
    rung.short_name()
}

/// How many questions were asked, and what a fault must be for so many to meet it.
pub(super) fn asked(suite: &Suite, questions: u32) -> String {
    let most = suite.questions.map_or_else(String::new, |most| format!(", at most {most} of each subject"));
    format!("{questions} questions{most}: {}", reach(questions))
}

/// What kind of change a flip is.
pub(super) fn flip_kind(kind: FlipKind) -> &'static str {
    match kind {
        FlipKind::RightToWrong => "right to wrong",
        FlipKind::WrongToRight => "wrong to right",
        FlipKind::WrongToOtherWrong => "wrong to other wrong",
        FlipKind::ToUnparsable => "to unparsable",
        FlipKind::FromUnparsable => "from unparsable",
    }
}

/// The letters of a flip, of the baseline and of the load pass.
pub(super) fn flip_letters(flip: &Flip) -> (String, String) {
    let letter =
        |choice: Option<Choice>| choice.map_or_else(|| "none".to_owned(), |choice| choice.to_string());
    (letter(flip.baseline), letter(flip.load))
}

/// A share in per cent: `83.3`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// A difference of shares in points, with its sign: `-0.42`. What rounds to nothing has no sign to speak of: `+0.00`.
pub(super) fn points(difference: f64) -> String {
    let text = format!("{:+.2}", 100.0 * difference);
    if text == "-0.00" { "+0.00".to_owned() } else { text }
}

/// A p-value, never rounded to nothing.
pub(super) fn p_value(value: f64) -> String {
    if value < 0.001 { format!("{value:.1e}") } else { format!("{value:.3}") }
}

/// A text on one line, white space put together. Left out is what has no form and may disturb its surroundings: control
/// characters, those that turn the direction of writing, and code points that are no characters.
pub(super) fn one_line(text: &str) -> String {
    let turns = |character| matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|&character| is_character(character) && !turns(character)).collect()
}

/// Whether a code point is a character and not a control character.
pub(super) fn is_character(character: char) -> bool {
    !character.is_control() && !matches!(u32::from(character) & 0xffff, 0xfffe | 0xffff)
}

/// A text's last so many characters on one line; where the question itself stands in most texts.
pub(super) fn ending(text: &str, characters: usize) -> String {
    let text = one_line(text);
    let length = text.chars().count();
    let cut: String = text.chars().skip(length.saturating_sub(characters)).collect();
    if length > characters { format!("…{}", cut.trim_start()) } else { cut }
}

/// `1 question`, `2 questions`.
pub(super) fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
