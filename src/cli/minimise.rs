//! Looks for the fewest questions and the shortest context that still show a finding, and writes them down as a script.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;

use super::output::write_whole;
use crate::assets::Model;
use crate::bisect::{minimise, shortest};
use crate::carrier::{Carrier, find_carrier, in_process_variables};
use crate::comparison::Verdict;
use crate::dataset::QuestionId;
use crate::engine::{Launch, OwnedProcess, Streams};
use crate::event::Event;
use crate::pipeline::{Bench, prepare_inputs, run, run_stage};
use crate::report::{Case, CasePrompt, Finding, write_script};
use crate::stage::{EngineSpec, Excerpt, ExcerptQuestion, read_prompts};
use crate::stage_name::StageName;
use crate::store::Artifact;

/// How long the script may take: two starts of an engine with vLLM's own processes.
const SCRIPT_PATIENCE: Duration = Duration::from_mins(15);

/// Minimises what the bench has just reproduced; what to say of it.
pub(super) async fn minimise_finding(
    bench: &mut Bench,
    finding: &Finding,
    out: &Utf8Path,
) -> anyhow::Result<String> {
    let wanted = finding.judgement.verdict;
    let Some(all) = bench.request.excerpt.clone() else {
        return Ok("minimised    nothing: the report names no question that differed\n".to_owned());
    };
    let all: Vec<QuestionId> = all.into_iter().map(|one| one.question).collect();
    let of = |questions: &[QuestionId], tokens| -> Excerpt {
        questions.iter().map(|question| ExcerptQuestion { question: question.clone(), tokens }).collect()
    };
    let mut runs = 0;
    let questions = minimise(all, async |questions: &[QuestionId]| {
        runs += 1;
        shows(bench, of(questions, None), wanted, &format!("{} questions", questions.len())).await
    })
    .await?;
    // Of the questions that are left: a prompt is not cut behind its end.
    bench.request.excerpt = Some(of(&questions, None));
    let longest = longest_chunks(bench).await?;
    let chunk_tokens = bench.request.suite.lmcache.chunk_tokens;
    // One token behind the last whole chunk is left to compute.
    let tokens = |chunks: u32| (chunks < longest).then(|| chunks * chunk_tokens + 1);
    let chunks = shortest(longest, async |chunks| {
        runs += 1;
        shows(bench, of(&questions, tokens(chunks)), wanted, &format!("{chunks} chunks")).await
    })
    .await?;
    bench.request.excerpt = Some(of(&questions, tokens(chunks)));
    let names: Vec<String> = questions.iter().map(ToString::to_string).collect();
    let length = tokens(chunks)
        .map_or_else(|| "whole prompts".to_owned(), |tokens| format!("the first {tokens} tokens"));
    let mut text = String::new();
    writeln!(text, "minimised    {runs} runs: {} of {} still differs", length, names.join(", "))?;
    if !find_carrier(finding.route).is_ok_and(Carrier::fits_a_script) {
        writeln!(text, "script       none: there is none for the route {}", finding.route)?;
        return Ok(text);
    }
    let script = write_script(&make_case(bench, finding).await?);
    let path = out.join(format!("{}-{}.py", finding.model, finding.route));
    write_whole(&path, &script)?;
    let mut status = run_script(bench, &path, &[]).await?;
    let mut with = "random weights";
    if status == Some(0) {
        let folder = only_model(bench)?.files().folder(&bench.desk.cache)?;
        with = "the tested model (`--model DIR`)";
        status = run_script(bench, &path, &["--model", folder.as_str()]).await?;
    }
    let words = match status {
        Some(1) => format!("shows the difference with {with} (exit status 1)"),
        Some(0) => "shows no difference, not even with the tested model (`--model DIR`)".to_owned(),
        status => format!("did not compare (exit status {status:?}); see {}", log_of(&path)),
    };
    writeln!(text, "script       {path} {words}")?;
    Ok(text)
}

/// Whether a run of these questions comes to the same verdict.
async fn shows(bench: &mut Bench, excerpt: Excerpt, wanted: Verdict, what: &str) -> anyhow::Result<bool> {
    bench.request.excerpt = Some(excerpt);
    let inputs = prepare_inputs(bench).await?;
    let findings = run(bench, &inputs).await?.of_comparisons()?;
    let shows = findings.verdict == wanted;
    let words = format!("minimise: {what}: {}", if shows { "still so" } else { "no longer so" });
    bench.desk.events.emit(Event::BisectStep { words });
    Ok(shows)
}

/// The prompts of the bench's only model, which are there already.
async fn prompts(bench: &Bench) -> anyhow::Result<Artifact> {
    let inputs = prepare_inputs(bench).await?;
    let artifacts = run_stage(bench, &inputs, StageName::Prompts).await?;
    let (_, prompts) = artifacts.into_iter().next().context("a model has prompts")?;
    Ok(prompts)
}

fn only_model(bench: &Bench) -> anyhow::Result<&Model> {
    bench.desk.sources.models().first().context("a finding has a model")
}

/// Whole chunks of the longest prompt, rounded up.
async fn longest_chunks(bench: &Bench) -> anyhow::Result<u32> {
    let prompts = prompts(bench).await?;
    let mut longest = 1;
    for prompt in read_prompts(&prompts)? {
        longest = longest.max(u32::try_from(prompt?.token_ids.len())?);
    }
    Ok(longest.div_ceil(bench.request.suite.lmcache.chunk_tokens))
}

async fn make_case(bench: &Bench, finding: &Finding) -> anyhow::Result<Case> {
    let (model, prompts, suite) = (only_model(bench)?, prompts(bench).await?, &bench.request.suite);
    let environment = bench.desk.environment.as_ref().context("a finding was reproduced in one")?;
    let engine = EngineSpec::of(suite, model, &bench.request.device, environment.identity().clone());
    // In a process of its own vLLM needs no mending.
    let own = engine.variables.into_iter().filter(|(name, _)| name != "VLLM_ENABLE_V1_MULTIPROCESSING");
    let quiet = [("LMCACHE_TRACK_USAGE", "false"), ("VLLM_NO_USAGE_STATS", "1")];
    let variables = own
        .chain(in_process_variables(&suite.lmcache))
        .chain(quiet.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let options = suite.lmcache.options;
    let asked = read_prompts(&prompts)?.map(|prompt| {
        prompt.map(|prompt| CasePrompt { name: prompt.question.to_string(), token_ids: prompt.token_ids })
    });
    Ok(Case {
        route: finding.route,
        config: serde_json::from_slice(&model.files().read("config.json")?)
            .context("read the model's config.json")?,
        arguments: engine.arguments,
        variables: variables.collect(),
        connector: options.connector_settings(),
        chunk_tokens: suite.lmcache.chunk_tokens,
        memory_gib: suite.lmcache.memory_gib,
        max_tokens: suite.engine.max_tokens,
        seed: suite.engine.seed,
        prompts: asked.collect::<Result<_, _>>()?,
    })
}

/// Runs the script as its reader would, with the environment's Python; its exit status.
async fn run_script(bench: &Bench, script: &Utf8Path, options: &[&str]) -> anyhow::Result<Option<i32>> {
    let environment = bench.desk.environment.as_ref().context("a finding was reproduced in one")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut variables = vec![("PATH".to_owned(), format!("{}:{path}", environment.folder().join("bin")))];
    variables.extend(environment.python_path(None).map(|path| ("PYTHONPATH".to_owned(), path)));
    let mut command = vec![environment.python().into_string()];
    command.push(camino::absolute_utf8(script)?.into_string());
    command.extend(options.iter().map(|&option| option.to_owned()));
    let launch = Launch {
        guard: bench.desk.executable.clone(),
        command,
        variables,
        log: log_of(script),
        fork_server: None,
    };
    bench.desk.events.emit(Event::EngineStarting { label: "script".to_owned(), log: launch.log.clone() });
    let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
    Ok(process.wait(SCRIPT_PATIENCE).await.and_then(|status| status.code()))
}

fn log_of(script: &Utf8Path) -> camino::Utf8PathBuf {
    script.with_extension("log")
}
