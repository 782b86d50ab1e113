//! Runs that are gone through second by second: how long the rest took is held against what was said.

use super::*;

/// How long parts of a made-up run take, in seconds.
#[derive(Clone, Copy)]
struct Machine {
    import: f64,
    engine: f64,
    /// Ranks of an engine besides the first one.
    further_ranks: usize,
    /// What an engine's first answer takes longer than others.
    first: f64,
    server: f64,
    computed: f64,
    served: f64,
    /// How many times slower the second model is.
    second: f64,
}

/// Two cores without a GPU, about as measured.
const QUIET: Machine = Machine {
    import: 11.0,
    engine: 2.0,
    further_ranks: 0,
    first: 0.0,
    server: 7.0,
    computed: 0.17,
    served: 0.08,
    second: 1.1,
};
/// The same with others at work.
const BUSY: Machine = Machine {
    import: 21.0,
    engine: 3.5,
    further_ranks: 0,
    first: 0.0,
    server: 10.0,
    computed: 0.6,
    served: 0.25,
    second: 1.3,
};
/// Two ranks on two cores: engines start slowly, and so does what they do first.
const RANKS: Machine = Machine {
    import: 18.0,
    engine: 13.0,
    further_ranks: 1,
    first: 5.0,
    server: 7.0,
    computed: 0.35,
    served: 0.15,
    second: 0.9,
};
/// The same with others at work.
const BUSY_RANKS: Machine = Machine {
    import: 45.00,
    engine: 26.00,
    further_ranks: 1,
    first: 7.00,
    server: 14.00,
    computed: 0.80,
    served: 0.25,
    second: 0.90,
};
/// A run's events with their times, of two models on these routes.
fn run(
    machine: Machine,
    questions: usize,
    kept_baselines: bool,
    engines_of_route: &[usize],
) -> Vec<(f64, Event)> {
    let (mut events, mut jobs, mut now) = (Vec::new(), Vec::new(), 1.0);
    let (mut imports, mut told) = (machine.import, Vec::new());
    for (model, slower) in [("first", 1.0), ("second", machine.second)] {
        let further_ranks = machine.further_ranks;
        let arm = Effort { engines: 1, further_ranks, computed: questions, ..Effort::default() };
        let mut stages = vec![
            (JobName::new(StageName::Baseline, model), arm),
            (JobName::new(StageName::Control, model), Effort { served: questions, ..arm }),
        ];
        if kept_baselines {
            for (name, _) in stages.drain(..) {
                told.push((now, Event::StageReused { stage: name.stage, label: name.label }));
            }
        }
        for (route, &engines) in engines_of_route.iter().enumerate() {
            let effort = Effort {
                engines,
                further_ranks: engines * further_ranks,
                servers: engines,
                computed: questions,
                served: questions,
            };
            stages.push((JobName::new(StageName::Cached, &format!("{model} {route}")), effort));
        }
        for (job, effort) in stages {
            jobs.push((job.clone(), effort));
            let (stage, label) = (job.stage, job.label.clone());
            told.push((now, Event::StageStarted { stage, label: label.clone() }));
            let passes = [(Answering::Computed, machine.computed), (Answering::Served, machine.served)];
            for (place, (answering, seconds)) in passes.into_iter().enumerate() {
                if place < effort.engines {
                    now += machine.engine + std::mem::take(&mut imports);
                    now += if effort.servers > 0 { machine.server } else { 0.0 };
                    let elapsed = Duration::from_secs(1);
                    told.push((now, Event::EngineReady { job: job.clone(), label: label.clone(), elapsed }));
                }
                let total = if answering == Answering::Computed { effort.computed } else { effort.served };
                now += if place < effort.engines { machine.first } else { 0.0 };
                for done in 1..=total {
                    now += seconds * slower;
                    let pass = format!("{answering:?}");
                    told.push((now, Event::QuestionsDone { job: job.clone(), answering, pass, done, total }));
                }
            }
            now += 1.0;
            told.push((now, Event::StageFinished { stage, label, elapsed: Duration::from_secs(1) }));
        }
    }
    events.push((0.5, Event::WorkPlanned { jobs }));
    events.extend(told);
    events
}

/// What was said each second that was off by more than a third, after a minute and ten answers: second, said, true.
fn wrong(events: &[(f64, Event)]) -> Vec<(f64, f64, f64)> {
    let begun = Instant::now();
    let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
    let end = events.last().unwrap().0;
    let answered =
        events.iter().filter(|(_, event)| matches!(event, Event::QuestionsDone { .. })).nth(10).unwrap().0;
    let (mut forecast, mut wrong, mut second) = (Forecast::new(begun), Vec::new(), 0.0);
    for (time, event) in events {
        while second < *time {
            let left = forecast.outlook(at(second)).map_or(0.0, |outlook| outlook.left.as_secs_f64());
            // The last seconds are nobody's plan.
            let off = (left - (end - second)).abs();
            if second >= answered.max(60.0) && off > 5.0 && off > (end - second) / 3.0 {
                wrong.push((second, left, end - second));
            }
            second += 1.0;
        }
        forecast.note(event, at(*time));
    }
    assert_eq!(forecast.outlook(at(end)), None, "nothing is left");
    wrong
}

#[test]
fn the_time_that_is_left_is_right_within_a_third_after_the_first_minute() {
    let mut all = Vec::new();
    for (name, machine, questions) in [
        ("quiet", QUIET, 64),
        ("quiet, all questions", QUIET, 320),
        ("busy", BUSY, 64),
        ("busy, all questions", BUSY, 320),
        ("ranks", RANKS, 40),
        ("busy ranks", BUSY_RANKS, 40),
        ("ranks, all questions", RANKS, 320),
    ] {
        for engines_of_route in [&[1][..], &[1, 2], &[2, 2, 2]] {
            for kept_baselines in [false, true] {
                let events = run(machine, questions, kept_baselines, engines_of_route);
                all.push((name, engines_of_route, kept_baselines, wrong(&events)));
            }
        }
    }
    all.retain(|(.., wrong)| !wrong.is_empty());
    assert_eq!(all, []);
}

#[test]
fn what_fails_leaves_the_plan_and_nothing_is_left_of_an_empty_one() {
    let now = Instant::now();
    let mut forecast = Forecast::new(now);
    assert_eq!(forecast.outlook(now), None);
    let effort = Effort { engines: 1, computed: 100, ..Effort::default() };
    let job = |label: &str| JobName::new(StageName::Cached, label);
    forecast.note(&Event::WorkPlanned { jobs: vec![(job("a"), effort), (job("b"), effort)] }, now);
    let both = forecast.outlook(now).unwrap().left;
    let abandoned = |label: &str| Event::StageAbandoned { stage: StageName::Cached, label: label.to_owned() };
    forecast.note(&abandoned("a"), now);
    let one = forecast.outlook(now).unwrap();
    assert!(one.left < both && one.done == 0.0);
    // Planned once more, as when the environment is there, it stays over.
    forecast.note(&Event::WorkPlanned { jobs: vec![(job("a"), effort), (job("b"), effort)] }, now);
    assert_eq!(forecast.outlook(now).unwrap().left, one.left);
    forecast.note(&abandoned("b"), now);
    assert_eq!(forecast.outlook(now), None);
}
