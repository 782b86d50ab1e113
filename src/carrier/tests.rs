//! What is said of all carriers. LMCache's words are those of 0.5.6: see `docs/routes.md`.

use super::*;
use crate::options::Serde;

fn refusals(options: StoringOptions) -> Vec<(&'static str, Option<&'static str>)> {
    let refusal = |route: Route| {
        (route.name(), find_carrier(route).unwrap().refused_option(options).map(|refused| refused.option))
    };
    routes().into_iter().map(refusal).collect()
}

#[test]
fn each_route_offers_what_lmcache_does_on_it() {
    let servers = |option| {
        vec![
            ("in-process", None),
            ("mp", Some(option)),
            ("mp+fs", Some(option)),
            ("mp+redis", Some(option)),
            ("mp+p2p", Some(option)),
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
    for serde in [Serde::Cachegen, Serde::Turboquant] {
        let refused = refusals(StoringOptions { serde: Some(serde), ..defaults });
        assert!(refused.iter().all(|(_, refused)| *refused == Some("serde")));
    }
}
