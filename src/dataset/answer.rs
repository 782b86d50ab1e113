//! Reading the letter out of a generated answer.

use super::Choice;

/// The option that `text` names, or `None` when it names none.
///
/// After leading white space the first character must be `A`, `B`, `C` or `D`, and no letter or digit may follow it:
/// `A`, ` B.`, `C)` and `D\n` are answers. Everything else is unparsable, a class of its own that is never counted as a
/// letter:
/// - `Apple` and `A1` only begin with one;
/// - `a` is lower case, although the prompt asks for one of four capitals (and `a` is an English word);
/// - `(A)`, `**A**` and `Answer: A` put something before it. Searching further would find the `A` of `As I said`.
#[must_use]
pub fn parse_answer(text: &str) -> Option<Choice> {
    let mut characters = text.trim_start().chars();
    let first = characters.next()?;
    let choice = Choice::ALL.into_iter().find(|choice| choice.letter() == first)?;
    let alone = characters.next().is_none_or(|next| !next.is_alphanumeric());
    alone.then_some(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_that_stands_alone_is_an_answer() {
        let texts = ["A", " A", "\n\t A", "A.", "A)", "A\n", "A: because", "A, not B", "A A", "A\u{feff}"];
        for text in texts {
            assert_eq!(parse_answer(text), Some(Choice::A), "{text:?}");
        }
        for choice in Choice::ALL {
            assert_eq!(parse_answer(&format!(" {choice}")), Some(choice));
        }
    }

    #[test]
    fn everything_else_is_unparsable() {
        let texts = [
            "",
            " ",
            "a",
            "E",
            "Apple",
            "A1",
            "AB",
            "Aé",
            "(A)",
            "**A**",
            "\"A\"",
            "Answer: A",
            "1",
            "Α",
            "Ａ",
            "nan",
        ];
        for text in texts {
            assert_eq!(parse_answer(text), None, "{text:?}");
        }
    }
}
