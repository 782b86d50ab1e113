//! A second look in words, for every format of the report.

use super::second_look::{ComputedKv, DifferingPart, FirstElement, KvDifference, SecondLook, Sight};

impl SecondLook {
    /// `law/test/3, load pass, chunk 2, model.layers.4.self_attn.attn, rank 0: 1 of 65536 elements differs, …`. Chunks are counted
    /// from 1 in words; tokens, heads and elements from 0.
    #[must_use]
    pub fn words(&self) -> String {
        let Self { question, pass, chunk, layer, rank, sight } = self;
        format!("{question}, {}, chunk {}, {layer}, rank {rank}: {}", pass.words(), chunk + 1, sight.words())
    }
}

impl Sight {
    /// What was seen, without where.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Gone { reason } => format!("not seen, since {reason}"),
            Self::Alone { zeros, reason } => {
                let what = if *zeros { "all of it is zeros" } else { "not all of it is zeros" };
                format!("{what}; it was held against nothing, since {reason}")
            }
            Self::Held(difference) => difference.words(),
        }
    }
}

impl KvDifference {
    fn words(&self) -> String {
        let against = match self.against {
            ComputedKv::Copy => {
                "Held against the prompt computed once more, which gave a copy of what had to be served, bit for bit."
            }
            ComputedKv::Repetition => {
                "Held against the prompt computed once more, which rounds otherwise in another batch and gave no copy of what had \
                 to be served: differences up to 1/32 of a head's largest value are left out."
            }
        };
        let unit = if self.unknown_layout.is_some() { "bytes" } else { "elements" };
        let Self { elements, differing_elements, differing_bits, .. } = self;
        let Some((first, (from, to, tokens))) = self.first.as_ref().zip(self.tokens) else {
            return format!("none of {elements} {unit} differs. {against}");
        };
        let verb = if *differing_elements == 1 { "differs" } else { "differ" };
        let bits = if *differing_bits == 1 { "bit" } else { "bits" };
        let place = match tokens {
            _ if self.unknown_layout.is_some() => format!("blocks of tokens {from} to {to} of the chunk"),
            1 => format!("token {from} of the chunk"),
            _ => format!("{tokens} tokens of the chunk ({from} to {to})"),
        };
        let first = self.name(first);
        let mut sentences = vec![format!(
            "{differing_elements} of {elements} {unit} {verb}, in {differing_bits} {bits}, in {place}. {first}"
        )];
        if self.unknown_layout.is_none() {
            sentences.push(format!("In all: {}.", self.parts_in_words()));
            sentences.push(self.largest_relative_error.map_or_else(
                || "What was served holds what is no number.".to_owned(),
                |error| format!("Largest error: {error:.2e} of the largest value of its head."),
            ));
        }
        sentences.extend(self.instead.iter().map(|instead| {
            format!("{} of {} rows that differ are {}.", instead.rows, instead.of_rows, instead.what)
        }));
        sentences.push(against.to_owned());
        sentences.join(" ")
    }

    fn name(&self, first: &FirstElement) -> String {
        let FirstElement { token, part, head, element, served, computed } = first;
        match &self.unknown_layout {
            Some(reason) => format!(
                "Tokens, heads and elements within a block cannot be told: {reason}. First: byte {element} of the block that begins \
                 with token {token} of the prompt, {served} where {computed} was computed."
            ),
            None => format!(
                "First: token {token} of the prompt, {part}, head {head}, element {element}, {served} where {computed} was \
                 computed."
            ),
        }
    }

    fn parts_in_words(&self) -> String {
        let part = |part: &DifferingPart| {
            let DifferingPart { part, elements, heads, of_heads } = part;
            format!("{part} {elements}, in {} of {of_heads} heads", heads.len())
        };
        self.parts.iter().map(part).collect::<Vec<_>>().join("; ")
    }
}
