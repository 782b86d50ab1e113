//! Evidence of the parts of a run to that of the whole. Main function: [`join_evidence`].

use serde_json::Value;

use super::evidence::{
    Arm, CutEvidence, EngineEvidence, Evidence, ServerCounters, ServerEvidence, ServingTier, Sharding,
    SourceHits,
};
use super::evidence_error::EvidenceError;
use super::kv_evidence::KvEvidence;
use super::sensitivity::worse_probe;

/// Why parts do not make a whole.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is none.
    #[error("there are no parts")]
    Nothing,
    /// They were not asked, computed or served alike.
    #[error("{field} is {one} in one part and {other} in another")]
    Differs {
        /// What.
        field: &'static str,
        /// In the first part.
        one: String,
        /// In the other.
        other: String,
    },
    /// A question is in two parts, or an arm is none.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
}

/// The evidence of a run whose questions were asked in parts: all questions, all observations, the sums of what servers counted. Where a
/// load pass ended early, that of the first part that did so is the whole's reason to: each part has its share of
/// the chance of a false alarm.
///
/// # Errors
/// When the parts differ in what they must share, or share a question.
pub fn join_evidence(parts: Vec<Evidence>) -> Result<Evidence, JoinError> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next().ok_or(JoinError::Nothing)?;
    for part in parts {
        same("comparisons", &whole.comparisons, &part.comparisons)?;
        same("cache", &whole.cache, &part.cache)?;
        same("loads_fail", &whole.loads_fail, &part.loads_fail)?;
        same("batching", &whole.batching, &part.batching)?;
        same("fidelity", &whole.fidelity, &part.fidelity)?;
        whole.questions.extend(part.questions);
        whole.baseline = joined(whole.baseline, part.baseline)?;
        whole.repeat = joined(whole.repeat, part.repeat)?;
        whole.store = joined(whole.store, part.store)?;
        whole.load = joined(whole.load, part.load)?;
        whole.cut = cuts(whole.cut, part.cut)?;
        same("control", &whole.control.is_some(), &part.control.is_some())?;
        whole.control = whole.control.zip(part.control).map(|(one, other)| joined(one, other)).transpose()?;
        same("server", &whole.server.is_some(), &part.server.is_some())?;
        whole.server = whole.server.zip(part.server).map(|(one, other)| servers(&one, &other)).transpose()?;
        same("store_tokens", &whole.store_tokens, &part.store_tokens)?;
        same("engine", &whole.engine.is_some(), &part.engine.is_some())?;
        whole.engine = whole.engine.zip(part.engine).map(|(one, other)| engines(one, other)).transpose()?;
        same("kv", &whole.kv.is_some(), &part.kv.is_some())?;
        whole.kv = whole.kv.zip(part.kv).map(|(one, other)| kv(one, other)).transpose()?;
        whole.spoilt = worse_probe(whole.spoilt, part.spoilt);
        whole.early_stop = whole.early_stop.or(part.early_stop);
    }
    Ok(whole)
}

fn same(
    field: &'static str,
    one: &impl serde::Serialize,
    other: &impl serde::Serialize,
) -> Result<(), JoinError> {
    let text = |value: &Value| value.to_string();
    let json =
        |error: serde_json::Error| JoinError::Differs { field, one: error.to_string(), other: String::new() };
    let (one, other) = (serde_json::to_value(one).map_err(json)?, serde_json::to_value(other).map_err(json)?);
    if one == other {
        Ok(())
    } else {
        Err(JoinError::Differs { field, one: text(&one), other: text(&other) })
    }
}

fn joined(one: Arm, other: Arm) -> Result<Arm, JoinError> {
    Ok(one.joined(other)?)
}

fn cuts(one: CutEvidence, other: CutEvidence) -> Result<CutEvidence, JoinError> {
    match (one, other) {
        (CutEvidence::Asked(mut one), CutEvidence::Asked(other)) => {
            one.extend(other);
            // As the arms are, in whatever order parts come.
            one.sort_by(|left, right| left.observation.question.cmp(&right.observation.question));
            Ok(CutEvidence::Asked(one))
        }
        (one, other) => same("cut", &one, &other).map(|()| one),
    }
}

fn engines(one: EngineEvidence, other: EngineEvidence) -> Result<EngineEvidence, JoinError> {
    let sums = |one: [u64; 2], other: [u64; 2]| [one[0] + other[0], one[1] + other[1]];
    let name = |engine: &EngineEvidence| engine.source.as_ref().map(|source| source.name.clone());
    same("engine.source", &name(&one), &name(&other))?;
    let source = one.source.zip(other.source).map(|(one, other)| SourceHits {
        name: one.name,
        at_least: one.at_least + other.at_least,
        tokens: one.tokens + other.tokens,
    });
    Ok(EngineEvidence { external: sums(one.external, other.external), own: sums(one.own, other.own), source })
}

fn servers(one: &ServerEvidence, other: &ServerEvidence) -> Result<ServerEvidence, JoinError> {
    same("server.sharding", &one.sharding.is_some(), &other.sharding.is_some())?;
    same("server.tier", &one.tier.is_some(), &other.tier.is_some())?;
    let sharding = one.sharding.zip(other.sharding).map(|(one, other)| -> Result<Sharding, JoinError> {
        same("server.sharding.chunk_tokens", &one.chunk_tokens, &other.chunk_tokens)?;
        same("server.sharding.written_shards", &one.written_shards, &other.written_shards)?;
        same("server.sharding.read_shards", &one.read_shards, &other.read_shards)?;
        same("server.sharding.bound", &one.bound, &other.bound)?;
        Ok(Sharding { stored_chunks: one.stored_chunks + other.stored_chunks, ..one })
    });
    let tier = one.tier.clone().zip(other.tier.clone()).map(|tiers| match tiers {
        (ServingTier::Memory, ServingTier::Memory) => Ok(ServingTier::Memory),
        (ServingTier::Second { name, at_least }, ServingTier::Second { name: also, at_least: more }) => {
            same("server.tier", &name, &also)?;
            Ok(ServingTier::Second { name, at_least: at_least + more })
        }
        (one, other) => same("server.tier", &one, &other).map(|()| one),
    });
    Ok(ServerEvidence {
        store: sum(one.store, other.store),
        load: sum(one.load, other.load),
        cut: sum(one.cut, other.cut),
        sharding: sharding.transpose()?,
        tier: tier.transpose()?,
    })
}

fn sum(one: ServerCounters, other: ServerCounters) -> ServerCounters {
    ServerCounters {
        requested_tokens: one.requested_tokens + other.requested_tokens,
        hit_tokens: one.hit_tokens + other.hit_tokens,
        second_tier_tokens: one.second_tier_tokens + other.second_tier_tokens,
        second_tier_loads: one.second_tier_loads + other.second_tier_loads,
        failed_loads: one.failed_loads + other.failed_loads,
        contended: one.contended + other.contended,
        given: one.given + other.given,
        chunks_written: one.chunks_written + other.chunks_written,
        chunks_read: one.chunks_read + other.chunks_read,
    }
}

fn kv(mut one: KvEvidence, other: KvEvidence) -> Result<KvEvidence, JoinError> {
    same("kv.chunk_tokens", &one.chunk_tokens, &other.chunk_tokens)?;
    same("kv.layers", &one.layers, &other.layers)?;
    same("kv.windows", &one.windows, &other.windows)?;
    same("kv.block_tokens", &one.block_tokens, &other.block_tokens)?;
    same("kv.shared_by_ranks", &one.shared_by_ranks, &other.shared_by_ranks)?;
    one.prefixes.extend(other.prefixes);
    one.store.extend(other.store);
    one.load.extend(other.load);
    one.cut.extend(other.cut);
    one.baseline.extend(other.baseline);
    one.repeat.extend(other.repeat);
    one.looks.extend(other.looks);
    Ok(one)
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, say};
    use super::super::{ArmName, Criteria, Evidence, compare};
    use super::*;
    use crate::dataset::{Choice, Subject};

    /// The evidence of those questions whose subject is in the part.
    fn part(whole: &Evidence, number: usize, of: usize) -> Evidence {
        let names: std::collections::BTreeSet<_> =
            whole.questions.iter().map(|asked| asked.id.subject.clone()).collect();
        let subjects: Vec<_> = names.into_iter().collect();
        let is_in =
            |subject: &Subject| subjects.iter().position(|name| name == subject).unwrap() % of == number;
        let arm = |arm: &Arm| arm.of_questions(|question| is_in(&question.subject));
        Evidence {
            questions: whole.questions.iter().filter(|asked| is_in(&asked.id.subject)).cloned().collect(),
            baseline: arm(&whole.baseline),
            repeat: arm(&whole.repeat),
            control: whole.control.as_ref().map(arm),
            store: arm(&whole.store),
            load: arm(&whole.load),
            ..whole.clone()
        }
    }

    fn scene() -> Evidence {
        let mut scene = Scene::new(60, 6, 0.8);
        scene.edit_all(ArmName::Load, |number, observation| {
            if number % 7 == 0 {
                say(observation, Choice::ALL[number % 4]);
            }
            observation.letters[0] -= 0.001 * f64::from(u32::try_from(number).unwrap());
        });
        Evidence { server: None, kv: None, ..scene.evidence() }
    }

    #[test]
    fn parts_compare_as_the_whole_does_bit_for_bit_in_any_order() {
        let whole = scene();
        let expected = serde_json::to_string(&compare(&whole, &Criteria::default()).unwrap()).unwrap();
        for order in [[0, 1, 2], [2, 0, 1]] {
            let parts = order.map(|number| part(&whole, number, 3)).to_vec();
            // As they come from files.
            let text = serde_json::to_string(&parts).unwrap();
            let parts: Vec<Evidence> = serde_json::from_str(&text).unwrap();
            let joined = compare(&join_evidence(parts).unwrap(), &Criteria::default()).unwrap();
            assert_eq!(serde_json::to_string(&joined).unwrap(), expected);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused_with_the_field_that_differs() {
        let whole = scene();
        let refused = |change: fn(&mut Evidence)| {
            let mut other = part(&whole, 1, 2);
            change(&mut other);
            join_evidence(vec![part(&whole, 0, 2), other]).unwrap_err().to_string()
        };
        assert_eq!(refused(|part| part.comparisons = 9), "comparisons is 1 in one part and 9 in another");
        assert!(refused(|part| part.control = None).starts_with("control is true"));
        let twice = join_evidence(vec![part(&whole, 0, 2), part(&whole, 0, 2)]);
        assert!(matches!(twice, Err(JoinError::Evidence(EvidenceError::Duplicate { .. }))), "{twice:?}");
        assert!(matches!(join_evidence(Vec::new()), Err(JoinError::Nothing)));
    }
}
