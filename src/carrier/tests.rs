//! What is said of all carriers. LMCache's words are those of 0.5.6: see `docs/routes.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::engine::environment::Environment;
use crate::event::Events;
use crate::foreign::Keeper;
use crate::options::{Serde, TransferMode};
use crate::suite::LmcacheSettings;

fn refusals(options: StoringOptions) -> Vec<(&'static str, Option<&'static str>)> {
    let refusal = |route: Route| {
        (route.name(), find_carrier(route).unwrap().refused_option(options).map(|refused| refused.option))
    };
    of_lmcache().map(refusal).collect()
}

/// An environment without packages.
pub(super) fn environment_in(folder: &Utf8Path) -> Environment {
    let (python, platform) = ("3.11".to_owned(), "x86_64-linux".to_owned());
    let identity = EnvironmentIdentity { python, platform, packages: BTreeMap::new(), store_path: None };
    Environment::new(folder.to_owned(), identity)
}

/// What a carrier works with in this folder, without anything to start there.
pub(super) fn surroundings_in<'a>(
    notes: &'a Utf8Path,
    environment: &'a Environment,
    events: &'a Events,
) -> Surroundings<'a> {
    let options = StoringOptions::default();
    Surroundings {
        environment,
        variables: Vec::new(),
        lmcache: LmcacheSettings { chunk_tokens: 16, memory_gib: 1, options, slow: false },
        scarce_memory_mib: None,
        shards_of_chunk: 1,
        notes: notes.to_owned(),
        patience: Duration::from_secs(1),
        cache: notes,
        executable: notes,
        fork_servers: None,
        redis: None,
        events,
    }
}

/// LMCache's routes.
fn of_lmcache() -> impl Iterator<Item = Route> {
    CARRIERS.iter().map(|carrier| Route::named(carrier.name())).filter(|route| route.name() != "fake")
}

#[test]
fn each_route_offers_what_lmcache_does_on_it() {
    let servers = |option| {
        vec![
            ("in-process", None),
            ("in-process+disk", None),
            ("mp", Some(option)),
            ("mp+fs", Some(option)),
            ("mp+redis", Some(option)),
            ("mp+p2p", Some(option)),
            ("mp+restart", Some(option)),
        ]
    };
    let defaults = StoringOptions::default();
    assert!(refusals(defaults).iter().all(|(_, refused)| refused.is_none()));
    let unfull = StoringOptions { save_unfull_chunk: true, ..defaults };
    assert_eq!(refusals(unfull), servers("save_unfull_chunk"));
    assert_eq!(refusals(StoringOptions { layerwise: true, ..defaults }), servers("layerwise"));
    let decode = StoringOptions { save_decode_cache: true, ..defaults };
    assert!(refusals(decode).iter().all(|(_, refused)| refused.is_none()));
    for serde in [Serde::Fp8, Serde::Aesgcm] {
        let refused = refusals(StoringOptions { serde: Some(serde), ..defaults });
        let offered: Vec<&str> =
            refused.into_iter().filter(|(_, refused)| refused.is_none()).map(|(route, _)| route).collect();
        assert_eq!(offered, ["mp+fs", "mp+redis"]);
    }
    let driven = StoringOptions { transfer_mode: Some(TransferMode::LmcacheDriven), ..defaults };
    let refused: Vec<_> =
        refusals(driven).into_iter().filter_map(|(route, refused)| Some((route, refused?))).collect();
    assert_eq!(refused, [("in-process", "transfer_mode"), ("in-process+disk", "transfer_mode")]);
    for serde in [Serde::Cachegen, Serde::Turboquant] {
        let refused = refusals(StoringOptions { serde: Some(serde), ..defaults });
        assert!(refused.iter().all(|(_, refused)| *refused == Some("serde")));
    }
}

#[test]
fn a_route_that_no_carrier_serves_is_refused_with_those_that_there_are() {
    let error = find_carrier(Route::named("mp+fsx")).unwrap_err();
    let words = error.to_string();
    assert!(
        words.starts_with(
            "find route \"mp+fsx\": there are in-process, in-process+disk, mp, mp+fs, mp+redis, mp+p2p"
        ),
        "{words}"
    );
}

#[test]
fn faults_are_planted_on_disk_in_any_case_and_in_redis_where_that_is_tested() {
    let named = |names: &[&str]| names.iter().map(|name| Route::named(name)).collect::<Vec<_>>();
    assert_eq!(planting_routes(&named(&["mp", "in-process"])), named(&["mp+fs"]));
    assert_eq!(planting_routes(&named(&["mp+redis"])), named(&["mp+fs", "mp+redis"]));
    assert_eq!(foreign_route(Keeper::Server), Route::named("mp+fs"));
    assert_eq!(foreign_route(Keeper::Engine), Route::named("in-process"));
}

#[test]
fn each_route_says_what_its_counters_must_show() {
    let proofs: Vec<String> = of_lmcache()
        .map(|route| {
            let carrier = find_carrier(route).unwrap();
            format!("{route}: {:?}, {:?}", carrier.topology(), carrier.proof())
        })
        .collect();
    insta::assert_snapshot!(proofs.join("\n"), @r#"
    in-process: SameEngine, Engine
    in-process+disk: SameEngine, Engine
    mp: SameEngine, Memory
    mp+fs: AnotherEngine, SecondTier("fs")
    mp+redis: AnotherEngine, SecondTier("resp")
    mp+p2p: AnotherEngine, SecondTier("p2p")
    mp+restart: AnotherEngine, KeptMemory
    "#);
}

#[tokio::test]
async fn a_new_carrier_opens_settles_and_empties_behind_the_same_interface() {
    let folder = tempfile::tempdir().unwrap();
    let notes = Utf8Path::from_path(folder.path()).unwrap();
    let (environment, events) = (environment_in(notes), Events::ignored());
    let surroundings = surroundings_in(notes, &environment, &events);
    let options = StoringOptions::default();
    let carrier = find_carrier(Route::named("fake")).unwrap();
    assert!(carrier.admit(&Here { environment: None, redis: None, device: DeviceKind::Cpu }).is_ok());
    assert_eq!(carrier.full_hit(100, 96, options), 80);
    assert_eq!((carrier.planting_ground(), carrier.added_packages(environment.identity())), (None, None));
    let transport = carrier.prepare(&surroundings, 4096).await.unwrap();
    let port = transport.open(Side::Both, None).await.unwrap();
    assert_eq!(port.connector().extra["bytes"], 4096);
    let before = port.counters().await.unwrap();
    let after = port.settle(before, 3).await.unwrap();
    assert_eq!(after.since(before).written_chunks, 3);
    port.clear().await.unwrap();
    assert_eq!(port.counters().await.unwrap(), before);
    assert!(!transport.keeps_storing_side() && transport.require_alive().await.is_ok());
}
