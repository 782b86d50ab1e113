//! The report as plain text: verdicts first, then the numbers behind them. Main function: [`summarise`].

use std::fmt::{self, Write};

use super::faults::describe_turns;
use super::foreign::{ForeignRow, foreign_rows, foreign_words};
use super::ladder::numbers;
use super::matrix::write_matrix;
use super::pressure::{event_rows, offender_lines, pressure_name, seed_rows};
use super::section::Section;
use super::words::{asked, ending, flip_kind, flip_letters, p_value, rung};
use super::{Finding, ForeignKv, Known, PlantedFaults, Report, UnderPressure};
use crate::comparison::{Comparison, Flip, Rung, TierAgreement};
use crate::dataset::Question;
use crate::engine::environment::Package;
use crate::fault::SmallestDose;
use crate::suite::Suite;

/// How many flips are shown with their question.
const SHOWN_FLIPS: usize = 5;
/// How many cells of wrong KV are shown.
const SHOWN_CELLS: usize = 5;

/// The report for people, without colour.
#[must_use]
pub fn summarise(report: &Report) -> String {
    let mut text = String::new();
    write_summary(&mut text, report).expect("a string can be written to");
    text
}

fn write_summary(text: &mut String, report: &Report) -> fmt::Result {
    let environment = &report.environment;
    let version = |version: Option<&str>| version.unwrap_or("unknown").to_owned();
    let vllm = version(environment.vllm_version());
    let lmcache = environment.packages.get("lmcache").map_or_else(|| version(None), Package::describe);
    writeln!(text, "suite {} on {}; vLLM {vllm}, LMCache {lmcache}", report.suite.name, report.device)?;
    let options = report.suite.lmcache.words();
    if !options.is_empty() {
        writeln!(text, "stored with {options}")?;
    }
    for finding in &report.findings {
        writeln!(text)?;
        write_finding(text, finding, &report.suite)?;
    }
    for planted in &report.planted_faults {
        writeln!(text)?;
        write_faults(text, planted)?;
    }
    for foreign in &report.foreign_kv {
        writeln!(text)?;
        write_foreign(text, foreign)?;
    }
    for talk in &report.talks {
        writeln!(text)?;
        write_section(text, &Section::of_talk(talk))?;
    }
    for pressed in &report.pressure {
        writeln!(text)?;
        write_pressure(text, pressed)?;
    }
    write_matrix(text, report)?;
    writeln!(text)?;
    let missing = match report.not_run.len() {
        0 => String::new(),
        missing => format!(
            ", as far as it was run: {missing} of {} combinations of model and route {}",
            report.findings.len() + missing,
            if report.not_run.iter().all(|not_run| not_run.known == Known::Beforehand) {
                "cannot run here"
            } else {
                "did not come to an end"
            }
        ),
    };
    let void = if report.foreign_kv.iter().all(|foreign| foreign.findings.control_holds()) {
        ""
    } else {
        "; what was read of foreign KV proves nothing"
    };
    if report.findings.is_empty() {
        return writeln!(text, "no verdict: nothing came to an end (exit code {})", report.exit_code);
    }
    let alone = report.shard.map_or_else(String::new, |shard| {
        format!(", on the questions of shard {shard} alone: `merge` gives the verdict on all")
    });
    writeln!(text, "verdict: {}{alone}{missing}{void} (exit code {})", report.verdict, report.exit_code)
}

fn write_finding(text: &mut String, finding: &Finding, suite: &Suite) -> fmt::Result {
    let Finding { model, route, judgement, comparison, .. } = finding;
    let verdict = judgement.verdict.to_string().to_uppercase();
    writeln!(text, "{model} ({}) over {route}: {verdict}", finding.kv_shape.name())?;
    line(text, "decided by", rung(judgement.decided_by))?;
    line(text, "why", &judgement.reason)?;
    if judgement.next_step != "Nothing to do." {
        line(text, "next", &judgement.next_step)?;
    }
    line(text, "asked", &asked(suite, comparison.questions))?;
    line(text, "hits", &numbers(comparison, Rung::Exercised))?;
    if let Some(tier) = comparison.exercised.server.as_ref().and_then(|server| server.tier.as_ref())
        && tier.second_tier_at_least.is_some()
    {
        let TierAgreement { name, second_tier_tokens, second_tier_loads, .. } = tier;
        let served = format!(
            "{second_tier_tokens} tokens came from `{name}` behind another server's memory, in {second_tier_loads} loads"
        );
        line(text, "tier", &served)?;
    }
    write_shards(text, comparison)?;
    line(text, "kv", &numbers(comparison, Rung::Kv))?;
    for cell in comparison.kv.first.iter().take(SHOWN_CELLS) {
        line(text, "", &cell.words())?;
    }
    for (place, look) in comparison.kv.looks.iter().enumerate() {
        line(text, if place == 0 { "looked again" } else { "" }, &look.words())?;
    }
    if let Some(computed) = &comparison.kv.as_baseline {
        line(text, "store pass", &computed.words)?;
    }
    line(text, "felt", &comparison.sensitivity.words)?;
    line(text, "bits", &numbers(comparison, Rung::BitExact))?;
    if let Some(location) = &finding.location {
        line(text, "located", &location.words())?;
    }
    let answers = &comparison.answers.generated;
    let paired = &answers.against_baseline;
    line(
        text,
        "accuracy",
        &format!(
            "baseline {:.1} %, with {} {:.1} %; difference {:+.2} points (90 % interval {:+.2} to {:+.2}), \
             exact McNemar p = {}",
            100.0 * answers.baseline.share,
            comparison.cache,
            100.0 * answers.load.share,
            100.0 * paired.difference,
            100.0 * paired.interval.lower,
            100.0 * paired.interval.upper,
            p_value(paired.two_sided_p_value)
        ),
    )?;
    let unparsable = (answers.baseline.unparsable, answers.load.unparsable);
    if unparsable != (0, 0) {
        line(
            text,
            "unparsable",
            &format!("{} answers of the baseline, {} with {}", unparsable.0, unparsable.1, comparison.cache),
        )?;
    }
    let flips = &comparison.answers.flips;
    line(text, "flips", &format!("{} of {} answers changed", flips.len(), comparison.questions))?;
    for (flip, question) in flips.iter().zip(&finding.flipped_questions).take(SHOWN_FLIPS) {
        line(text, "", &describe_flip(flip, question))?;
    }
    if flips.len() > SHOWN_FLIPS {
        line(text, "", &format!("and {} more in report.json", flips.len() - SHOWN_FLIPS))?;
    }
    line(text, "noise floor", &comparison.noise_floor.words)?;
    for remark in &finding.engine.remarks {
        line(text, "remark", remark)?;
    }
    for (place, log) in finding.logs.iter().enumerate() {
        line(text, if place == 0 { "logs" } else { "" }, log.as_str())?;
    }
    Ok(())
}

fn write_shards(text: &mut String, comparison: &Comparison) -> fmt::Result {
    if let Some((server, shards)) =
        comparison.exercised.server.as_ref().and_then(|server| Some((server, server.shards?)))
        && shards.read_shards > 1
    {
        line(
            text,
            "shards",
            &format!(
                "{} of {} written, {} of {} read: a chunk is written in {} and read by {} ranks",
                server.store.chunks_written,
                shards.written,
                server.load.chunks_read,
                shards.read,
                shards.written_shards,
                shards.read_shards
            ),
        )?;
    }
    Ok(())
}

/// Names of survivors that are shown.
const SHOWN_SURVIVORS: usize = 5;

fn write_faults(text: &mut String, planted: &PlantedFaults) -> fmt::Result {
    let PlantedFaults { model, route, doubt, findings, .. } = planted;
    let score = &findings.score;
    let verdict = if doubt.is_some() { "INSENSITIVE" } else { "all seen" };
    writeln!(text, "{model}, faults planted on {route}: {verdict}")?;
    line(
        text,
        "seen",
        &format!(
            "{} of {} plantings of {} kinds, on {} questions with {} chunks",
            score.killed,
            score.planted,
            score.kinds,
            findings.questions.len(),
            findings.chunks
        ),
    )?;
    let alone = |(rung, seen): (&Rung, &u32)| format!("{} {seen}", rung.short_name());
    line(text, "rungs alone", &score.seen_by.iter().map(alone).collect::<Vec<_>>().join(", "))?;
    line(
        text,
        "harmless",
        &format!(
            "{} plantings that change nothing; {} of them or of the no-op cache misjudged",
            score.harmless,
            score.misjudged.len()
        ),
    )?;
    for (place, (rung, smallest)) in findings.smallest.iter().enumerate() {
        let name = if place == 0 { "smallest" } else { "" };
        let SmallestDose { trial, changed_bits } = smallest;
        line(text, name, &format!("{} see {changed_bits} bits of a chunk: {trial}", rung.short_name()))?;
    }
    for trial in findings.trials.iter().filter(|trial| trial.passes > 1) {
        line(text, &trial.fault, &describe_turns(trial))?;
    }
    if let Some(words) = findings.not_in_memory() {
        line(text, "memory", &words)?;
    }
    for words in &findings.not_planted {
        line(text, "not planted", words)?;
    }
    let missed = score.survivors.iter().chain(&score.misjudged);
    for (place, name) in missed.take(SHOWN_SURVIVORS).enumerate() {
        line(text, if place == 0 { "not seen" } else { "" }, name)?;
    }
    if let Some(doubt) = doubt {
        line(text, "why", &doubt.reason)?;
        line(text, "next", &doubt.next_step)?;
    }
    line(text, "logs", planted.log.as_str())
}

fn write_foreign(text: &mut String, foreign: &ForeignKv) -> fmt::Result {
    let (title, words) = (foreign.findings.title(), foreign_words(&foreign.findings));
    writeln!(text, "{}, {title}: {words}", foreign.model)?;
    let rows = foreign_rows(&foreign.findings);
    let width = rows.iter().map(|row| row.differs_in.len()).max().unwrap_or(0);
    for ForeignRow { differs_in, served, expected, meaning, .. } in &rows {
        line(
            text,
            if *differs_in == rows[0].differs_in { "differs in" } else { "" },
            &format!("{differs_in:width$}  {served} of {expected} tokens: {meaning}"),
        )?;
    }
    for finding in foreign.findings.findings() {
        line(text, "finding", &finding)?;
    }
    line(text, "logs", foreign.log.as_str())
}

fn write_section(text: &mut String, section: &Section) -> fmt::Result {
    writeln!(text, "{}: {}", section.title, section.judgement.verdict.name().to_uppercase())?;
    line(text, "why", &section.judgement.reason)?;
    if section.judgement.next_step != "Nothing to do." {
        line(text, "next", &section.judgement.next_step)?;
    }
    line(text, "logs", &section.log)
}

fn write_pressure(text: &mut String, pressed: &UnderPressure) -> fmt::Result {
    let UnderPressure { judgement, findings, log, .. } = pressed;
    writeln!(text, "{}: {}", pressure_name(pressed), judgement.verdict.to_string().to_uppercase())?;
    line(text, "decided by", rung(judgement.decided_by))?;
    line(text, "why", &judgement.reason)?;
    if judgement.next_step != "Nothing to do." {
        line(text, "next", &judgement.next_step)?;
    }
    for (place, row) in event_rows(findings).into_iter().enumerate() {
        let remark = if row.remark.is_empty() { String::new() } else { format!(": {}", row.remark) };
        line(text, if place == 0 { "events" } else { "" }, &format!("{} {}{remark}", row.times, row.event))?;
    }
    for row in seed_rows(findings) {
        let name = format!("seed {}", row.seed);
        let served = format!("{} requests, served by {}: {} tokens", row.requests, row.caches, row.hits);
        line(text, &name, &format!("{served}; {}; {}", row.kv, row.bounds))?;
    }
    for (place, offender) in offender_lines(findings).iter().enumerate() {
        line(text, if place == 0 { "first" } else { "" }, offender)?;
    }
    line(text, "logs", log.as_str())
}

fn line(text: &mut String, name: &str, value: &str) -> fmt::Result {
    writeln!(text, "  {name:<12} {value}")
}

fn describe_flip(flip: &Flip, question: &Question) -> String {
    let (baseline, load) = flip_letters(flip);
    let (kind, asked) = (flip_kind(flip.kind), ending(&question.text, 80));
    format!("{} {kind}: {baseline} -> {load}, published {}: {asked}", flip.question, flip.published)
}
