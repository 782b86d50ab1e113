//! How the bytes of one stored chunk are arranged. Main type: [`Layout`].
//!
//! A chunk is `layers × rows × width` elements, layers outermost, without header (LMCache 0.5.6 in MP mode, `fs` tier and
//! memory pool alike). A row is what LMCache takes for a token.
//!
//! - MLA: a row is one token, its latent vector and then the rotary part.
//! - dense, under vLLM's CPU attention: a row holds `2 × head_size` elements for each KV head, one head after another.
//!   vLLM packs keys and values by block and head, all keys first, so for each head the first half of a block's rows are
//!   the keys of all of its tokens and the second half their values. Inside the keys' half the order of elements depends
//!   on the processor's kernels, and no operator here relies on it.
//!
//! [`Layout::check`] holds this against chunks that the engine itself stored.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::KvShape;
use crate::suite::Dtype;

/// The arrangement of a chunk's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// What one token's KV is made of.
    pub shape: KvShape,
    /// Type of an element.
    pub dtype: Dtype,
    /// Rows of a layer: tokens of a chunk.
    pub rows: usize,
    /// Rows of one block of the engine, in whose halves a dense model's keys and values lie.
    pub block_rows: usize,
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
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some("faults are known for LMCache 0.5.6 in MP mode on a CPU; run without `--faults`".to_owned())
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

    /// Elements of a row.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.shape {
            KvShape::Dense { kv_heads, head_size, .. } => size(2 * kv_heads * head_size),
            KvShape::Mla { latent, rotary, .. } => size(latent + rotary),
        }
    }

    /// Where a layer lies, in bytes.
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

    /// Holds the layout against chunks of the engine's own making. In the first layer a token's KV depends on that token
    /// and its position alone, so the same tokens behind another prefix agree in exactly the first layer; and only keys
    /// are rotated, so one chunk later exactly the values (in MLA: the latent vectors) of the first layer still agree.
    ///
    /// # Errors
    /// When size or agreement is another.
    pub fn check(&self, probe: Probe<'_>) -> Result<(), LayoutError> {
        if self.latent_bytes().is_none()
            && (self.block_rows == 0
                || !self.rows.is_multiple_of(self.block_rows)
                || !self.block_rows.is_multiple_of(2))
        {
            return Err(LayoutError::Blocks { rows: self.rows, block_rows: self.block_rows });
        }
        for chunk in [probe.chunk, probe.other_prefix, probe.later] {
            if chunk.len() != self.bytes() {
                return Err(LayoutError::Size { bytes: chunk.len(), expected: self.bytes() });
            }
        }
        let first_layer = |index: usize| self.layer(0).contains(&index);
        let rotation_free = |index: usize| first_layer(index) && !self.is_rotated(index);
        self.agree_exactly(probe.chunk, probe.other_prefix, first_layer, "behind another prefix")?;
        self.agree_exactly(probe.chunk, probe.later, rotation_free, "one chunk later")
    }

    /// Whether a byte belongs to a part that a rotary embedding turns by the token's position.
    fn is_rotated(&self, index: usize) -> bool {
        match self.latent_bytes() {
            Some(latent) => index % self.row_bytes() >= latent,
            None => (index / self.row_bytes()) % self.block_rows < self.block_rows / 2,
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
        block_rows: 4,
    };
    pub(crate) const MLA: Layout = Layout {
        shape: KvShape::Mla { layers: 3, latent: 6, rotary: 2 },
        dtype: Dtype::Bfloat16,
        rows: 8,
        block_rows: 2,
    };

    /// A chunk whose bytes depend on what the layout says that they depend on.
    fn chunk(layout: &Layout, prefix: u8, position: u8) -> Vec<u8> {
        (0..layout.bytes())
            .map(|index| {
                let byte = u8::try_from(index % 251).unwrap();
                let prefix = if layout.layer(0).contains(&index) { 0 } else { prefix };
                byte ^ prefix ^ if layout.is_rotated(index) { position } else { 0 }
            })
            .collect()
    }

    #[test]
    fn a_chunk_has_as_many_bytes_as_the_shape_gives() {
        assert_eq!(DENSE.bytes() as u64, 8 * DENSE.shape.bytes_per_token(2));
        assert_eq!(MLA.bytes() as u64, 8 * MLA.shape.bytes_per_token(2));
    }

    #[test]
    fn chunks_that_depend_on_prefix_and_position_as_the_layout_says_pass() {
        for layout in [DENSE, MLA] {
            let (one, other, later) = (chunk(&layout, 1, 1), chunk(&layout, 2, 1), chunk(&layout, 3, 2));
            let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
            assert_eq!(layout.check(probe), Ok(()));
        }
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
        let halves = Layout { block_rows: 8, ..DENSE };
        let fewer_layers = Layout { shape: KvShape::Dense { layers: 6, kv_heads: 1, head_size: 4 }, ..DENSE };
        let parts = Layout { shape: KvShape::Mla { layers: 3, latent: 2, rotary: 6 }, ..MLA };
        for (assumed, real) in [(halves, DENSE), (fewer_layers, DENSE), (parts, MLA), (DENSE, fewer_layers)] {
            let (one, other, later) = (chunk(&real, 1, 1), chunk(&real, 2, 1), chunk(&real, 3, 2));
            let probe = Probe { chunk: &one, other_prefix: &other, later: &later };
            assert!(matches!(assumed.check(probe), Err(LayoutError::Probe(_))), "{assumed:?}");
        }
        let short = vec![0; DENSE.bytes() - 2];
        let probe = Probe { chunk: &short, other_prefix: &short, later: &short };
        assert!(matches!(DENSE.check(probe), Err(LayoutError::Size { .. })));
        let odd = Layout { block_rows: 3, ..DENSE };
        assert_eq!(odd.check(probe), Err(LayoutError::Blocks { rows: 8, block_rows: 3 }));
    }
}
