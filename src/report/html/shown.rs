//! How verdicts and texts are shown, wherever they stand on the page. Main type: [`Badge`].

use crate::comparison::Verdict;
use crate::report::words::{is_character, one_line};

/// A verdict as it is shown: never by colour alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Badge {
    pub(super) class: &'static str,
    pub(super) symbol: &'static str,
    pub(super) words: &'static str,
}

impl From<Verdict> for Badge {
    fn from(verdict: Verdict) -> Self {
        let (class, symbol) = match verdict {
            Verdict::Equivalent => ("equivalent", "✓"),
            Verdict::Degraded => ("degraded", "✕"),
            Verdict::Inconclusive => ("inconclusive", "?"),
            Verdict::NotExercised => ("not-exercised", "∅"),
            Verdict::Insensitive => ("insensitive", "!"),
        };
        Self { class, symbol, words: verdict.name() }
    }
}

/// A text without what HTML cannot hold; line ends and tabs stay.
pub(super) fn clean(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => character,
        '\r' => '\n',
        _ if is_character(character) => character,
        _ => '\u{fffd}',
    };
    text.replace("\r\n", "\n").chars().map(shown).collect()
}

/// The same, for the names of things.
pub(super) fn label(text: &str) -> String {
    clean(&one_line(text))
}
