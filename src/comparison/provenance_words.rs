//! What the rung `kv` saw, in words.

use super::provenance::{Demand, Provenance, WrongCell, WrongWhen};

impl WrongCell {
    /// `law/test/3, load pass, chunk 3, model.layers.4.self_attn.attn, rank 0: wrong when read and at the end; it is zeros`.
    /// Chunks are counted from 1 in words.
    #[must_use]
    pub fn words(&self) -> String {
        let pass = self.pass.words();
        let looks_like = self.looks_like.as_ref().map_or_else(String::new, |what| format!("; it is {what}"));
        let Self { question, chunk, layer, rank, when, .. } = self;
        format!(
            "{question}, {pass}, chunk {}, {layer}, rank {rank}: wrong {}{looks_like}",
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
    /// What was served and is held against nothing, in words.
    pub(super) fn not_held(&self) -> String {
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
        chunks + &tokens
    }
}

pub(super) fn describe(traced: &Provenance, demand: Demand) -> String {
    if traced.missing > 0 {
        return format!("{} chunks were served and not digested, so this proves nothing.", traced.missing);
    }
    if traced.not_digested > 0 {
        return format!("{} served cells have no digest, so this proves nothing.", traced.not_digested);
    }
    if traced.served == 0 {
        return "No whole chunk was served, so there is nothing to hold against its origin.".to_owned();
    }
    if demand == Demand::Unchanged {
        return format!(
            "KV is stored with loss, so served chunks are no copies; {} of {} cells changed between being read and the \
             end of their request.",
            traced.wrong_when_read, traced.served
        );
    }
    if traced.without_origin > 0 {
        return format!(
            "{} of {} served cells have a prefix that no engine was seen to compute.",
            traced.without_origin, traced.served
        );
    }
    format!(
        "{} of {} served cells (a chunk in a layer on a rank) are {}, when read and at the end.{}",
        traced.served - traced.wrong_cells(),
        traced.served,
        match demand {
            Demand::AsStored =>
                "what the declared arithmetic of the lossy storage makes of computed ones, bit for bit",
            Demand::Copy | Demand::Unchanged => "copies of computed ones",
        },
        traced.not_held()
    )
}
