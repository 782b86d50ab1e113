//! How the bytes of one stored chunk are arranged. Main type: [`Layout`].
//!
//! A chunk is `layers × rows × width` elements without header (LMCache in MP mode, `fs` tier and memory pool alike). How they
//! lie is an [`Arrangement`]. Operators work on layers outermost, in each its rows, in each row one head after another:
//! [`Layout::by_layers`] and [`Layout::as_stored`] go there and back.
//!
//! [`Layout::check`] holds all this against chunks that the engine itself stored.

use std::borrow::Cow;
use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::machine::DeviceKind;
use crate::model::{Dtype, KvShape};

/// In which order a chunk's elements lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrangement {
    /// Layers outermost; a row is what LMCache takes for a token.
    ///
    /// - MLA: a row is one token, its latent vector and then the rotary part.
    /// - dense, under vLLM's CPU attention: a row holds `2 × head_size` elements for each KV head, one head after another.
    ///   vLLM packs keys and values by block and head, all keys first, so for each head the first half of a block's rows are
    ///   the keys of all of its tokens and the second half their values. Inside the keys' half the order of elements depends
    ///   on the processor's kernels, and no operator relies on it.
    LayersFirst {
        /// Rows of one block of the engine, in whose halves a dense model's keys and values lie.
        block_rows: usize,
    },
    /// Dense, under vLLM's `FlashAttention`: the keys of all layers, then the values of all layers, each `layers × tokens × heads
    /// × head_size` elements (LMCache's memory format `KV_2LTD`). A row is one token; by layers, each of its heads has its
    /// keys and then its values.
    KeysFirst,
    /// Dense, under vLLM's `FlashAttention` since it packs keys and values: layers outermost, a row is one token, in which each
    /// head has its keys and then its values.
    TokensFirst,
}

impl Arrangement {
    /// Those that are known on such a device, the newest first, where the engine's blocks have so many tokens.
    #[must_use]
    pub fn known(device: DeviceKind, shape: KvShape, block_tokens: u32) -> Vec<Self> {
        let block_rows = size(block_tokens.into());
        match (device, shape) {
            (DeviceKind::Cuda, KvShape::Dense { .. }) => vec![Self::TokensFirst, Self::KeysFirst],
            _ => vec![Self::LayersFirst { block_rows }],
        }
    }
}

/// The parts and the order of a chunk's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What one token's KV is made of.
    pub shape: KvShape,
    /// Type of an element.
    pub dtype: Dtype,
    /// Rows of a layer: tokens of a chunk.
    pub rows: usize,
    /// Their order.
    pub arrangement: Arrangement,
}

/// Why a chunk's layout is not the one that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A chunk of another size.
    #[error("read the layout of a chunk: it has {bytes} bytes where {expected} were expected")]
    Size {
        /// What the file has.
        bytes: usize,
        /// What shape, data type and chunk size give.
        expected: usize,
    },
    /// Blocks that do not fill a chunk, or have no halves.
    #[error("read the layout of a chunk: {rows} rows are not made of whole blocks of {block_rows}")]
    Blocks {
        /// Rows of a chunk.
        rows: usize,
        /// Rows of a block.
        block_rows: usize,
    },
    /// The probe's bytes agree where they must not, or the other way round.
    #[error("read the layout of a chunk: {0}")]
    Probe(String),
}

impl LayoutError {
    fn problem(&self) -> String {
        match self {
            Self::Probe(problem) => problem.clone(),
            other => other.to_string(),
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let known =
            "faults are known for LMCache 0.5.6 on a CPU, and for 0.5.3 and 0.5.6 under FlashAttention";
        Some(format!("{known}; run without `--faults`"))
    }
}

/// Chunks that the engine stored for the same tokens in other surroundings.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    /// Some tokens behind a prefix of one chunk.
    pub chunk: &'a [u8],
    /// The same tokens at the same position behind another prefix.
    pub other_prefix: &'a [u8],
    /// The same tokens one chunk later.
    pub later: &'a [u8],
}

impl Layout {
    /// Bytes of a chunk.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers() * self.layer_bytes()
    }

    /// Number of layers.
    #[must_use]
    pub fn layers(&self) -> usize {
        let (KvShape::Dense { layers, .. } | KvShape::Mla { layers, .. }) = self.shape;
        size(layers)
    }

    /// Bytes of an element.
    #[must_use]
    pub fn element_bytes(&self) -> usize {
        size(self.dtype.bytes())
    }

    /// Rows at the end of a layer that hold its last two tokens. Of a dense model under vLLM's CPU attention these are their values,
    /// which fill a row together; their keys are elsewhere.
    #[must_use]
    pub fn rows_of_two_tokens(&self) -> usize {
        match (self.arrangement, self.shape) {
            (Arrangement::LayersFirst { .. }, KvShape::Dense { .. }) => 1,
            _ => 2,
        }
    }

    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.shape {
            KvShape::Dense { kv_heads, head_size, .. } => size(2 * kv_heads * head_size),
            KvShape::Mla { latent, rotary, .. } => size(latent + rotary),
        }
    }

    /// Where a layer lies, in bytes by layers.
    #[must_use]
    pub fn layer(&self, layer: usize) -> Range<usize> {
        layer * self.layer_bytes()..(layer + 1) * self.layer_bytes()
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.width() * self.element_bytes()
    }

    /// Bytes of the part of a row that belongs together: a head's in a dense model, the whole row in MLA.
    #[must_use]
    pub fn part_bytes(&self) -> usize {
        match self.shape {
            KvShape::Dense { head_size, .. } => size(2 * head_size) * self.element_bytes(),
            KvShape::Mla { .. } => self.row_bytes(),
        }
    }

    /// Bytes of MLA's latent vector; `None` in a dense model.
    #[must_use]
    pub fn latent_bytes(&self) -> Option<usize> {
        match self.shape {
            KvShape::Dense { .. } => None,
            KvShape::Mla { latent, .. } => Some(size(latent) * self.element_bytes()),
        }
    }

    fn layer_bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// A stored chunk's bytes, layers outermost. They are as many as [`bytes`](Self::bytes).
    #[must_use]
    pub fn by_layers<'a>(&self, stored: &'a [u8]) -> Cow<'a, [u8]> {
        match self.arrangement {
            Arrangement::LayersFirst { .. } | Arrangement::TokensFirst => Cow::Borrowed(stored),
            Arrangement::KeysFirst => {
                let mut ordered = vec![0; stored.len()];
                let half = self.part_bytes() / 2;
                for (one, place) in stored.chunks_exact(half).zip(self.places()) {
                    ordered[place * half..][..half].copy_from_slice(one);
                }
                Cow::Owned(ordered)
            }
        }
    }

    /// What [`by_layers`](Self::by_layers) was made from.
    #[must_use]
    pub fn as_stored(&self, ordered: Vec<u8>) -> Vec<u8> {
        match self.arrangement {
            Arrangement::LayersFirst { .. } | Arrangement::TokensFirst => ordered,
            Arrangement::KeysFirst => {
                let mut stored = vec![0; ordered.len()];
                let half = self.part_bytes() / 2;
                for (one, place) in stored.chunks_exact_mut(half).zip(self.places()) {
                    one.copy_from_slice(&ordered[place * half..][..half]);
                }
                stored
            }
        }
    }

    /// Where the keys or values of a head belong by layers, in the order of the stored ones, where keys come first.
    fn places(&self) -> impl Iterator<Item = usize> {
        let heads = self.bytes() / self.part_bytes();
        (0..2).flat_map(move |values| (0..heads).map(move |head| 2 * head + values))
    }

    /// Makes keys of values and values of keys, or puts MLA's rotary part before the latent vector, in one layer.
    pub fn exchange_parts(&self, layer: &mut [u8]) {
        let (row, part) = (self.row_bytes(), self.part_bytes());
        match (self.latent_bytes(), self.arrangement) {
            (Some(latent), _) => layer.chunks_exact_mut(row).for_each(|row| row.rotate_left(latent)),
            (None, Arrangement::LayersFirst { block_rows }) => {
                layer
                    .chunks_exact_mut(block_rows * row)
                    .for_each(|block| block.rotate_left(block_rows / 2 * row));
            }
            (None, Arrangement::KeysFirst | Arrangement::TokensFirst) => {
                layer.chunks_exact_mut(part).for_each(|head| head.rotate_left(part / 2));
            }
        }
    }

    /// The same in the first of these arrangements that all probes, one of each shard, agree with.
    ///
    /// # Errors
    /// When they agree with none: what contradicts each.
    pub fn recognise(self, arrangements: &[Arrangement], probes: &[Probe<'_>]) -> Result<Self, LayoutError> {
        let mut errors = Vec::new();
        for &arrangement in arrangements {
            let layout = Self { arrangement, ..self };
            match probes.iter().try_for_each(|probe| layout.check(*probe)) {
                Ok(()) => return Ok(layout),
                Err(error) => errors.push(error),
            }
        }
        match errors.pop() {
            Some(LayoutError::Probe(last)) if !errors.is_empty() => {
                let problems = errors.iter().map(LayoutError::problem).chain([last]);
                Err(LayoutError::Probe(problems.collect::<Vec<_>>().join("; in another arrangement, ")))
            }
            Some(error) => Err(error),
            None => Err(LayoutError::Probe("no arrangement is known".to_owned())),
        }
    }

    /// Holds the layout against chunks of the engine's own making. In the first layer a token's KV depends on that token
    /// and its position alone, so the same tokens behind another prefix agree in exactly the first layer; and only keys
    /// are rotated, so one chunk later exactly the values (in MLA: the latent vectors) of the first layer still agree.
    ///
    /// # Errors
    /// When size or agreement is another.
    pub fn check(&self, probe: Probe<'_>) -> Result<(), LayoutError> {
        let rows = self.rows;
        if let (None, Arrangement::LayersFirst { block_rows }) = (self.latent_bytes(), self.arrangement)
            && (block_rows == 0 || !rows.is_multiple_of(block_rows) || !block_rows.is_multiple_of(2))
        {
            return Err(LayoutError::Blocks { rows, block_rows });
        }
        for chunk in [probe.chunk, probe.other_prefix, probe.later] {
            if chunk.len() != self.bytes() {
                return Err(LayoutError::Size { bytes: chunk.len(), expected: self.bytes() });
            }
        }
        let first_layer = |index: usize| self.layer(0).contains(&index);
        let rotation_free = |index: usize| first_layer(index) && !self.is_rotated(index);
        let [chunk, other_prefix, later] =
            [probe.chunk, probe.other_prefix, probe.later].map(|chunk| self.by_layers(chunk));
        self.agree_exactly(&chunk, &other_prefix, first_layer, "behind another prefix")?;
        self.agree_exactly(&chunk, &later, rotation_free, "one chunk later")
    }

    /// Whether a byte, by layers, belongs to a part that a rotary embedding turns by the token's position.
    fn is_rotated(&self, index: usize) -> bool {
        match (self.latent_bytes(), self.arrangement) {
            (Some(latent), _) => index % self.row_bytes() >= latent,
            (None, Arrangement::LayersFirst { block_rows }) => {
                (index / self.row_bytes()) % block_rows < block_rows / 2
            }
            (None, Arrangement::KeysFirst | Arrangement::TokensFirst) => {
                index % self.part_bytes() < self.part_bytes() / 2
            }
        }
    }

    /// All elements of the region agree, and not too many of the others: in the first layer at most half, since some agree by
    /// chance (7 % were seen), and in each later one at most nine tenths, since where attention adds little much behind it
    /// rounds to the same numbers (76 % were seen).
    fn agree_exactly(
        &self,
        one: &[u8],
        other: &[u8],
        region: impl Fn(usize) -> bool,
        where_: &str,
    ) -> Result<(), LayoutError> {
        let element = self.element_bytes();
        for layer in 0..self.layers() {
            let (mut inside, mut differing) = (0_usize, 0_usize);
            let (mut outside, mut agreeing) = (0_usize, 0_usize);
            for index in self.layer(layer).step_by(element) {
                let same = one[index..index + element] == other[index..index + element];
                if region(index) {
                    inside += 1;
                    differing += usize::from(!same);
                } else {
                    outside += 1;
                    agreeing += usize::from(same);
                }
            }
            let tenths = if layer == 0 { 5 } else { 9 };
            let problem = match (differing, agreeing * 10 > outside * tenths) {
                (0, false) => continue,
                (0, true) => format!("{agreeing} of {outside} elements agree"),
                _ => format!("{differing} of {inside} elements differ"),
            };
            return Err(LayoutError::Probe(format!("in layer {layer}, {problem} {where_} that should not")));
        }
        Ok(())
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("a chunk fits into memory")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const DENSE: Layout = Layout {
        shape: KvShape::Dense { layers: 3, kv_heads: 2, head_size: 4 },
        dtype: Dtype::Bfloat16,
        rows: 8,
        arrangement: Arrangement::LayersFirst { block_rows: 4 },
    };
    pub(crate) const KEYS_FIRST: Layout = Layout { arrangement: Arrangement::KeysFirst, ..DENSE };
    pub(crate) const TOKENS_FIRST: Layout = Layout { arrangement: Arrangement::TokensFirst, ..DENSE };
    pub(crate) const MLA: Layout = Layout {
        shape: KvShape::Mla { layers: 3, latent: 6, rotary: 2 },
        dtype: Dtype::Bfloat16,
        rows: 8,
        arrangement: Arrangement::LayersFirst { block_rows: 2 },
    };

    /// A chunk whose bytes depend on what the layout says that they depend on.
    fn chunk(layout: &Layout, prefix: u8, position: u8) -> Vec<u8> {
        let ordered = (0..layout.bytes())
            .map(|index| {
                let byte = u8::try_from(index % 251).unwrap();
                let prefix = if layout.layer(0).contains(&index) { 0 } else { prefix };
                byte ^ prefix ^ if layout.is_rotated(index) { position } else { 0 }
            })
            .collect();
        layout.as_stored(ordered)
    }

    #[test]
    fn a_chunk_has_as_many_bytes_as_the_shape_gives() {
        assert_eq!(DENSE.bytes() as u64, 8 * DENSE.shape.bytes_per_token(2));
        assert_eq!(MLA.bytes() as u64, 8 * MLA.shape.bytes_per_token(2));
    }

    #[test]
    fn keys_and_values_of_a_head_lie_far_apart_as_stored_and_side_by_side_by_layers() {
        let stored: Vec<u8> =
            (0..KEYS_FIRST.bytes()).map(|index| u8::try_from(index / 8 % 256).unwrap()).collect();
        let ordered = KEYS_FIRST.by_layers(&stored);
        // A head's keys take eight bytes. Token 1 of layer 2, its second head: number (2 × 8 + 1) × 2 + 1 of 48.
        let head = 35;
        assert_eq!(ordered[head * 16..][..16], [[35; 8], [35 + 48; 8]].concat());
        assert_eq!(KEYS_FIRST.as_stored(ordered.into_owned()), stored);
    }

    #[test]
    fn chunks_that_depend_on_prefix_and_position_as_the_layout_says_pass() {
        for layout in [DENSE, KEYS_FIRST, TOKENS_FIRST, MLA] {
            let (one, other, later) = (chunk(&layout, 1, 1), chunk(&layout, 2, 1), chunk(&layout, 3, 2));
            let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
            assert_eq!(layout.check(probe), Ok(()));
        }
    }

    #[test]
    fn the_arrangement_that_the_engine_has_is_recognised_among_those_of_its_device() {
        let known = Arrangement::known(DeviceKind::Cuda, DENSE.shape, 4);
        for real in [TOKENS_FIRST, KEYS_FIRST] {
            let (one, other, later) = (chunk(&real, 1, 1), chunk(&real, 2, 1), chunk(&real, 3, 2));
            let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
            assert_eq!(DENSE.recognise(&known, &[probe, probe]), Ok(real));
        }
        let (one, other, later) = (chunk(&DENSE, 1, 1), chunk(&DENSE, 2, 1), chunk(&DENSE, 3, 2));
        let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
        let error = DENSE.recognise(&known, &[probe]).unwrap_err().to_string();
        assert_eq!(error.matches("in layer 0, ").count(), 2, "{error}");
    }

    #[test]
    fn a_later_layer_may_change_little_behind_another_prefix_but_not_nothing() {
        let (one, later) = (chunk(&MLA, 1, 1), chunk(&MLA, 3, 2));
        let differing_in = |tenths: usize| {
            let mut other = chunk(&MLA, 2, 1);
            for index in (MLA.layer(1).start..MLA.bytes()).filter(|index| index / 2 % 10 >= tenths) {
                other[index] = one[index];
            }
            MLA.check(Probe { chunk: &one, other_prefix: &other, later: &later })
        };
        assert_eq!(differing_in(2), Ok(()));
        assert!(matches!(differing_in(0), Err(LayoutError::Probe(_))));
    }

    #[test]
    fn a_chunk_of_another_layout_is_refused() {
        let blocks = |block_rows| Arrangement::LayersFirst { block_rows };
        let halves = Layout { arrangement: blocks(8), ..DENSE };
        let fewer_layers = Layout { shape: KvShape::Dense { layers: 6, kv_heads: 1, head_size: 4 }, ..DENSE };
        let parts = Layout { shape: KvShape::Mla { layers: 3, latent: 2, rotary: 6 }, ..MLA };
        let pairs = [
            (halves, DENSE),
            (fewer_layers, DENSE),
            (parts, MLA),
            (DENSE, fewer_layers),
            (DENSE, KEYS_FIRST),
            (KEYS_FIRST, DENSE),
            (TOKENS_FIRST, DENSE),
            (TOKENS_FIRST, KEYS_FIRST),
            (KEYS_FIRST, TOKENS_FIRST),
        ];
        for (assumed, real) in pairs {
            let (one, other, later) = (chunk(&real, 1, 1), chunk(&real, 2, 1), chunk(&real, 3, 2));
            let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
            assert!(matches!(assumed.check(probe), Err(LayoutError::Probe(_))), "{assumed:?}");
        }
        let short = vec![0; DENSE.bytes() - 2];
        let probe = Probe { chunk: &short, other_prefix: &short, later: &short };
        assert!(matches!(DENSE.check(probe), Err(LayoutError::Size { .. })));
        let odd = Layout { arrangement: blocks(3), ..DENSE };
        assert_eq!(odd.check(probe), Err(LayoutError::Blocks { rows: 8, block_rows: 3 }));
    }
}
