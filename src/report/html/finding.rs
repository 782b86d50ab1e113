//! What the page shows of one model on one route. Main type: [`FindingView`].

use super::cells::CellMapView;
use super::plot::{Dot, Plot};
use super::shown::{Badge, clean, label};
use crate::comparison::{Accuracy, CutHits, Exercised, PassHits, SubjectScore};
use crate::dataset::Choice;
use crate::model::KvShape;
use crate::report::ladder::{RungState, rungs};
use crate::report::words::{flip_kind, flip_letters, nats, p_value, percent, points, rung, short_rung};
use crate::report::{Finding, Report};

/// How many flips a page holds; a model that is served another's KV flips most of MMLU's 14 thousand.
const SHOWN_FLIPS: usize = 200;
/// How many of them are shown unfolded.
const OPEN_FLIPS: usize = 8;
/// A table of more subjects is folded away.
const OPEN_SUBJECTS: usize = 12;

pub(super) struct FindingView<'a> {
    pub(super) place: usize,
    pub(super) finding: &'a Finding,
    pub(super) badge: Badge,
    pub(super) decided_by: &'static str,
    pub(super) rungs: Vec<RungView>,
    pub(super) cells: Vec<CellMapView>,
    pub(super) hits: Vec<HitsView>,
    pub(super) left_out: Option<String>,
    pub(super) server: Option<String>,
    pub(super) accuracies: Vec<AccuracyView>,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) plots: Vec<Plot>,
    pub(super) has_control: bool,
    /// How many questions were held against a control, and how many moved.
    pub(super) moved: String,
    pub(super) subjects: Vec<SubjectView>,
    pub(super) subjects_open: bool,
    pub(super) flips: Vec<FlipView>,
    pub(super) folded_flips: Vec<FlipView>,
    pub(super) more_flips: usize,
    pub(super) provenance: Vec<(&'static str, String)>,
}

pub(super) struct RungView {
    pub(super) class: &'static str,
    pub(super) symbol: &'static str,
    pub(super) short: &'static str,
    pub(super) what: &'static str,
    pub(super) state: String,
    pub(super) numbers: String,
}

pub(super) struct HitsView {
    pub(super) pass: &'static str,
    pub(super) rule: &'static str,
    pub(super) hits: PassHits,
    /// Share of the predicted tokens, of a strip of 1000.
    pub(super) share: String,
}

pub(super) struct AccuracyView {
    pub(super) arm: &'static str,
    pub(super) right: u32,
    pub(super) wrong: u32,
    pub(super) unparsable: u32,
    pub(super) share: String,
    pub(super) interval: String,
    /// Left end and width of the interval, and the share, on a strip of 1000.
    pub(super) strip: (String, String, String),
}

pub(super) struct SubjectView {
    pub(super) name: String,
    pub(super) score: SubjectScore,
    pub(super) baseline: String,
    pub(super) load: String,
    pub(super) difference: String,
    pub(super) largest: String,
}

pub(super) struct FlipView {
    pub(super) question: String,
    pub(super) kind: &'static str,
    pub(super) baseline: String,
    pub(super) load: String,
    pub(super) published: Choice,
    pub(super) text: String,
    pub(super) options: Vec<OptionView>,
}

pub(super) struct OptionView {
    pub(super) letter: char,
    pub(super) text: String,
    pub(super) tags: Vec<&'static str>,
}

impl<'a> FindingView<'a> {
    pub(super) fn of(report: &Report, place: usize, finding: &'a Finding) -> Self {
        let comparison = &finding.comparison;
        let exercised = &comparison.exercised;
        let mut flips = flips(finding);
        let more_flips = comparison.answers.flips.len() - flips.len();
        let folded_flips = flips.split_off(OPEN_FLIPS.min(flips.len()));
        let moved = comparison.by_question.iter().filter(|row| row.load > 0.0).count();
        let matched = comparison.by_question.iter().filter(|row| row.matched).count();
        Self {
            place,
            finding,
            badge: finding.judgement.verdict.into(),
            decided_by: rung(finding.judgement.decided_by),
            rungs: rungs(finding)
                .into_iter()
                .map(|(which, state, numbers)| {
                    let (class, symbol) = mark(state);
                    let (short, what) = (short_rung(which), rung(which));
                    RungView { class, symbol, short, what, state: state.words(), numbers }
                })
                .collect(),
            cells: comparison.kv.maps.iter().map(CellMapView::of).collect(),
            hits: hits(exercised),
            left_out: match &exercised.cut {
                CutHits::Asked(_) => None,
                CutHits::LeftOut { reason } => Some(format!("There is no cut pass: {reason}.")),
            },
            server: exercised.server.as_ref().map(|server| {
                format!(
                    "LMCache's server counted {} hit tokens and {} chunks read in the load pass; vLLM counted {} tokens.",
                    server.load.server_tokens, server.load.chunks_read, server.load.engine_tokens
                )
            }),
            accuracies: accuracies(finding),
            facts: facts(finding),
            plots: plots(report, place, finding),
            has_control: comparison.by_question.iter().any(|row| row.control.is_some()),
            moved: format!(
                "{moved} of {} questions differ in some bit from their reference. The reference is the control, served from \
                 vLLM's own prefix cache, for {matched} of them, and the baseline for the others.",
                comparison.questions
            ),
            subjects: comparison.by_subject.iter().map(SubjectView::of).collect(),
            subjects_open: comparison.by_subject.len() <= OPEN_SUBJECTS,
            flips,
            folded_flips,
            more_flips,
            provenance: provenance(finding),
        }
    }
}

fn mark(state: RungState) -> (&'static str, &'static str) {
    match state {
        RungState::Decided(verdict) => {
            let badge = Badge::from(verdict);
            (badge.class, badge.symbol)
        }
        RungState::Passed => ("passed", "✓"),
        RungState::Failed => ("failed", "≠"),
        RungState::DoesNotApply => ("idle", "–"),
        RungState::Void => ("idle", "∅"),
    }
}

fn hits(exercised: &Exercised) -> Vec<HitsView> {
    let cut = match &exercised.cut {
        CutHits::Asked(cut) => Some(HitsView::of("cut", "exactly", *cut)),
        CutHits::LeftOut { .. } => None,
    };
    let load = HitsView::of("load", "exactly", exercised.load);
    let store = HitsView::of("store", "at most", exercised.store);
    [load].into_iter().chain(cut).chain([store]).collect()
}

impl HitsView {
    fn of(pass: &'static str, rule: &'static str, hits: PassHits) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "for a picture")]
        let share = hits.cached_tokens as f64 / (hits.predicted_tokens as f64).max(1.0);
        Self { pass, rule, hits, share: format!("{:.1}", 1000.0 * share.clamp(0.0, 1.0)) }
    }
}

fn accuracies(finding: &Finding) -> Vec<AccuracyView> {
    let scoring = &finding.comparison.answers.generated;
    let of = |arm, accuracy: &Accuracy| AccuracyView {
        arm,
        right: accuracy.right,
        wrong: accuracy.wrong,
        unparsable: accuracy.unparsable,
        share: percent(accuracy.share),
        interval: format!("{} to {}", percent(accuracy.interval.lower), percent(accuracy.interval.upper)),
        strip: (
            format!("{:.1}", 1000.0 * accuracy.interval.lower),
            format!("{:.1}", 1000.0 * (accuracy.interval.upper - accuracy.interval.lower)),
            format!("{:.1}", 1000.0 * accuracy.share),
        ),
    };
    let control = scoring.control.iter().map(|control| of("control", control));
    [of("baseline", &scoring.baseline)]
        .into_iter()
        .chain(control)
        .chain([of("load pass", &scoring.load)])
        .collect()
}

fn facts(finding: &Finding) -> Vec<(&'static str, String)> {
    let answers = &finding.comparison.answers;
    let test = &answers.generated.against_baseline;
    let mut facts = vec![
        (
            "Change in accuracy",
            format!(
                "{} points, 90 % interval {} to {}",
                points(test.difference),
                points(test.interval.lower),
                points(test.interval.upper)
            ),
        ),
        ("Margin", format!("± {} points", 100.0 * finding.comparison.criteria.margin)),
        ("Right to wrong, wrong to right", format!("{}, {}", test.table.harms, test.table.gains)),
        ("Exact McNemar test", format!("p = {}", p_value(test.two_sided_p_value))),
        ("Guessing", format!("{} % right by one letter, always given", percent(answers.guessing))),
        ("Questions that the margin needs", answers.questions_needed.to_string()),
        ("Whether answers feel their KV", finding.comparison.sensitivity.words.clone()),
    ];
    if let Some(interval) = test.cluster_interval {
        let words = format!("{} to {} points", points(interval.lower), points(interval.upper));
        facts.insert(1, ("With subjects as clusters", words));
    }
    facts
}

fn plots(report: &Report, place: usize, finding: &Finding) -> Vec<Plot> {
    let chunk = report.suite.lmcache.chunk_tokens.max(1);
    let rows = &finding.comparison.by_question;
    let dots = |along: &dyn Fn(u32, u32) -> u32| -> Vec<Dot> {
        rows.iter()
            .map(|row| Dot {
                along: along(row.prompt_tokens, row.served_tokens),
                load: row.load,
                control: row.control,
            })
            .collect()
    };
    let name = |which: &str| format!("plot-{place}-{which}");
    let title = |along: &str| format!("Movement by {along}, {} over {}", finding.model, finding.route);
    vec![
        Plot::of(
            name("length"),
            title("length of the prompt"),
            "tokens of the prompt",
            &dots(&|prompt, _| prompt),
        ),
        Plot::of(
            name("chunks"),
            title("number of chunks loaded"),
            "chunks that were served",
            &dots(&|_, served| served / chunk),
        ),
        Plot::of(
            name("position"),
            title("position behind the loaded chunks"),
            "tokens computed behind the served ones",
            &dots(&|prompt, served| prompt.saturating_sub(served)),
        ),
    ]
}

impl SubjectView {
    fn of(score: &SubjectScore) -> Self {
        let share = |right: u32| f64::from(right) / f64::from(score.questions.max(1));
        let (baseline, load) = (share(score.baseline_right), share(score.load_right));
        Self {
            name: score.subject.as_str().replace('_', " "),
            baseline: percent(baseline),
            load: percent(load),
            difference: points(load - baseline),
            largest: nats(score.largest),
            score: score.clone(),
        }
    }
}

fn flips(finding: &Finding) -> Vec<FlipView> {
    let pairs = finding.comparison.answers.flips.iter().zip(&finding.flipped_questions);
    pairs
        .take(SHOWN_FLIPS)
        .map(|(flip, question)| {
            let (baseline, load) = flip_letters(flip);
            let options = Choice::ALL.into_iter().zip(&question.options).map(|(choice, text)| {
                let tags = [
                    ("published", Some(flip.published)),
                    ("baseline", flip.baseline),
                    ("load pass", flip.load),
                ];
                OptionView {
                    letter: choice.letter(),
                    text: clean(text),
                    tags: tags
                        .into_iter()
                        .filter_map(|(tag, of)| (of == Some(choice)).then_some(tag))
                        .collect(),
                }
            });
            FlipView {
                question: flip.question.to_string(),
                kind: flip_kind(flip.kind),
                baseline,
                load,
                published: flip.published,
                text: clean(question.text.trim()),
                options: options.collect(),
            }
        })
        .collect()
}

fn provenance(finding: &Finding) -> Vec<(&'static str, String)> {
    let shape = match finding.kv_shape {
        KvShape::Dense { layers, kv_heads, head_size } => {
            format!("dense: {layers} layers, {kv_heads} KV heads of {head_size}")
        }
        KvShape::Mla { layers, latent, rotary } => {
            format!("MLA: {layers} layers, latent {latent}, rotary {rotary}")
        }
    };
    let engine = &finding.engine;
    vec![
        ("Model files, SHA-256", finding.model_digest.to_string()),
        ("KV", shape),
        ("Engine", format!("{}, attention {}", label(&engine.device), label(&engine.attention_backend))),
        ("vLLM's KV cache", format!("{} tokens in blocks of {}", engine.kv_cache_tokens, engine.block_size)),
    ]
}
