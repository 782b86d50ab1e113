//! What the rung `kv` saw, in words.

use super::kv_evidence::STATE;
use super::provenance::{Provenance, WrongCell, WrongWhen};

impl WrongCell {
    /// `law/test/3, load pass, chunk 3, model.layers.4.self_attn.attn, rank 0: wrong when read and at the end; it is zeros`.
    /// Chunks are counted from 1 in words.
    #[must_use]
    pub fn words(&self) -> String {
        let pass = self.pass.words();
        let looks_like = self.looks_like.as_ref().map_or_else(String::new, |what| format!("; it is {what}"));
        let Self { question, chunk, layer, rank, when, window, .. } = self;
        let group = match *window {
            None => String::new(),
            Some(STATE) => " (recurrent state)".to_owned(),
            Some(tokens) => format!(" (sliding window of {tokens} tokens)"),
        };
        format!(
            "{question}, {pass}, chunk {}, {layer}{group}, rank {rank}: wrong {}{looks_like}",
            chunk + 1,
            when.words()
        )
    }
}

impl WrongWhen {
    /// In words that follow "wrong".
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Throughout => "when read and at the end",
            Self::WhenRead => "when read, and right at the end: it came too late",
            Self::AtTheEnd => "at the end, and right when read: something wrote over it",
            Self::SinceComputed => "at the end, and computed otherwise: something wrote over it",
        }
    }
}

impl Provenance {
    /// Of what was served: what prefixes of prompts read, and what is held against nothing, in words.
    pub(super) fn not_held(&self) -> String {
        let cuts = match self.served_to_cuts {
            0 => String::new(),
            some => format!(" Prefixes of stored prompts read {some} of them."),
        };
        let chunks = match self.left_out {
            0 => String::new(),
            some => {
                format!(" Left out by rule, as the last token of a prompt is computed again: {some} chunks.")
            }
        };
        let tokens = match self.uncovered_tokens {
            0 => String::new(),
            some => format!(" {some} served tokens lie in no chunk that is held: of them only outputs tell."),
        };
        cuts + &chunks + &tokens
    }
}
