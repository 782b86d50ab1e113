//! Reports of parts of a run to that of the whole: shards by their evidence, cells as they are. Main function: [`merge`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::comparison::{
    Comparison, Evidence, EvidenceError, Exercised, JoinError, Service, Verdict, compare, conclude,
    join_evidence,
};
use crate::dataset::{Question, Shard};
use crate::digest::{Digest, digest_json};
use crate::exit_code::exit_code_of_run;
use crate::model::Route;
use crate::report::{Finding, NotRun, Report, SCHEMA, UnderPressure};
use crate::stage_name::StageName;
use crate::store::{FieldChange, StageKey, explain};

/// A part of a run.
#[derive(Debug)]
pub struct Part {
    /// Where it comes from, for messages.
    pub name: String,
    /// What it found.
    pub report: Report,
    /// Of a shard, the evidence behind each comparison, by the key of the comparison.
    pub evidence: BTreeMap<Digest, Evidence>,
}

/// Why parts do not make a whole.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// There is none.
    #[error("merge: there is no part")]
    Nothing,
    /// They are not of one run.
    #[error("merge {one} with {other}: {field} differs, {change}")]
    Differs {
        /// A part.
        one: String,
        /// The other.
        other: String,
        /// A JSON pointer into the report.
        field: String,
        /// Both values.
        change: String,
    },
    /// Something of the whole is in no part.
    #[error("merge: no part has {0}")]
    Missing(String),
    /// Two parts have the same and disagree.
    #[error("merge: {one} and {other} both have {what}, and not the same")]
    Twice {
        /// What.
        what: String,
        /// A part.
        one: String,
        /// The other.
        other: String,
    },
    /// The evidence of a shard is not at hand.
    #[error("merge: the evidence of {what} is not with {part}")]
    NoEvidence {
        /// What it is of.
        what: String,
        /// Whose it is.
        part: String,
    },
    /// Shards were not asked, computed or served alike.
    #[error("merge {what}")]
    Join {
        /// The model and the route.
        what: String,
        /// Why.
        source: JoinError,
    },
    /// What came together is no evidence.
    #[error("merge {what}")]
    Compare {
        /// The model and the route.
        what: String,
        /// Why.
        source: EvidenceError,
    },
}

impl MergeError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Nothing => "name the folders that `run --shard K/N --out DIR` wrote to, or a depot and a run in it",
            Self::Differs { .. } => "run all parts of one suite on machines and in environments of one kind",
            Self::Missing(_) => "run that part, or name its folder, too",
            Self::Twice { .. } => "leave out one of the two",
            Self::NoEvidence { .. } => {
                "name the whole folder that the part's `run --out` wrote to, or with --depot the depot that it used"
            }
            Self::Join { .. } | Self::Compare { .. } => "run the parts that differ again, with the same version of everything",
        }
        .to_owned()
    }
}

/// The report of the whole. Its statistics are those of all questions together: comparisons of shards are made anew out of all
/// their evidence, and all comparisons are judged together.
///
/// # Errors
/// When something is missing, is there twice, or does not belong together.
pub fn merge(parts: &[Part]) -> Result<Report, MergeError> {
    let first = parts.first().ok_or(MergeError::Nothing)?;
    for part in &parts[1..] {
        require_alike(first, part)?;
    }
    require_one_connector_a_route(parts)?;
    let suite = &first.report.suite;
    let (mut findings, mut not_run) = (Vec::new(), Vec::new());
    for model in &suite.models {
        for &route in &suite.routes {
            match cell(parts, &model.name, route)? {
                Ok(finding) => findings.push(finding),
                Err(reasons) => not_run.extend(reasons),
            }
        }
    }
    let planted_faults: Vec<_> = parts.iter().flat_map(|part| part.report.planted_faults.clone()).collect();
    let talks: Vec<_> = parts.iter().flat_map(|part| part.report.talks.clone()).collect();
    let foreign_kv: Vec<_> = parts.iter().flat_map(|part| part.report.foreign_kv.clone()).collect();
    let mut pressure: Vec<UnderPressure> = Vec::new();
    for pressed in parts.iter().flat_map(|part| &part.report.pressure) {
        // A part that is named twice is one.
        if !pressure.contains(pressed) {
            pressure.push(pressed.clone());
        }
    }
    pressure.sort_by_key(|pressed| pressed.shard.map(Shard::number));
    let conclusion = conclude(findings.iter().map(|finding: &Finding| &finding.comparison));
    for (finding, judgement) in findings.iter_mut().zip(conclusion.judgements) {
        finding.judgement = judgement;
    }
    let doubts = planted_faults.iter().filter_map(|planted| planted.doubt.as_ref());
    let of_pressure = pressure.iter().map(|pressed| pressed.judgement.verdict);
    let of_talks = talks.iter().map(|talk| talk.judgement.verdict);
    let verdicts = doubts.map(|doubt| doubt.verdict).chain(of_pressure).chain(of_talks);
    let verdict = verdicts.fold(conclusion.overall, Verdict::min);
    let void = foreign_kv.iter().filter(|foreign| !foreign.findings.control_holds()).count();
    Ok(Report {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        verdict,
        exit_code: exit_code_of_run(verdict, not_run.len() + void),
        suite: suite.clone(),
        device: first.report.device.clone(),
        environment: first.report.environment.clone(),
        shard: None,
        merged_from: parts.iter().map(|part| digest_json(&part.report)).collect(),
        findings,
        not_run,
        planted_faults,
        foreign_kv,
        talks,
        pressure,
    })
}

/// What all parts of a run share.
fn common(report: &Report) -> Value {
    let of = report.shard.map(Shard::of);
    json!({
        "version": report.version, "suite": report.suite, "device": report.device, "environment": report.environment,
        "shards": of,
    })
}

fn require_alike(one: &Part, other: &Part) -> Result<(), MergeError> {
    let shards = one.report.shard.is_some() == other.report.shard.is_some();
    let (mut left, mut right) = (common(&one.report), common(&other.report));
    if !shards {
        // Cells may be asked as a whole beside others in shards.
        left["shards"] = Value::Null;
        right["shards"] = Value::Null;
    }
    require_same(one, other, &left, &right)
}

/// Every part must have travelled a route by the same connector: its name and its file's path may stand for others elsewhere.
fn require_one_connector_a_route(parts: &[Part]) -> Result<(), MergeError> {
    let mut known: Vec<(&Part, &Finding)> = Vec::new();
    for (part, finding) in
        parts.iter().flat_map(|part| part.report.findings.iter().map(move |one| (part, one)))
    {
        let digest = |finding: &Finding| json!({"connector_digest": finding.connector_digest});
        match known.iter().find(|(_, one)| one.route == finding.route) {
            Some((first, one)) => require_same(first, part, &digest(one), &digest(finding))?,
            None => known.push((part, finding)),
        }
    }
    Ok(())
}

/// Fails with the first field in which two values differ.
fn require_same(one: &Part, other: &Part, left: &Value, right: &Value) -> Result<(), MergeError> {
    let key = |value| StageKey::new(0, StageName::Compare, value);
    match explain(&key(left), &key(right)).into_iter().next() {
        None => Ok(()),
        Some(FieldChange { path, before, after }) => {
            let shown =
                |value: Option<Value>| value.map_or_else(|| "absent".to_owned(), |value| value.to_string());
            let change = format!("{} in the first and {} in the other", shown(before), shown(after));
            Err(MergeError::Differs { one: one.name.clone(), other: other.name.clone(), field: path, change })
        }
    }
}

/// One model on one route: what was found, or why nothing was.
fn cell(parts: &[Part], model: &str, route: Route) -> Result<Result<Finding, Vec<NotRun>>, MergeError> {
    let what = |shard: Option<Shard>| match shard {
        Some(shard) => format!("shard {shard} of {model} over {route}"),
        None => format!("{model} over {route}"),
    };
    let is_it = |finding: &&Finding| finding.model == model && finding.route == route;
    let mut found: BTreeMap<Option<Shard>, (&Part, &Finding)> = BTreeMap::new();
    for part in parts {
        let Some(finding) = part.report.findings.iter().find(is_it) else { continue };
        let known = found.insert(part.report.shard, (part, finding));
        if let Some((other, known)) = known.filter(|(_, known)| known.artifacts != finding.artifacts) {
            let what = what(part.report.shard);
            debug_assert_eq!(known.model, finding.model);
            return Err(MergeError::Twice { what, one: other.name.clone(), other: part.name.clone() });
        }
    }
    let is_not_run = |not_run: &&NotRun| not_run.model == model && not_run.route == route;
    let reasons: Vec<NotRun> = parts
        .iter()
        .flat_map(|part| {
            part.report.not_run.iter().filter(is_not_run).map(move |not_run| (part.report.shard, not_run))
        })
        .map(|(shard, not_run)| NotRun {
            reason: shard
                .map_or_else(|| not_run.reason.clone(), |shard| format!("shard {shard}: {}", not_run.reason)),
            ..not_run.clone()
        })
        .collect();
    if let Some((_, finding)) = found.get(&None) {
        return Ok(Ok((*finding).clone()));
    }
    if !reasons.is_empty() {
        return Ok(Err(reasons));
    }
    let Some(of) = found.keys().flatten().map(|shard| shard.of()).next() else {
        return Err(MergeError::Missing(what(None)));
    };
    let there: BTreeSet<u32> = found.keys().flatten().map(|shard| shard.number()).collect();
    if let Some(missing) = (1..=of).find(|number| !there.contains(number)) {
        return Err(MergeError::Missing(format!("shard {missing}/{of} of {model} over {route}")));
    }
    let shards: Vec<(&Part, &Finding)> = found.into_values().collect();
    whole(&shards, &what(None)).map(Ok)
}

/// Makes one finding of those of all shards, in their order.
fn whole(shards: &[(&Part, &Finding)], what: &str) -> Result<Finding, MergeError> {
    let (first, finding) = shards[0];
    let fixed = |finding: &Finding| {
        let mut engine = json!(finding.engine);
        // Memory that others use may leave a few blocks more or less.
        engine["kv_cache_tokens"] = Value::Null;
        json!({
            "model_digest": finding.model_digest, "kv_shape": finding.kv_shape, "engine": engine,
        })
    };
    let mut evidence = Vec::new();
    for (part, finding_of_part) in shards {
        require_same(first, part, &fixed(finding), &fixed(finding_of_part))?;
        let known = finding_of_part.keys.get(&StageName::Compare).and_then(|key| part.evidence.get(key));
        let missing = || MergeError::NoEvidence { what: what.to_owned(), part: part.name.clone() };
        evidence.push(known.ok_or_else(missing)?.clone());
    }
    let joined =
        join_evidence(evidence).map_err(|source| MergeError::Join { what: what.to_owned(), source })?;
    let mut comparison = compare(&joined, &first.report.suite.criteria)
        .map_err(|source| MergeError::Compare { what: what.to_owned(), source })?;
    if let Some(exercised) = in_doubt(shards).filter(|_| comparison.exercised.service.is_as_it_must_be()) {
        comparison.exercised = exercised.clone();
    }
    let asked: BTreeMap<_, &Question> = shards
        .iter()
        .flat_map(|(_, finding)| &finding.flipped_questions)
        .map(|question| (&question.id, question))
        .collect();
    let flips = comparison.answers.flips.iter();
    let flipped_questions =
        flips.filter_map(|flip| asked.get(&flip.question).map(|question| (*question).clone())).collect();
    let stages: BTreeSet<StageName> = finding.artifacts.keys().copied().collect();
    let artifacts = stages.into_iter().map(|stage| (stage, artifact_of_all(shards, stage))).collect();
    Ok(Finding {
        location: location(shards, &comparison),
        comparison,
        flipped_questions,
        artifacts,
        keys: BTreeMap::new(),
        logs: shards.iter().flat_map(|(_, finding)| finding.logs.clone()).collect(),
        ..finding.clone()
    })
}

/// What the first shard was served of which the totals tell that it did not travel the route, or disagree. Each shard must hold:
/// in the sums, what another was served beyond its own bounds would make up for it.
fn in_doubt<'a>(shards: &[(&Part, &'a Finding)]) -> Option<&'a Exercised> {
    let mut exercised = shards.iter().map(|(_, finding)| &finding.comparison.exercised);
    exercised.find(|exercised| matches!(exercised.service, Service::WrongTier | Service::CountersDisagree))
}

/// The output that all shards share, or the digest of the list of theirs.
fn artifact_of_all(shards: &[(&Part, &Finding)], stage: StageName) -> Digest {
    let digests: Vec<Digest> =
        shards.iter().filter_map(|(_, finding)| finding.artifacts.get(&stage)).copied().collect();
    let distinct: BTreeSet<Digest> = digests.iter().copied().collect();
    match distinct.first() {
        Some(only) if distinct.len() == 1 => *only,
        _ => digest_json(&digests),
    }
}

/// Each shard has looked for the chunk of its own first offender; the whole's first is among them.
fn location(shards: &[(&Part, &Finding)], comparison: &Comparison) -> Option<crate::comparison::Location> {
    let first = comparison.bit_exact.against_control.first.first()?;
    let locations = shards.iter().filter_map(|(_, finding)| finding.location.as_ref());
    locations.into_iter().find(|location| location.question == first.question).cloned()
}
