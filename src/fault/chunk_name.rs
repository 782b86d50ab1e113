//! What LMCache calls a chunk and the shards that it is stored in. Main types: [`ChunkName`], [`Shard`].

use std::fmt;

/// The name of a chunk: a hash of its tokens and of the name before it, in hexadecimal. A stored file's name ends with it.
///
/// LMCache's default since 0.5.4: BLAKE3 of the previous name's 32 bytes and the token ids as big-endian 32-bit numbers;
/// the first chunk follows the BLAKE3 of eight zero bytes and the token 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName(String);

impl ChunkName {
    /// The names of a prompt's whole chunks, in order.
    #[must_use]
    pub fn of_prompt(token_ids: &[u32], chunk_tokens: u32) -> Vec<Self> {
        let chunk_tokens = usize::try_from(chunk_tokens).expect("a chunk fits into memory");
        let mut previous = blake3::Hasher::new().update(&[0; 8]).update(&0_u32.to_be_bytes()).finalize();
        let chunks = token_ids.chunks_exact(chunk_tokens);
        chunks
            .map(|tokens| {
                let mut hasher = blake3::Hasher::new();
                hasher.update(previous.as_bytes());
                for token in tokens {
                    hasher.update(&token.to_be_bytes());
                }
                previous = hasher.finalize();
                Self(previous.to_hex().to_string())
            })
            .collect()
    }
}

/// One of the equally large parts that a chunk is stored in, each written by another rank; numbers count from 0.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard {
    /// The chunk.
    pub chunk: ChunkName,
    /// Number of the rank among those that store.
    pub rank: u32,
}

impl Shard {
    /// All shards of a chunk.
    pub fn of_chunk(chunk: &ChunkName, shards: u32) -> impl Iterator<Item = Self> {
        (0..shards).map(|rank| Self { chunk: chunk.clone(), rank })
    }

    /// Whether this shard is in a file of LMCache's `fs` tier, `MODEL@RANKS@GROUP@HASH.data`, or a value of its `resp` tier,
    /// `MODEL@RANKS@GROUP@HASH`; a salt may stand behind the hash. RANKS are four bytes in hexadecimal: number of shards,
    /// rank, and both again for one host.
    #[must_use]
    pub fn is_in(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".data").unwrap_or(name);
        let mut fields = stem.split('@').skip(1);
        let (ranks, _group, hash) = (fields.next(), fields.next(), fields.next());
        let ranks = ranks.map(|ranks| ranks.strip_prefix("0x").unwrap_or(ranks));
        let ranks = ranks.and_then(|ranks| u32::from_str_radix(ranks, 16).ok());
        hash == Some(&self.chunk.0) && ranks.is_some_and(|ranks| ranks >> 16 & 0xff == self.rank)
    }
}

impl fmt::Display for ChunkName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Reference: LMCache 0.5.6, TokenHasher(4).compute_chunk_hashes(range(1, 10)).
    #[test]
    fn names_are_those_of_lmcache() {
        let tokens: Vec<u32> = (1..10).collect();
        let names: Vec<String> =
            ChunkName::of_prompt(&tokens, 4).iter().map(|name| format!("{name:.16}")).collect();
        assert_eq!(names, ["6309ed506b872190", "98efc76eafb06cfe"]);
    }

    #[test]
    fn a_file_or_value_is_named_by_its_fourth_field_and_by_its_rank() {
        let name = &ChunkName::of_prompt(&[1, 2], 2)[0];
        let [first, second] = [0, 1].map(|rank| Shard { chunk: name.clone(), rank });
        assert!(first.is_in(&format!("model@0x01000100@0@{name}.data")));
        assert!(first.is_in(&format!("model@0x02000200@0@{name}.data")));
        assert!(second.is_in(&format!("model@0x02010201@0@{name}.data")));
        assert!(first.is_in(&format!("/models/one@01000100@0@{name}")));
        assert!(second.is_in(&format!("model@02010201@0@{name}@salt")));
        for stranger in [
            "model@0x02010201@0@{}.data",
            "model@02010201@0@{}@salt",
            "model@0x01000100@0@{}.tmp",
            "{}@0x01000100@0@00.data",
        ] {
            assert!(!first.is_in(&stranger.replace("{}", &name.to_string())), "{stranger}");
        }
    }
}
