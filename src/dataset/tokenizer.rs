//! Text to token ids and back, as the model's own `tokenizer.json` has it. Main type: [`Tokenizer`].

use std::io;

use camino::Utf8Path;

use super::Choice;

/// A model's tokenizer, without the truncation and padding that its file may ask for.
#[derive(Debug, Clone)]
pub struct Tokenizer(tokenizers::Tokenizer);

/// Why a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file could not be read; the source names it.
    #[error("read the tokenizer")]
    Read(#[from] io::Error),
    /// The file is not a tokenizer.
    #[error("parse the tokenizer: {0}")]
    Parse(String),
    /// A text that the tokenizer does not take.
    #[error("tokenize a text: {0}")]
    Encode(String),
    /// Ids that the tokenizer does not take.
    #[error("turn tokens into text: {0}")]
    Decode(String),
    /// A letter that is not one token of its own.
    #[error(
        "find the token of the answer letter {letter}: after `Answer:`, ` {letter}` gives the tokens {tokens:?}"
    )]
    Letter {
        /// The letter.
        letter: Choice,
        /// What it gives after the prompt's last words; without the letter's own token these ids say why.
        tokens: Vec<u32>,
    },
}

impl TokenizerError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Read(_) => "give the folder of a model that holds a `tokenizer.json`",
            Self::Parse(_) => {
                "the file must be the `tokenizer.json` of the model (not `tokenizer_config.json` or `tokenizer.model`)"
            }
            Self::Encode(_) | Self::Decode(_) => {
                "check that `tokenizer.json` belongs to the model; fetch it again"
            }
            Self::Letter { .. } => {
                "answers are scored by one token a letter; choose a model whose vocabulary holds ` A`, ` B`, ` C` and ` D`"
            }
        };
        Some(hint.to_owned())
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When the file cannot be read or is not a tokenizer.
    pub fn load(path: &Utf8Path) -> Result<Self, TokenizerError> {
        Self::from_bytes(&fs_err::read(path)?)
    }

    /// Takes the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is not a tokenizer.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let parse = |error: tokenizers::Error| TokenizerError::Parse(error.to_string());
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(parse)?;
        // Either would change prompts without a word.
        tokenizer.with_truncation(None).map_err(parse)?.with_padding(None);
        Ok(Self(tokenizer))
    }

    /// Token ids of a whole text, with the special tokens that the model puts around a text.
    ///
    /// # Errors
    /// When the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.0.encode_fast(text, true).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of generated tokens, without special tokens.
    ///
    /// # Errors
    /// When the ids do not form a text.
    pub fn decode(&self, token_ids: &[u32]) -> Result<String, TokenizerError> {
        self.0.decode(token_ids, true).map_err(|error| TokenizerError::Decode(error.to_string()))
    }

    /// The token of each letter with its space, in the order of [`Choice::ALL`], as it stands after `Answer:`.
    ///
    /// # Errors
    /// When a letter is not exactly one token of its own.
    pub fn letter_tokens(&self) -> Result<[u32; 4], TokenizerError> {
        let encode = |text: &str| -> Result<Vec<u32>, TokenizerError> {
            let encoding = self.0.encode_fast(text, false);
            Ok(encoding.map_err(|error| TokenizerError::Encode(error.to_string()))?.get_ids().to_vec())
        };
        let question_end = encode("Answer:")?;
        let mut letter_tokens = [0; 4];
        for letter in Choice::ALL {
            let answered = encode(&format!("Answer: {letter}"))?;
            letter_tokens[letter.index()] = match answered.strip_prefix(question_end.as_slice()) {
                Some(&[token]) if self.is_spelled_with(token, letter) => token,
                Some(tokens) => return Err(TokenizerError::Letter { letter, tokens: tokens.to_vec() }),
                None => return Err(TokenizerError::Letter { letter, tokens: answered }),
            };
        }
        Ok(letter_tokens)
    }

    /// Whether a token ends in the letter, as the one for unknown words does not.
    fn is_spelled_with(&self, token: u32, letter: Choice) -> bool {
        self.0.id_to_token(token).is_some_and(|spelling| spelling.ends_with(letter.letter()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{byte_tokenizer, tokenizer_json};
    use super::*;

    #[test]
    fn special_tokens_are_added_once_and_dropped_again() {
        let tokenizer = byte_tokenizer();
        let ids = tokenizer.encode("é A").unwrap();
        assert_eq!(ids.len(), 4);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "é A");
        assert_eq!(ids[1..], tokenizer.encode("é A").unwrap()[1..]);
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let mut json = tokenizer_json(&["A", "B", "C", "D"]);
        json["truncation"] = serde_json::json!(
            {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        );
        json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("0123456789").unwrap().len(), 11);
    }

    #[test]
    fn each_letter_has_one_token() {
        let tokenizer = byte_tokenizer();
        let letters = tokenizer.letter_tokens().unwrap();
        assert_eq!(letters.map(|id| tokenizer.decode(&[id]).unwrap()), [" A", " B", " C", " D"]);
    }

    #[test]
    fn a_letter_of_two_tokens_is_refused() {
        let json = tokenizer_json(&["A", "B", "D"]).to_string();
        let error = Tokenizer::from_bytes(json.as_bytes()).unwrap().letter_tokens().unwrap_err();
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
        find the token of the answer letter C: after `Answer:`, ` C` gives the tokens [220, 34]
        hint: answers are scored by one token a letter; choose a model whose vocabulary holds ` A`, ` B`, ` C` and ` D`
        ");
    }

    #[test]
    fn a_letter_outside_the_vocabulary_is_refused() {
        let json = serde_json::json!({"version": "1.0", "pre_tokenizer": {"type": "Whitespace"}, "model":
            {"type": "WordLevel", "unk_token": "?", "vocab": {"?": 0, "A": 1, "B": 2, "C": 3}}});
        let error = Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap().letter_tokens().unwrap_err();
        assert!(matches!(error, TokenizerError::Letter { letter: Choice::D, .. }), "{error}");
    }

    #[test]
    fn another_file_is_refused() {
        let error = Tokenizer::from_bytes(b"{\"model_type\": \"llama\"}").unwrap_err();
        insta::assert_snapshot!(format!("{error}\nhint: {}", error.hint().unwrap()), @r"
        parse the tokenizer: expected `,` or `}` at line 1 column 14
        hint: the file must be the `tokenizer.json` of the model (not `tokenizer_config.json` or `tokenizer.model`)
        ");
        let error = Tokenizer::load("nowhere/tokenizer.json".into()).unwrap_err();
        assert!(matches!(error, TokenizerError::Read(_)));
    }
}
