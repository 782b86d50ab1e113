//! Conversations: what the driver says where each turn is served what the turns before stored, and where it is not.

use fs_err as fs;
use kv_correctness::comparison::{Rung, Verdict};
use kv_correctness::report::Talk;

use crate::lab::{Ended, Lab};

fn talk(faults: &str, route: &str) -> (Lab, Ended, Vec<Talk>) {
    let lab = Lab::new();
    let ended = lab.run(faults, &format!("--turns --route {route}"));
    let talks = lab.report().talks;
    (lab, ended, talks)
}

#[test]
fn each_turn_is_served_what_the_turns_before_stored_also_by_another_engine() {
    // What a server copies from its tier into its memory counts as written there, and never comes behind it.
    for (route, faults) in [("mp", ""), ("mp+fs", ""), ("mp+fs", "recount@server")] {
        let (lab, ended, talks) = talk(faults, route);
        assert_eq!(ended.code, 0, "{}{}", ended.err, ended.out);
        assert_eq!(talks.iter().map(|talk| talk.findings.saves_answers).collect::<Vec<_>>(), [false, true]);
        for talk in &talks {
            assert_eq!(talk.judgement.verdict, Verdict::Equivalent, "{}", talk.judgement.reason);
            let turns = &talk.findings.turns;
            assert!(turns.iter().filter(|turn| turn.turn > 1).all(|turn| turn.served_tokens > 0));
            let longest = turns.iter().map(|turn| turn.prompt_tokens / talk.findings.chunk_tokens).max();
            assert!(longest.unwrap() > 8, "{longest:?}");
            let of_answers: u64 = turns.iter().map(|turn| turn.cells.generated).sum();
            assert!(of_answers > 0 || !talk.findings.saves_answers);
        }
        let engines = lab.steps().iter().filter(|step| *step == "start cached").count();
        assert!(engines >= 4, "two for each of the conversations, {engines}");
        for file in ["summary.md", "report.html", "junit.xml"] {
            let text = fs::read_to_string(lab.path("out").join(file)).unwrap();
            assert!(text.contains("answers stored"), "{file}");
        }
    }
}

#[test]
fn answers_that_are_not_kept_although_they_must_be_are_no_service() {
    let (_lab, ended, talks) = talk("forgetful@answer", "mp");
    assert_eq!(ended.code, 4, "{}{}", ended.err, ended.out);
    assert_eq!(talks[0].judgement.verdict, Verdict::Equivalent, "{}", talks[0].judgement.reason);
    let judgement = &talks[1].judgement;
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::NotExercised, Rung::Exercised));
    assert!(ended.out.contains(&judgement.reason), "{}", ended.out);
}

#[test]
fn a_wrong_cell_of_a_turn_is_degraded_and_named() {
    let (_lab, ended, talks) = talk("wrongkv@turn", "mp");
    assert_eq!(ended.code, 1, "{}{}", ended.err, ended.out);
    let judgement = &talks[1].judgement;
    assert_eq!((judgement.verdict, judgement.decided_by), (Verdict::Degraded, Rung::Kv));
    assert!(
        judgement.reason.contains(
            "(first: turn 2 of conversation 2, chunk 1, layer 1, rank 0: wrong when read and at the end)"
        ),
        "{}",
        judgement.reason
    );
}

#[test]
fn routes_over_which_nothing_can_be_talked_are_told() {
    let (_lab, ended, talks) = talk("", "example");
    assert!(talks.is_empty());
    assert_eq!(ended.code, 2, "{}{}", ended.err, ended.out);
    assert!(ended.err.contains("example"), "{}", ended.err);
}
