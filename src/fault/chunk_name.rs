//! What LMCache calls a chunk. Main type: [`ChunkName`].

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

    /// Whether this chunk is in a file of LMCache's `fs` tier, `MODEL@RANKS@GROUP@HASH.data`, or a value of its `resp` tier,
    /// `MODEL@RANKS@GROUP@HASH`; a salt may stand behind the hash.
    #[must_use]
    pub fn is_in(&self, name: &str) -> bool {
        let stem = name.strip_suffix(".data").unwrap_or(name);
        stem.split('@').nth(3).is_some_and(|hash| hash == self.0)
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
    fn a_file_or_value_is_named_by_its_fourth_field() {
        let name = &ChunkName::of_prompt(&[1, 2], 2)[0];
        assert!(name.is_in(&format!("model@0x01000100@0@{name}.data")));
        assert!(name.is_in(&format!("/models/one@01000100@0@{name}")));
        assert!(name.is_in(&format!("model@01000100@0@{name}@salt")));
        assert!(!name.is_in(&format!("model@0x01000100@0@{name}.tmp")));
        assert!(!name.is_in(&format!("{name}@0x01000100@0@00.data")));
    }
}
