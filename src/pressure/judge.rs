//! The verdict on what an engine showed under pressure.

use super::findings::{PressureEvent, PressureFindings, SeedFindings};
use crate::comparison::{Judgement, Outcome, Rung, Verdict, WrongCell};

impl PressureFindings {
    /// What it amounts to. Harm comes first; then whatever makes a pass mean nothing: an event that never happened, KV that was not
    /// seen, service that was missing although nothing was in its way.
    #[must_use]
    pub fn judgement(&self) -> Judgement {
        let decided = self.seeds.iter().find_map(|seed| self.judge_harm(seed));
        decided.or_else(|| self.judge_exercise()).unwrap_or_else(|| self.judge_right())
    }

    fn judge_harm(&self, seed: &SeedFindings) -> Option<Judgement> {
        let (traced, number) = (&seed.kv, seed.seed);
        let wrong = traced.wrong_cells() + traced.changed;
        let again = format!("`--pressure --pressure-seed {number}` asks that schedule alone.");
        if wrong > 0 {
            let first = traced.first.first().map_or_else(String::new, |cell| self.cell_words(cell));
            let reason = format!(
                "Seed {number}: {} of {} served and {} of {} computed cells (a block in a layer on a rank) hold other bytes than any \
                 engine computed for their tokens, or did not stay as they were. First: {first}.",
                traced.wrong_cells(),
                traced.served,
                traced.changed,
                traced.computed
            );
            return Some(judgement(Verdict::Degraded, Rung::Kv, reason, again));
        }
        let beyond = seed.beyond.first()?;
        let reason = format!(
            "Seed {number}: {} requests were served what nobody had stored; the first, request {}, {} tokens where {} had been computed.",
            seed.served_beyond, beyond.request, beyond.served, beyond.at_most
        );
        Some(judgement(Verdict::Degraded, Rung::Exercised, reason, again))
    }

    fn judge_exercise(&self) -> Option<Judgement> {
        let not =
            |rung, reason, next: &str| Some(judgement(Verdict::NotExercised, rung, reason, next.to_owned()));
        if let Some(seed) = self.seeds.iter().find(|seed| seed.kv.outcome != Outcome::Passed) {
            let reason = format!("Seed {}: {}", seed.seed, seed.kv.words);
            return not(Rung::Kv, reason, "Look at the engine's log: what is served must be seen.");
        }
        if let Some((seed, short)) = self.seeds.iter().find_map(|seed| Some((seed.seed, seed.short.first()?)))
        {
            let reason = format!(
                "Seed {seed}: request {} was served {} tokens where {} were stored, before there was any pressure.",
                short.request, short.served, short.at_least
            );
            return not(Rung::Exercised, reason, "Look at the server's log: what was stored is not found.");
        }
        let failed: u64 = self.seeds.iter().map(|seed| seed.failed_chunks + seed.events.failed_loads).sum();
        if failed > 0 {
            let reason = format!(
                "{failed} chunks or loads were promised and not given, so they were computed instead."
            );
            return not(Rung::Exercised, reason, "Look at the server's log: its tier loses what it has.");
        }
        if self.loads_fail {
            let reason = "Loads are made to fail on this route, and none was seen to.".to_owned();
            return not(
                Rung::Exercised,
                reason,
                "Give the suite's `[pressure]` less memory or more requests.",
            );
        }
        let missing: Vec<&str> = self.missing().into_iter().map(PressureEvent::name).collect();
        if missing.is_empty() {
            return None;
        }
        let reason = format!("There were none of these, and there must be: {}.", missing.join(", "));
        not(
            Rung::Exercised,
            reason,
            "Give the suite's `[pressure]` fewer blocks, less memory, more requests or more seeds.",
        )
    }

    fn judge_right(&self) -> Judgement {
        let (served, events) = (self.seeds.iter().map(|seed| seed.kv.served).sum::<u64>(), self.events());
        let reason = format!(
            "Each of {served} served cells (a block in a layer on a rank) holds the bytes that an engine computed for its tokens, when \
             attention begins to read it and when its request ends, through {} preemptions, {} of them taken up again from the cache; no \
             request was served what nobody had computed.",
            events.preemptions, events.resumed_loads
        );
        judgement(Verdict::Equivalent, Rung::Kv, reason, "Nothing to do.".to_owned())
    }

    /// `request 17, block 5 (tokens 128 to 159), model.layers.4.self_attn.attn, rank 0: wrong when read and at the end`. Blocks are
    /// counted from 1 in words.
    #[must_use]
    pub fn cell_words(&self, cell: &WrongCell) -> String {
        let WrongCell { question, chunk, layer, rank, when, looks_like, .. } = cell;
        let (first, piece) = (chunk.saturating_mul(self.piece_tokens), self.piece_tokens);
        let looks_like = looks_like.as_ref().map_or_else(String::new, |what| format!("; it is {what}"));
        format!(
            "request {}, block {} (tokens {first} to {}), {layer}, rank {rank}: wrong {}{looks_like}",
            question.row,
            chunk + 1,
            first + piece.saturating_sub(1),
            when.words()
        )
    }
}

fn judgement(verdict: Verdict, decided_by: Rung, reason: String, next_step: String) -> Judgement {
    Judgement { verdict, decided_by, reason, next_step }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
