//! Time to compare all of MMLU's 14042 questions, five arms, and to judge the result: `cargo bench --bench compare`.
#![expect(missing_docs, reason = "criterion's macros make undocumented functions")]

use criterion::{Criterion, criterion_group, criterion_main};
use kv_correctness::comparison::{
    Arm, ArmName, Asked, Batching, Criteria, CutEvidence, Evidence, Expected, Fidelity, compare, conclude,
};
use kv_correctness::dataset::{Choice, QuestionId, Split};
use kv_correctness::model::{Observation, Step, TokenLogprob};

const QUESTIONS: u32 = 14_042;
const SUBJECTS: u32 = 57;

fn ask(number: u32) -> Asked {
    let subject =
        format!("subject_with_a_usual_name_{:02}", number % SUBJECTS).parse().expect("a subject's name");
    let id = QuestionId { subject, split: Split::Test, row: number / SUBJECTS + 1 };
    let expected = Expected { prompt_tokens: 800, store_at_most: 512, load: 768, control: 768 };
    Asked { id, answer: Choice::ALL[number as usize % 4], expected }
}

/// Two generated tokens with their five likeliest. `noise` moves all log-probabilities, and one letter in a hundred.
fn observe(number: u32, asked: &Asked, cached_tokens: u32, noise: u32) -> Observation {
    let flipped = noise > 0 && number % 100 == 7;
    let letter = u32::from(number.is_multiple_of(3) || flipped) + number % 4;
    #[expect(clippy::cast_possible_truncation, reason = "an engine's log-probabilities are float32")]
    let logprob = |rank: u32| (-0.1 - f64::from(rank) - 1e-4 * f64::from((number * 31 + noise) % 97)) as f32;
    let top: Vec<TokenLogprob> =
        (0..5).map(|rank| TokenLogprob { token: (letter + rank) % 5, logprob: logprob(rank) }).collect();
    let steps = vec![Step { chosen: top[0], top }; 2];
    let letters = [0, 1, 2, 3].map(logprob).map(f64::from);
    let prompt_tokens = asked.expected.prompt_tokens;
    let (preemptions, served_again) = (0, Vec::new());
    let question = asked.id.clone();
    Observation {
        question,
        prompt_tokens,
        cached_tokens,
        preemptions,
        served_again,
        letters,
        no_numbers: false,
        steps,
    }
}

/// `noise` is what the load pass and the control add to the baseline.
fn evidence(noise: u32) -> Evidence {
    let questions: Vec<Asked> = (0..QUESTIONS).map(ask).collect();
    let arm = |name, cached: u32, noise: u32| {
        let observations =
            (0..).zip(&questions).map(|(number, asked)| observe(number, asked, cached, noise)).collect();
        let read =
            |observation: &Observation| Choice::ALL.get(observation.steps[0].chosen.token as usize).copied();
        Arm::new(name, observations, read).expect("one finite observation a question")
    };
    Evidence {
        cache: "LMCache".to_owned(),
        baseline: arm(ArmName::Baseline, 0, 0),
        repeat: arm(ArmName::Repeat, 0, 0),
        control: Some(arm(ArmName::Control, 768, noise)),
        store: arm(ArmName::Store, 512, 0),
        load: arm(ArmName::Load, 768, 2 * noise),
        cut: CutEvidence::LeftOut { reason: "only whole prompts are compared".to_owned() },
        server: None,
        kv: None,
        engine: None,
        store_tokens: None,
        spoilt: None,
        loads_fail: false,
        early_stop: None,
        batching: Batching::OneAtATime,
        fidelity: Fidelity::Exact,
        questions,
        comparisons: 1,
    }
}

fn compare_all_of_mmlu(criterion: &mut Criterion) {
    for (name, noise) in [("bit-exact", 0), ("every question differs", 3)] {
        let evidence = evidence(noise);
        criterion.bench_function(&format!("compare 14042 questions, {name}"), |bencher| {
            bencher.iter(|| {
                let comparison =
                    compare(&evidence, &Criteria::default()).expect("the evidence belongs together");
                conclude([&comparison])
            });
        });
    }
}

criterion_group!(benches, compare_all_of_mmlu);
criterion_main!(benches);
