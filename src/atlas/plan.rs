//! Which cells an atlas has, and in which order. Main function: [`plan`].

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::description::{Description, Rest};
use super::version::is_pre_release;
use crate::digest::{Digest, digest_json};
use crate::model::Route;
use crate::suite::Suite;

const SCHEMA: u32 = 1;

/// One model on one route with one pair of releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Release of vLLM.
    pub vllm: String,
    /// Release of LMCache.
    pub lmcache: String,
    /// The model's name.
    pub model: String,
    /// The route.
    pub route: Route,
    /// Which bound names it.
    pub scope: Scope,
    /// Digest of all that its outcome depends on, but for the machine and this program.
    pub key: Digest,
}

/// Which bound names a cell; the most telling first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Both releases are among the newest.
    Newest,
    /// One of the releases is the newest.
    Neighbour,
    /// None of these.
    Rest,
}

/// One pair of releases, with its cells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// Release of vLLM.
    pub vllm: String,
    /// Release of LMCache.
    pub lmcache: String,
    /// Models on routes.
    pub cells: Vec<Cell>,
}

impl Pair {
    /// What its folders are called.
    #[must_use]
    pub fn name(&self) -> String {
        format!("vllm-{}-lmcache-{}", self.vllm, self.lmcache)
    }

    /// Whether a cell is one of this pair.
    #[must_use]
    pub fn is_of(&self, cell: &Cell) -> bool {
        self.vllm == cell.vllm && self.lmcache == cell.lmcache
    }
}

/// All cells of an atlas in the order in which they are run: the most telling scope first, in it the newest vLLM, so that its
/// environment is made once, and the newest LMCache. `suite` is what the description's cells run, `rules` the version of the rules by which
/// this program judges.
#[must_use]
pub fn plan(description: &Description, suite: &Suite, rules: u32) -> Vec<Cell> {
    let vllm: Vec<&String> = description.vllm().map(|(version, _)| version).rev().collect();
    let lmcache: Vec<&String> = description.lmcache.iter().rev().collect();
    let bounds = &description.bounds;
    let scope = |of_vllm: usize, of_lmcache: usize| match (of_vllm, of_lmcache) {
        (a, b) if a < bounds.newest && b < bounds.newest => Scope::Newest,
        (0, _) | (_, 0) if bounds.neighbours => Scope::Neighbour,
        _ => Scope::Rest,
    };
    let (ages_of_vllm, ages_of_lmcache) = (ages(&vllm), ages(&lmcache));
    let mut pairs: Vec<(Scope, usize, usize)> = (0..vllm.len())
        .flat_map(|a| (0..lmcache.len()).map(move |b| (a, b)))
        .map(|(a, b)| (scope(ages_of_vllm[a], ages_of_lmcache[b]), a, b))
        .collect();
    pairs.sort_unstable();
    let all: Vec<(&str, Route)> = suite
        .models
        .iter()
        .flat_map(|model| description.routes.iter().map(|&route| (model.name.as_str(), route)))
        .collect();
    let mut covered = Covered::default();
    let mut cells = Vec::new();
    for (scope, a, b) in pairs {
        let chosen: Vec<(&str, Route)> = match (scope, bounds.rest) {
            (Scope::Rest, Rest::None) => Vec::new(),
            (Scope::Rest, Rest::Pairwise) => covered
                .most_new(&all, vllm[a], lmcache[b], ages_of_vllm[a] + ages_of_lmcache[b])
                .into_iter()
                .collect(),
            _ => all.clone(),
        };
        for (model, route) in chosen {
            covered.add(vllm[a], lmcache[b], model, route);
            let key = digest_json(&serde_json::json!({
                "schema": SCHEMA,
                "rules": rules,
                "suite": suite,
                "device": description.device,
                "vllm": vllm[a],
                "torch": description.torch_of(vllm[a]),
                "lmcache": lmcache[b],
                "model": model,
                "route": route,
            }));
            cells.push(Cell {
                vllm: vllm[a].clone(),
                lmcache: lmcache[b].clone(),
                model: model.to_owned(),
                route,
                scope,
                key,
            });
        }
    }
    cells
}

/// How many releases are newer than each version, newest first; a pre-release takes no release's place.
fn ages(versions: &[&String]) -> Vec<usize> {
    let mut newer = 0;
    let age = |version: &&String| {
        let age = newer;
        newer += usize::from(!is_pre_release(version));
        age
    };
    versions.iter().map(age).collect()
}

/// Cells by their pair, in the order of the pairs' first cells.
pub fn pairs<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for cell in cells {
        match pairs.iter_mut().find(|pair| pair.is_of(cell)) {
            Some(pair) => pair.cells.push(cell.clone()),
            None => pairs.push(Pair {
                vllm: cell.vllm.clone(),
                lmcache: cell.lmcache.clone(),
                cells: vec![cell.clone()],
            }),
        }
    }
    pairs
}

/// Which releases have met which models and routes.
#[derive(Debug, Default)]
struct Covered(BTreeSet<(String, String)>);

impl Covered {
    fn meetings(vllm: &str, lmcache: &str, model: &str, route: Route) -> [(String, String); 4] {
        let (vllm, lmcache) = (format!("vllm {vllm}"), format!("lmcache {lmcache}"));
        let (model, route) = (format!("model {model}"), format!("route {route}"));
        [(vllm.clone(), model.clone()), (vllm, route.clone()), (lmcache.clone(), model), (lmcache, route)]
    }

    fn add(&mut self, vllm: &str, lmcache: &str, model: &str, route: Route) {
        self.0.extend(Self::meetings(vllm, lmcache, model, route));
    }

    /// The model and route that most meetings are new for; where all are old, each in turn.
    fn most_new<'a>(
        &self,
        all: &[(&'a str, Route)],
        vllm: &str,
        lmcache: &str,
        turn: usize,
    ) -> Option<(&'a str, Route)> {
        let new = |(model, route): &(&str, Route)| {
            let meetings = Self::meetings(vllm, lmcache, model, *route);
            meetings.iter().filter(|meeting| !self.0.contains(meeting)).count()
        };
        let in_turn = (0..all.len()).map(|place| all[(place + turn) % all.len()]);
        // The last of the best, from behind: the first.
        in_turn.rev().max_by_key(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atlas::VllmReleases;

    fn description(bounds: crate::atlas::Bounds) -> (Description, Suite) {
        let mut description = Description::load("cpu").unwrap();
        let versions = |numbers: std::ops::Range<u32>| numbers.map(|number| format!("1.{number}")).collect();
        description.lmcache = versions(0..5);
        description.vllm = vec![
            VllmReleases { torch: "1".to_owned(), versions: versions(0..3) },
            VllmReleases { torch: "2".to_owned(), versions: versions(3..6) },
        ];
        description.routes = ["mp", "mp+fs"].map(Route::named).to_vec();
        description.bounds = bounds;
        (description, Suite::load("canary").unwrap())
    }

    #[test]
    fn the_newest_pair_comes_first_and_every_pair_is_planned_once() {
        let (description, suite) = description(crate::atlas::Bounds::default());
        let cells = plan(&description, &suite, 1);
        let first: Vec<_> =
            cells.iter().take(4).map(|cell| (cell.vllm.as_str(), cell.lmcache.as_str())).collect();
        assert_eq!(first, [("1.5", "1.4"); 4], "both models on both routes");
        let pairs = pairs(&cells);
        assert_eq!(pairs.len(), 6 * 5);
        let of = |scope| cells.iter().filter(|cell| cell.scope == scope).count();
        // Nine pairs in whole; three and two beside them; one cell each of the other sixteen.
        assert_eq!((of(Scope::Newest), of(Scope::Neighbour), of(Scope::Rest)), (36, 20, 16));
        assert!(cells.is_sorted_by_key(|cell| cell.scope));
        // All meet all among the first; the rest goes through models and routes all the same.
        let rest: BTreeSet<_> = cells
            .iter()
            .filter(|cell| cell.scope == Scope::Rest)
            .map(|cell| (cell.model.as_str(), cell.route))
            .collect();
        assert_eq!(rest.len(), 4);
    }

    #[test]
    fn a_pre_release_is_tested_like_the_newest_and_takes_no_release_from_its_place() {
        let (mut description, suite) = description(crate::atlas::Bounds::default());
        let before = plan(&description, &suite, 1);
        description.lmcache.push("1.5rc1".to_owned());
        let cells = plan(&description, &suite, 1);
        let of_pre_release = |cell: &&Cell| cell.lmcache == "1.5rc1";
        assert!(before.iter().all(|cell| cells.contains(cell)), "what was planned stays as it was");
        assert_eq!(cells.len() - before.len(), cells.iter().filter(of_pre_release).count());
        // With each of six releases of vLLM both models on both routes: with three as one of the newest.
        let of = |scope| cells.iter().filter(of_pre_release).filter(|cell| cell.scope == scope).count();
        assert_eq!((of(Scope::Newest), of(Scope::Neighbour), of(Scope::Rest)), (12, 12, 0));
    }

    #[test]
    fn pairwise_lets_each_release_meet_each_model_and_each_route() {
        let bounds = crate::atlas::Bounds { newest: 0, neighbours: false, rest: Rest::Pairwise };
        let (description, suite) = description(bounds);
        let cells = plan(&description, &suite, 1);
        assert_eq!(cells.len(), 6 * 5);
        for (vllm, _) in description.vllm() {
            let of = |pick: fn(&Cell) -> String| {
                cells.iter().filter(|cell| cell.vllm == *vllm).map(pick).collect::<BTreeSet<_>>().len()
            };
            assert_eq!((of(|cell| cell.model.clone()), of(|cell| cell.route.to_string())), (2, 2), "{vllm}");
        }
        for lmcache in &description.lmcache {
            let routes: BTreeSet<_> =
                cells.iter().filter(|cell| cell.lmcache == *lmcache).map(|cell| cell.route).collect();
            assert_eq!(routes.len(), 2, "{lmcache}");
        }
    }

    #[test]
    fn nothing_of_the_rest_is_planned_where_none_is_asked_for_and_keys_differ() {
        let bounds = crate::atlas::Bounds { newest: 1, neighbours: true, rest: Rest::None };
        let (mut description, mut suite) = description(bounds);
        let cells = plan(&description, &suite, 1);
        assert_eq!(pairs(&cells).len(), 1 + 5 + 4);
        let keys: BTreeSet<Digest> = cells.iter().map(|cell| cell.key).collect();
        assert_eq!(keys.len(), cells.len());
        suite.engine.seed += 1;
        assert!(plan(&description, &suite, 1).iter().all(|cell| !keys.contains(&cell.key)));
        suite.engine.seed -= 1;
        description.vllm[1].torch = "3".to_owned();
        let changed = plan(&description, &suite, 1);
        let same = changed.iter().filter(|cell| keys.contains(&cell.key)).count();
        assert_eq!(
            same,
            cells.iter().filter(|cell| ["1.0", "1.1", "1.2"].contains(&cell.vllm.as_str())).count()
        );
    }
}
