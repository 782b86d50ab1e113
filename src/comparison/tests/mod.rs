//! The ladder on made-up evidence: each way in which a run can go, and what it must be called.

mod bits;
mod cuts;
mod kv;
mod second_look;
mod sensitivity;
mod service;
mod statistics;

use proptest::prelude::*;

use crate::dataset::Choice;
use crate::model::{Observation, TokenLogprob};
use crate::stats::PairOutcome;

use super::scene::{Scene, read_letter, say, scatter};
use super::*;

fn judged(evidence: &Evidence) -> (Comparison, Judgement) {
    let comparison = compare(evidence, &Criteria::default()).unwrap();
    let mut judgements = conclude([&comparison]).judgements;
    (comparison, judgements.remove(0))
}

#[track_caller]
fn assert_judged(scene: &mut Scene, verdict: Verdict, decided_by: Rung) -> (Comparison, Judgement) {
    let (comparison, judgement) = judged(&scene.evidence());
    assert_eq!((judgement.verdict, judgement.decided_by), (verdict, decided_by), "{}", judgement.reason);
    (comparison, judgement)
}

/// Moves a letter's log-probability, as other kernels would.
fn nudge(observation: &mut Observation, nats: f64) {
    observation.letters[0] -= nats;
}

/// A machine whose baseline does not repeat itself to the last bit.
fn noisy(scene: &mut Scene) -> &mut Scene {
    scene.edit(ArmName::Repeat, 0, |observation| nudge(observation, 1e-6))
}

/// Answers with another letter.
fn err(observation: &mut Observation) {
    let next = (observation.steps[0].chosen.token as usize + 1) % 4;
    say(observation, Choice::ALL[next]);
}

#[test]
fn the_worst_comparison_is_the_verdict_of_the_run() {
    let mut unused = Scene::new(40, 4, 0.9);
    unused.edit_all(ArmName::Load, |_, observation| observation.cached_tokens = 0);
    let mut broken = Scene::new(40, 4, 0.9);
    broken.edit(ArmName::Load, 0, err);
    let of = |evidence: Evidence| compare(&evidence, &Criteria::default()).unwrap();
    let (fine, unused, broken) =
        (of(Scene::new(40, 4, 0.9).evidence()), of(unused.evidence()), of(broken.evidence()));
    assert_eq!(conclude([&fine, &unused]).overall, Verdict::NotExercised);
    assert_eq!(conclude([&unused, &broken, &fine]).overall, Verdict::Degraded);
    assert_eq!(conclude([&fine]).overall, Verdict::Equivalent);
    assert_eq!(conclude([]).overall, Verdict::NotExercised);
}

#[test]
fn evidence_that_does_not_belong_together_is_refused() {
    let mut scene = Scene::new(4, 2, 1.0);
    scene.edit(ArmName::Repeat, 1, |observation| observation.prompt_tokens += 1);
    assert!(matches!(
        compare(&scene.evidence(), &Criteria::default()),
        Err(EvidenceError::OtherPrompt { arm: ArmName::Repeat, .. })
    ));
    let mut scene = Scene::new(4, 2, 1.0);
    scene.questions.remove(2);
    assert!(matches!(
        compare(&scene.evidence(), &Criteria::default()),
        Err(EvidenceError::Unasked { arm: ArmName::Baseline, .. })
    ));
    let mut observations = Scene::new(2, 1, 1.0).arms[0].clone();
    observations[1].question = observations[0].question.clone();
    assert!(matches!(
        Arm::new(ArmName::Load, observations, read_letter),
        Err(EvidenceError::Duplicate { arm: ArmName::Load, .. })
    ));
    let mut observations = Scene::new(2, 1, 1.0).arms[0].clone();
    observations[1].steps[0].top[2].logprob = f32::NAN;
    let refused = Arm::new(ArmName::Load, observations, read_letter).unwrap_err();
    assert!(matches!(refused, EvidenceError::NotNumbers { .. }) && refused.hint().is_some());
    let absurd = Criteria { margin: 0.0, ..Criteria::default() };
    assert_eq!(
        compare(&Scene::new(4, 2, 1.0).evidence(), &absurd),
        Err(EvidenceError::AbsurdCriterion("margin"))
    );
}

#[test]
fn a_load_pass_may_lack_questions_only_after_enough_harm() {
    let scene = || {
        let mut scene = Scene::new(40, 4, 1.0);
        scene.edit_all(ArmName::Load, |_, observation| err(observation));
        scene.arms[ArmName::Load as usize].truncate(16);
        scene.without_control().evidence()
    };
    assert!(matches!(
        compare(&scene(), &Criteria::default()),
        Err(EvidenceError::Missing { arm: ArmName::Load, .. })
    ));
    let mut monitor = HarmMonitor::new(1);
    let mut subjects = (0..16).map(|number| format!("subject_{number}").parse().unwrap());
    let stop = subjects.find_map(|subject| monitor.observe(&subject, PairOutcome::Harm)).unwrap();
    assert_eq!(stop.pairs, 13);
    let mut stopped = Evidence { early_stop: Some(stop), ..scene() };
    // The server counted requests beyond those that are paired.
    stopped.server.as_mut().unwrap().load.hit_tokens += 512;
    let (comparison, judgement) = judged(&stopped);
    assert_eq!(
        (judgement.verdict, judgement.decided_by),
        (Verdict::Degraded, Rung::EarlyStop),
        "{}",
        judgement.reason
    );
    assert_eq!(comparison.questions, 16);
    let unfounded = Evidence { early_stop: Some(EarlyStop { harms: 3, ..stop }), ..scene() };
    assert!(matches!(compare(&unfounded, &Criteria::default()), Err(EvidenceError::UnfoundedStop { .. })));
    let lenient = Evidence { early_stop: Some(EarlyStop { harms: 3, bound: 1.0, ..stop }), ..scene() };
    assert!(matches!(compare(&lenient, &Criteria::default()), Err(EvidenceError::UnfoundedStop { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn the_order_of_the_evidence_leaves_no_trace(order in Just((0..30).collect::<Vec<usize>>()).prop_shuffle(), harmed in 0_usize..30) {
        let mut scene = Scene::new(30, 3, 0.8);
        noisy(&mut scene).edit(ArmName::Load, harmed, err);
        let bytes = |evidence: &Evidence| serde_json::to_vec(&compare(evidence, &Criteria::default()).unwrap()).unwrap();
        let sorted = bytes(&scene.evidence());
        for arm in &mut scene.arms {
            *arm = order.iter().map(|&number| arm[number].clone()).collect();
        }
        scene.questions = order.iter().rev().map(|&number| scene.questions[number].clone()).collect();
        prop_assert_eq!(&bytes(&scene.evidence()), &sorted);
        let read: Comparison = serde_json::from_slice(&sorted).unwrap();
        prop_assert_eq!(serde_json::to_vec(&read).unwrap(), sorted);
    }
}
