//! The report as a page of Markdown: GitHub's step summary, a Buildkite annotation. Main function: [`to_markdown`].

use std::collections::BTreeMap;
use std::fmt::Write;

use super::foreign::{ForeignRow, foreign_rows, foreign_words};
use super::ladder::rungs;
use super::pressure::{event_rows, offender_lines, pressure_name, seed_rows};
use super::section::Section;
use super::words::{
    counted, ending, flip_kind, flip_letters, nats, one_line, percent, points, rung, short_rung,
};
use super::{Finding, ForeignKv, NotRun, PlantedFaults, Report, UnderPressure};
use crate::comparison::Verdict;

/// The most bytes that GitHub takes for a step's summary and Buildkite for an annotation, less some to spare.
pub const PAGE_LIMIT: usize = 1_000_000;
/// Bytes kept for saying what was left out.
const CLOSING: usize = 400;
/// How many flips of a model on a route a summary shows.
const SHOWN_FLIPS: usize = 20;
/// How many survivors a summary shows.
const SHOWN_SURVIVORS: usize = 20;
/// How much of a question a summary shows.
const SHOWN_CHARACTERS: usize = 200;

/// The report as Markdown of at most `limit` bytes. What has no room is counted in the last line.
#[must_use]
pub fn to_markdown(report: &Report, limit: usize) -> String {
    let mut page = Page { text: String::new(), limit, left_out: BTreeMap::new() };
    page.add("heading", &heading(report));
    page.table("overview row", OVERVIEW, report.findings.iter().map(overview_row));
    for not_run in &report.not_run {
        let NotRun { model, route, reason, next_step, .. } = not_run;
        let line = format!(
            "{} over {route} was **not run**: {} Next: {}\n\n",
            escape(model),
            escape(reason),
            escape(next_step)
        );
        page.add("line on a route that was not run", &line);
    }
    let troubled = |finding: &&Finding| finding.judgement.verdict != Verdict::Equivalent;
    for finding in report.findings.iter().filter(troubled) {
        page.add("explanation", &explanation(finding));
    }
    for planted in &report.planted_faults {
        page.add("table of planted faults", &faults(planted));
    }
    for foreign in &report.foreign_kv {
        page.add("table of foreign KV", &foreign_table(foreign));
    }
    for talk in &report.talks {
        page.add("table of conversations", &section_table(&Section::of_talk(talk)));
    }
    for pressed in &report.pressure {
        page.add("table of pressure", &pressure_table(pressed));
    }
    for finding in report.findings.iter().filter(|finding| !finding.flipped_questions.is_empty()) {
        add_flips(&mut page, finding);
    }
    for finding in &report.findings {
        page.add("table", &details(finding));
    }
    page.finish()
}

/// A page that never grows over its limit.
struct Page {
    text: String,
    limit: usize,
    left_out: BTreeMap<&'static str, usize>,
}

impl Page {
    /// Adds a block if there is room for it; says whether there was.
    fn add(&mut self, what: &'static str, block: &str) -> bool {
        let fits = self.text.len() + block.len() + CLOSING <= self.limit;
        if fits {
            self.text.push_str(block);
        } else {
            *self.left_out.entry(what).or_default() += 1;
        }
        fits
    }

    /// Adds a table row by row. A row that does not fit ends it.
    fn table(&mut self, what: &'static str, head: &str, rows: impl Iterator<Item = String>) {
        let mut rows = rows.peekable();
        let mut open = rows.peek().is_some_and(|first| {
            self.text.len() + head.len() + first.len() + CLOSING <= self.limit && self.add(what, head)
        });
        for row in rows {
            if open {
                open = self.add(what, &row);
            } else {
                *self.left_out.entry(what).or_default() += 1;
            }
        }
        self.add("line feed", "\n");
    }

    fn finish(mut self) -> String {
        self.left_out.remove("line feed");
        if !self.left_out.is_empty() {
            let list: Vec<String> =
                self.left_out.iter().map(|(what, number)| counted(*number, what)).collect();
            let note = format!(
                "\n*Left out, since this page may hold {} bytes: {}. `report.html` has them.*\n",
                self.limit,
                list.join(", ")
            );
            self.text.push_str(&note);
        }
        self.text
    }
}

fn heading(report: &Report) -> String {
    let environment = &report.environment;
    let version = |version: Option<&str>| escape(version.unwrap_or("unknown"));
    let options = report.suite.lmcache.words();
    let options = if options.is_empty() { options } else { format!(" Stored with {}.", escape(&options)) };
    format!(
        "## {} kv-correctness: {} (exit code {})\n\nSuite `{}` on {}; vLLM {}, LMCache {}.{options}\n\n",
        symbol(report.verdict),
        report.verdict,
        report.exit_code,
        report.suite.name.replace('`', "'"),
        escape(&report.device.to_string()),
        version(environment.vllm_version()),
        version(environment.version("lmcache")),
    )
}

const OVERVIEW: &str = "\
| model | route | verdict | decided by | tokens served | baseline | load pass | difference (90 % interval) | flips |
|---|---|---|---|--:|--:|--:|--:|--:|
";

fn overview_row(finding: &Finding) -> String {
    let comparison = &finding.comparison;
    let (load, answers) = (&comparison.exercised.load, &comparison.answers.generated);
    let test = &answers.against_baseline;
    format!(
        "| {} ({}) | {} | {} {} | {} | {} of {} | {} % | {} % | {} ({} to {}) | {} of {} |\n",
        escape(&finding.model),
        finding.kv_shape.name(),
        finding.route,
        symbol(finding.judgement.verdict),
        finding.judgement.verdict,
        short_rung(finding.judgement.decided_by),
        load.cached_tokens,
        load.predicted_tokens,
        percent(answers.baseline.share),
        percent(answers.load.share),
        points(test.difference),
        points(test.interval.lower),
        points(test.interval.upper),
        comparison.answers.flips.len(),
        comparison.questions,
    )
}

fn explanation(finding: &Finding) -> String {
    let judgement = &finding.judgement;
    let remarks: Vec<String> =
        finding.engine.remarks.iter().map(|remark| format!("> Remark: {}\n\n", escape(remark))).collect();
    format!(
        "**{} over {}: {}**, decided by {}. {}{}\n\n> Next: {}\n\n{}{}",
        escape(&finding.model),
        finding.route,
        judgement.verdict,
        rung(judgement.decided_by),
        escape(&judgement.reason),
        finding
            .location
            .as_ref()
            .map_or_else(String::new, |location| format!(" {}", escape(&location.words()))),
        escape(&judgement.next_step),
        remarks.concat(),
        wrong_kv(finding),
    )
}

/// The first wrong cells of KV, what a second look at them showed, and maps of the first requests.
fn wrong_kv(finding: &Finding) -> String {
    let kv = &finding.comparison.kv;
    let cells = kv.first.iter().map(|cell| format!("- {}\n", escape(&cell.words())));
    let looks = kv.looks.iter().map(|look| format!("- Looked at again: {}\n", escape(&look.words())));
    let maps = kv.maps.iter().map(|map| {
        let title = format!("{}, {}, rank {}", map.question, map.pass.words(), map.rank);
        format!(
            "\n{} (a row a chunk, a column a layer):\n```\n{}\n```\n",
            escape(&title),
            map.chunks.join("\n")
        )
    });
    let mut text: String = cells.chain(looks).chain(maps).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn faults(planted: &PlantedFaults) -> String {
    let score = &planted.findings.score;
    let mut text = format!(
        "**{}, planted faults: {}** {} of {} plantings of {} kinds were seen. {} more change nothing and were judged \
         equivalent; {} controls were misjudged.\n\n",
        escape(&planted.model),
        if planted.doubt.is_some() { "⚠️ insensitive." } else { "all seen." },
        score.killed,
        score.planted,
        score.kinds,
        score.harmless,
        score.misjudged.len(),
    );
    if let Some(words) = planted.findings.not_in_memory() {
        write!(text, "In memory: {}.\n\n", escape(&words)).expect("a string can be written to");
    }
    let missed: Vec<&String> = score.survivors.iter().chain(&score.misjudged).collect();
    for name in missed.iter().take(SHOWN_SURVIVORS) {
        writeln!(text, "- {}", escape(name)).expect("a string can be written to");
    }
    if missed.len() > SHOWN_SURVIVORS {
        writeln!(text, "- and {} more", missed.len() - SHOWN_SURVIVORS).expect("a string can be written to");
    }
    text + "\n"
}

fn foreign_table(foreign: &ForeignKv) -> String {
    let mut text = format!(
        "**{}, {}: {}**\n\n",
        escape(&foreign.model),
        foreign.findings.title(),
        foreign_words(&foreign.findings)
    );
    for finding in foreign.findings.findings() {
        writeln!(text, "> ⚠️ Finding about LMCache: {}\n", escape(&finding))
            .expect("a string can be written to");
    }
    text += "| the reader differs in | tokens served | which means | largest movement, nats |\n|---|--:|---|--:|\n";
    for row in foreign_rows(&foreign.findings) {
        let ForeignRow { differs_in, served, expected, movement, meaning, .. } = row;
        let (differs_in, meaning) = (escape(&differs_in), escape(&meaning));
        writeln!(text, "| {differs_in} | {served} of {expected} | {meaning} | {movement} |")
            .expect("a string can be written to");
    }
    text + "\n"
}

fn section_table(section: &Section) -> String {
    let mut text = format!(
        "**{}: {}**\n\n{}\n\n",
        escape(&section.title),
        section.judgement.verdict,
        escape(&section.judgement.reason)
    );
    writeln!(text, "| {} |", section.head.join(" | ")).expect("a string can be written to");
    writeln!(text, "|{}", "--:|".repeat(section.head.len())).expect("a string can be written to");
    for row in &section.rows {
        let row: Vec<String> = row.iter().map(|cell| escape(cell)).collect();
        writeln!(text, "| {} |", row.join(" | ")).expect("a string can be written to");
    }
    text + "\n"
}

fn pressure_table(pressed: &UnderPressure) -> String {
    let UnderPressure { judgement, findings, .. } = pressed;
    let (name, verdict) = (escape(&pressure_name(pressed)), judgement.verdict);
    let next = match judgement.next_step.as_str() {
        "Nothing to do." => String::new(),
        next => format!(" Next: {}", escape(next)),
    };
    let offenders = offender_lines(findings).into_iter().map(|line| format!("- {}\n", escape(&line)));
    let events = event_rows(findings)
        .into_iter()
        .map(|row| format!("| {} | {} | {} |\n", row.event, row.times, escape(&row.remark)));
    let seeds = seed_rows(findings).into_iter().map(|row| {
        format!(
            "| {} | {} | {} | {} | {} | {} |\n",
            row.seed, row.caches, row.requests, row.hits, row.kv, row.bounds
        )
    });
    let head =
        format!("**{} {name}: {verdict}**\n\n{}{next}\n\n", symbol(verdict), escape(&judgement.reason));
    let parts = [head]
        .into_iter()
        .chain(offenders)
        .chain(["\n| event | times | remark |\n|---|--:|---|\n".to_owned()])
        .chain(events)
        .chain([SEEDS.to_owned()])
        .chain(seeds);
    parts.collect::<String>() + "\n"
}

const SEEDS: &str = "
| seed | served by | requests | tokens, connector + own | KV | bounds |
|---|---|--:|--:|---|---|
";

fn add_flips(page: &mut Page, finding: &Finding) {
    let flips = &finding.comparison.answers.flips;
    let title = format!(
        "**{} over {}: {} of {} answers changed**\n\n",
        escape(&finding.model),
        finding.route,
        flips.len(),
        finding.comparison.questions
    );
    let head = title
        + "| question | change | baseline | load pass | published | text |\n|---|---|---|---|---|---|\n";
    let rows = flips.iter().zip(&finding.flipped_questions).take(SHOWN_FLIPS).map(|(flip, question)| {
        let (baseline, load) = flip_letters(flip);
        format!(
            "| {} | {} | {baseline} | {load} | {} | {} |\n",
            escape(&flip.question.to_string()),
            flip_kind(flip.kind),
            flip.published,
            escape(&ending(&question.text, SHOWN_CHARACTERS)),
        )
    });
    page.table("flip", &head, rows);
    if flips.len() > SHOWN_FLIPS {
        page.add("remark", &format!("and {} more in `report.html`.\n\n", flips.len() - SHOWN_FLIPS));
    }
}

/// What every rung saw and how each subject fared, folded away.
fn details(finding: &Finding) -> String {
    let comparison = &finding.comparison;
    let mut text = format!(
        "<details><summary>{} over {}: rungs and {}</summary>\n\n| rung | state | numbers |\n|---|---|---|\n",
        escape_html(&finding.model),
        finding.route,
        counted(comparison.by_subject.len(), "subject"),
    );
    for (which, state, numbers) in rungs(finding) {
        writeln!(text, "| {} | {} | {} |", rung(which), state.words(), escape(&numbers))
            .expect("a string can be written to");
    }
    if let Some(computed) = &comparison.kv.as_baseline {
        writeln!(text, "\n{}", escape(&computed.words)).expect("a string can be written to");
    }
    text += "\n| subject | questions | baseline right | load pass right | flips | largest movement, nats |\n";
    text += "|---|--:|--:|--:|--:|--:|\n";
    for score in &comparison.by_subject {
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            escape(score.subject.as_str()),
            score.questions,
            score.baseline_right,
            score.load_right,
            score.flips,
            nats(score.largest)
        )
        .expect("a string can be written to");
    }
    text + "\n</details>\n\n"
}

fn symbol(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Equivalent => "✅",
        Verdict::Degraded => "❌",
        Verdict::Inconclusive => "❔",
        Verdict::NotExercised => "⛔",
        Verdict::Insensitive => "⚠️",
    }
}

/// A text on one line in which no character means anything to Markdown, GitHub or Buildkite.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in one_line(text).chars() {
        if "\\`*_{}[]()#!|<>~$:@&^".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// The same inside an HTML tag, where Markdown's escapes do not count.
fn escape_html(text: &str) -> String {
    one_line(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{NASTY, every_kind, named};

    #[test]
    fn the_verdict_comes_first_then_what_explains_it() {
        insta::assert_snapshot!(to_markdown(&named("degraded"), PAGE_LIMIT));
    }

    #[test]
    fn survivors_are_named() {
        insta::assert_snapshot!(to_markdown(&named("insensitive"), 1800));
    }

    #[test]
    fn a_page_never_grows_over_its_limit_and_says_what_was_left_out() {
        for (name, report) in every_kind() {
            let whole = to_markdown(&report, PAGE_LIMIT);
            for limit in (800..whole.len() + CLOSING).step_by(97) {
                let page = to_markdown(&report, limit);
                assert!(page.len() <= limit, "{name} at {limit}: {}", page.len());
                assert!(page.starts_with("## "), "{name}");
                assert!(
                    page == whole || page.contains("*Left out, since this page may hold"),
                    "{name} at {limit}"
                );
                assert_eq!(page.matches("<details>").count(), page.matches("</details>").count());
            }
        }
    }

    #[test]
    fn a_questions_text_stays_in_its_cell() {
        let escaped = escape(NASTY);
        assert!(!escaped.contains(['\n', '\r', '\u{1b}', '\0']));
        let bare = regex::Regex::new(r"(^|[^\\])[|<>`*@\[\]]").unwrap();
        assert!(!bare.is_match(&escaped), "{escaped}");
    }
}
