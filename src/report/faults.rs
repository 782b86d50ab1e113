//! Planted faults as tables in Markdown. Main functions: [`tabulate_faults`], [`describe_catalogue`].

use std::fmt::{self, Write};

use crate::comparison::Rung;
use crate::fault::{Applies, CATALOGUE, Fate, Fault, FaultFindings, Must, Trial};

/// Every planting and what each rung said of it, one line each; the identity's are put together.
#[must_use]
pub fn tabulate_faults(findings: &FaultFindings) -> String {
    let mut text = String::new();
    write_table(&mut text, findings).expect("a string can be written to");
    text
}

fn write_table(text: &mut String, findings: &FaultFindings) -> fmt::Result {
    writeln!(
        text,
        "| planted | bits of a chunk | outcome | seen by | KV cells named | questions that differ | tokens served | s |"
    )?;
    writeln!(text, "|---|---|---|---|---|---|---|---|")?;
    for (trial, times) in group_trials(findings) {
        let times = if times == 1 { String::new() } else { format!(", {times} times") };
        let seen_by = seen_words(trial, Rung::short_name);
        writeln!(
            text,
            "| {}{times} | {} | {} | {} | {} | {} of {} | {} of {} | {} |",
            trial.name(),
            trial.changed_bits,
            emphasised(trial.fate),
            if seen_by.is_empty() { "–" } else { &seen_by },
            trial.located_words().unwrap_or_else(|| "–".to_owned()),
            trial.differing,
            trial.questions,
            trial.served_tokens,
            trial.predicted_tokens,
            trial.seconds.map_or_else(|| "–".to_owned(), |seconds| format!("{seconds:.1}")),
        )?;
    }
    Ok(())
}

/// The rungs that see a planting on their own; those that saw something in a part of its passes say in how many.
pub(super) fn seen_words(trial: &Trial, name: fn(Rung) -> &'static str) -> String {
    let all = trial.seen_by.iter().map(|rung| name(*rung).to_owned());
    let some = trial.seen_in.iter();
    let some = some.map(|(rung, times)| format!("{} in {times} of {} passes", name(*rung), trial.passes));
    all.chain(some).collect::<Vec<_>>().join(", ")
}

/// What became of a fault that was planted in turns, one place in each prompt at a time.
pub(super) fn describe_turns(trial: &Trial) -> String {
    let named = trial.located_words().unwrap_or_else(|| format!("none of {}", trial.chunks));
    let seen = trial.seen_by.iter().chain(trial.seen_in.keys());
    let others = seen.filter(|rung| **rung != Rung::Kv).map(|rung| {
        let times = trial.seen_in.get(rung).unwrap_or(&trial.passes);
        format!("; {} in {times} of {} passes", rung.short_name(), trial.passes)
    });
    format!(
        "kv names {named} at their own chunk and layer; log-probabilities move in {} of {} answers{}",
        trial.differing,
        trial.questions,
        others.collect::<String>()
    )
}

/// The catalogue as plain text: each fault, what it does, what it stands for and what has to see it.
#[must_use]
pub fn describe_catalogue() -> String {
    let mut text = String::new();
    for fault in CATALOGUE {
        let Fault { name, what, stands_for, applies, must, doses, in_memory, .. } = fault;
        let models = match applies {
            Applies::Both => "",
            Applies::Dense => ", dense models",
            Applies::Mla => ", MLA models",
            Applies::SeveralHeads => ", dense models with several KV heads on a rank",
            Applies::SeveralShards => ", models whose KV is sharded over ranks",
        };
        let must = match must {
            Must::BeSeen(rung) => format!("must be seen, first by {}", rung.short_name()),
            Must::ReorderAlone => "may be seen, by bits alone".to_owned(),
            Must::ChangeNothing => "must stay equivalent".to_owned(),
            Must::ServeNothing => "must be not exercised".to_owned(),
        };
        let memory = if *in_memory { ", one of them also in memory" } else { "" };
        let plantings: usize = doses.iter().map(|(_, _, spots)| spots.len()).sum();
        writeln!(
            text,
            "{name}{models}\n  {what}\n  stands for: {stands_for}\n  {must}; {plantings} planted{memory}"
        )
        .expect("a string can be written to");
    }
    text
}

/// Plantings in order with how often each was planted with the same outcome in a row.
pub(super) fn group_trials(findings: &FaultFindings) -> Vec<(&Trial, usize)> {
    let same = |one: &Trial, other: &Trial| one.name() == other.name() && one.fate == other.fate;
    findings.trials.chunk_by(same).filter_map(|trials| Some((trials.first()?, trials.len()))).collect()
}

/// What became of a planting, what is wrong in bold.
fn emphasised(fate: Fate) -> String {
    match fate {
        Fate::Survived | Fate::NotRead | Fate::FalseAlarm => format!("**{}**", fate_words(fate)),
        Fate::Killed | Fate::Refused | Fate::Neutral | Fate::Harmless => fate_words(fate).to_owned(),
    }
}

/// What became of a planting.
pub(super) fn fate_words(fate: Fate) -> &'static str {
    match fate {
        Fate::Killed => "seen",
        Fate::Refused => "seen: no number",
        Fate::Survived => "survived",
        Fate::Neutral => "neutral",
        Fate::NotRead => "not read",
        Fate::Harmless => "equivalent, as it must",
        Fate::FalseAlarm => "false alarm",
    }
}
