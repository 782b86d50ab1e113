//! Looks for the fewest questions and the shortest context that still show a finding, and writes them down as a script.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;

use super::output::write_whole;
use crate::assets::Model;
use crate::bisect::{minimise, shortest};
use crate::comparison::Verdict;
use crate::dataset::QuestionId;
use crate::engine::{Launch, OwnedProcess, Streams};
use crate::event::Event;
use crate::pipeline::run;
use crate::report::{Case, CasePrompt, Finding, write_script};
use crate::stage::{Bench, Excerpt, ExcerptQuestion, llm_arguments, read_prompts};
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
    let Some(all) = bench.excerpt.clone() else {
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
    bench.excerpt = Some(of(&questions, None));
    let longest = longest_chunks(bench).await?;
    let chunk_tokens = bench.suite.lmcache.chunk_tokens;
    // One token behind the last whole chunk is left to compute.
    let tokens = |chunks: u32| (chunks < longest).then(|| chunks * chunk_tokens + 1);
    let chunks = shortest(longest, async |chunks| {
        runs += 1;
        shows(bench, of(&questions, tokens(chunks)), wanted, &format!("{chunks} chunks")).await
    })
    .await?;
    bench.excerpt = Some(of(&questions, tokens(chunks)));
    let names: Vec<String> = questions.iter().map(ToString::to_string).collect();
    let length = tokens(chunks)
        .map_or_else(|| "whole prompts".to_owned(), |tokens| format!("the first {tokens} tokens"));
    let mut text = String::new();
    writeln!(text, "minimised    {runs} runs: {} of {} still differs", length, names.join(", "))?;
    let Some(script) = write_script(&make_case(bench, finding).await?) else {
        writeln!(text, "script       none: there is none for the route {}", finding.route)?;
        return Ok(text);
    };
    let path = out.join(format!("{}-{}.py", finding.model, finding.route));
    write_whole(&path, &script)?;
    let mut status = run_script(bench, &path, &[]).await?;
    let mut with = "random weights";
    if status == Some(0) {
        let settings = bench.suite.models.first().context("a finding has a model")?;
        let folder = Model::find(settings, &bench.cache)?.folder(&bench.cache)?;
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
    bench.excerpt = Some(excerpt);
    let findings = run(bench).await?;
    let shows = findings.verdict == wanted;
    let words = format!("minimise: {what}: {}", if shows { "still so" } else { "no longer so" });
    bench.events.emit(Event::BisectStep { words });
    Ok(shows)
}

/// The prompts of the bench's only model, which are there already.
async fn prompts(bench: &Bench) -> anyhow::Result<(Model, Artifact)> {
    let settings = bench.suite.models.first().context("a finding has a model")?;
    let artifacts = crate::pipeline::run_stage(bench, StageName::Prompts).await?;
    let (_, prompts) = artifacts.into_iter().next().context("a model has prompts")?;
    Ok((Model::find(settings, &bench.cache)?, prompts))
}

/// Whole chunks of the longest prompt, rounded up.
async fn longest_chunks(bench: &Bench) -> anyhow::Result<u32> {
    let (_, prompts) = prompts(bench).await?;
    let mut longest = 1;
    for prompt in read_prompts(&prompts)? {
        longest = longest.max(u32::try_from(prompt?.token_ids.len())?);
    }
    Ok(longest.div_ceil(bench.suite.lmcache.chunk_tokens))
}

async fn make_case(bench: &Bench, finding: &Finding) -> anyhow::Result<Case> {
    let (model, prompts) = prompts(bench).await?;
    let (arguments, variables) = llm_arguments(bench, &model, &prompts);
    // In a process of its own vLLM needs no mending.
    let variables = variables.into_iter().filter(|(name, _)| name != "VLLM_ENABLE_V1_MULTIPROCESSING");
    let own = [
        ("LMCACHE_CHUNK_SIZE", bench.suite.lmcache.chunk_tokens.to_string()),
        ("LMCACHE_LOCAL_CPU", "True".to_owned()),
        ("LMCACHE_MAX_LOCAL_CPU_SIZE", bench.suite.lmcache.memory_gib.to_string()),
        ("LMCACHE_TRACK_USAGE", "false".to_owned()),
        ("VLLM_NO_USAGE_STATS", "1".to_owned()),
    ];
    let options = bench.suite.lmcache.options;
    let own = own.into_iter().chain(options.variables()).map(|(name, value)| (name.to_owned(), value));
    let asked = read_prompts(&prompts)?.map(|prompt| {
        prompt.map(|prompt| CasePrompt { name: prompt.question.to_string(), token_ids: prompt.token_ids })
    });
    Ok(Case {
        route: finding.route,
        config: serde_json::from_slice(&model.read("config.json")?)
            .context("read the model's config.json")?,
        arguments,
        variables: variables.chain(own).collect(),
        connector: options.connector_settings(),
        chunk_tokens: bench.suite.lmcache.chunk_tokens,
        memory_gib: bench.suite.lmcache.memory_gib,
        max_tokens: bench.suite.engine.max_tokens,
        seed: bench.suite.engine.seed,
        prompts: asked.collect::<Result<_, _>>()?,
    })
}

/// Runs the script as its reader would, with the environment's Python; its exit status.
async fn run_script(bench: &Bench, script: &Utf8Path, options: &[&str]) -> anyhow::Result<Option<i32>> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut variables =
        vec![("PATH".to_owned(), format!("{}:{path}", bench.environment.folder().join("bin")))];
    variables.extend(bench.environment.python_path(None).map(|path| ("PYTHONPATH".to_owned(), path)));
    let mut command = vec![bench.environment.python().into_string()];
    command.push(camino::absolute_utf8(script)?.into_string());
    command.extend(options.iter().map(|&option| option.to_owned()));
    let launch = Launch {
        guard: bench.executable.clone(),
        command,
        variables,
        log: log_of(script),
        fork_server: None,
    };
    bench.events.emit(Event::EngineStarting { label: "script".to_owned(), log: launch.log.clone() });
    let mut process = OwnedProcess::start(&launch, Streams::Logged)?;
    Ok(process.wait(SCRIPT_PATIENCE).await.and_then(|status| status.code()))
}

fn log_of(script: &Utf8Path) -> camino::Utf8PathBuf {
    script.with_extension("log")
}
