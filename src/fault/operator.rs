//! What a fault does to a chunk's bytes. Main type: [`Operator`]. Pure: bytes in, bytes out.

use std::ops::Range;

use serde::Serialize;

use super::element;
use super::layout::Layout;
use super::numbers::Numbers;

/// What is done to a chunk, in the layers that are in scope.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// The same bytes are written again.
    Rewrite,
    /// Every element is zero.
    Zero,
    /// The first half of the rows is the donor's.
    TakeFirstHalf,
    /// All rows are the donor's.
    TakeAll,
    /// Every row holds what belongs into the row before it: the first is there twice, the last is lost.
    ShiftRows,
    /// Each pair of neighbouring layers changes places; where one layer is in scope, it and the next.
    ExchangeLayers,
    /// Dense: keys and values change places. MLA: the rotary part stands before the latent vector.
    ExchangeParts,
    /// MLA: the rotary part is zero.
    ZeroRotary,
    /// Dense: every head holds the next one's keys and values.
    RotateHeads,
    /// Dense: the second half of the heads is zero.
    ZeroHalfOfHeads,
    /// Dense: the second half of the heads repeats the first.
    RepeatHalfOfHeads,
    /// The second half of each row's content is zero: of each head's in a dense model.
    ZeroHalfOfRows,
    /// One bit of one element is flipped, counted from the lowest of the fraction (0) upwards. The element is the largest
    /// one, or the largest one of each row.
    Flip {
        /// Which bit.
        bit: Bit,
        /// In how many elements.
        spread: Spread,
    },
    /// So many of a million bits are flipped, but never an exponent's highest: that makes numbers that are none, which the
    /// engine's own sampler shows without any oracle.
    FlipAtRandom {
        /// Of a million; at least one bit.
        per_million: usize,
    },
    /// One bit of one element is flipped, at each of many sampled places, one in each prompt at a time: a [`Flip`](super::Flip) does it.
    FlipPlaces,
    /// The copy into the engine's blocks comes behind the first forward pass that reads it. What is stored stays as it is.
    ComeLate,
    /// The engine's blocks are given to the next request before they are stored. Behind the prompts that are stored come so many
    /// others at most, which take their blocks.
    ReuseBlocks {
        /// How many.
        others: usize,
    },
    /// Elements are read as the other 16-bit type and written back in their own.
    Reinterpret,
    /// Elements are multiplied and rounded.
    Scale(f32),
    /// Elements go through 8-bit integers with one scale a row.
    QuantizeInt8,
    /// Elements go through FP8 E4M3 without a scale.
    QuantizeE4m3,
    /// The last rows, one of so many parts, are zero.
    ZeroLastRows {
        /// Number of parts.
        parts: usize,
    },
    /// The last row is zero.
    ZeroLastRow,
    /// All elements change places at random.
    Scramble,
    /// The last quarter of the bytes is missing.
    Truncate,
    /// There is no byte at all.
    Empty,
    /// A thousand bytes more than the chunk has.
    Append,
    /// There is no file.
    Delete,
}

impl Operator {
    /// Whether it can be done to any chunk by itself, whoever asks for it. Others need places or an engine.
    #[cfg(test)]
    pub(super) fn is_of_bytes(self) -> bool {
        !matches!(self, Self::FlipPlaces | Self::ComeLate | Self::ReuseBlocks { .. })
    }

    /// Whether what it leaves has another length.
    #[must_use]
    pub fn changes_length(self) -> bool {
        matches!(self, Self::Truncate | Self::Empty | Self::Append)
    }
}

/// Which bit of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bit {
    /// The lowest of the fraction: the smallest change that there is.
    Lowest,
    /// The lowest of the exponent: the value doubles or halves.
    Exponent,
}

/// How many elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// One of all layers in scope.
    Once,
    /// One in each row of each layer in scope.
    EachRow,
}

impl Operator {
    /// What is stored in place of `pristine`; `None` for no file. `layers` are those in scope, and `donor` the chunk that
    /// foreign bytes come from. Only bytes of layers in scope change, except where the fault is about the file itself.
    #[must_use]
    pub fn apply(
        self,
        layout: &Layout,
        layers: Range<usize>,
        pristine: &[u8],
        donor: &[u8],
    ) -> Option<Vec<u8>> {
        match self {
            Self::Truncate => Some(pristine[..pristine.len() / 4 * 3].to_vec()),
            Self::Empty => Some(Vec::new()),
            Self::Append => Some([pristine, &[0; 1000]].concat()),
            Self::Delete => None,
            _ => {
                let mut chunk = layout.by_layers(pristine).into_owned();
                self.change(layout, layers, &mut chunk, &layout.by_layers(donor));
                Some(layout.as_stored(chunk))
            }
        }
    }

    /// Changes a chunk, layers outermost, that keeps its length.
    fn change(self, layout: &Layout, layers: Range<usize>, chunk: &mut [u8], donor: &[u8]) {
        let (rows, row, part) = (layout.rows, layout.row_bytes(), layout.part_bytes());
        let (dtype, half) = (layout.dtype, rows / 2 * layout.row_bytes());
        let each_layer = |chunk: &mut [u8], change: &dyn Fn(&mut [u8], &[u8])| {
            for layer in layers.clone().map(|layer| layout.layer(layer)) {
                change(&mut chunk[layer.clone()], &donor[layer]);
            }
        };
        let each_row = |chunk: &mut [u8], change: &dyn Fn(&mut [u8])| {
            each_layer(chunk, &|layer, _| layer.chunks_exact_mut(row).for_each(change));
        };
        let each_element = |chunk: &mut [u8], value: &dyn Fn(&[u8]) -> f32| {
            each_layer(chunk, &|layer, _| change_elements(layout, layer, value));
        };
        match self {
            Self::Rewrite
            | Self::FlipPlaces
            | Self::ComeLate
            | Self::ReuseBlocks { .. }
            | Self::Truncate
            | Self::Empty
            | Self::Append
            | Self::Delete => {}
            Self::Zero => each_layer(chunk, &|layer, _| layer.fill(0)),
            Self::TakeFirstHalf => {
                each_layer(chunk, &|layer, donor| layer[..half].copy_from_slice(&donor[..half]));
            }
            Self::TakeAll => each_layer(chunk, &|layer, donor| layer.copy_from_slice(donor)),
            Self::ShiftRows => each_layer(chunk, &|layer, _| layer.copy_within(..layer.len() - row, row)),
            Self::ExchangeLayers => exchange_layers(layout, &layers, chunk),
            Self::ExchangeParts => each_layer(chunk, &|layer, _| layout.exchange_parts(layer)),
            Self::ZeroRotary => {
                let latent = layout.latent_bytes().unwrap_or(row);
                each_row(chunk, &|row| row[latent..].fill(0));
            }
            Self::RotateHeads => each_row(chunk, &|row| row.rotate_left(part)),
            Self::ZeroHalfOfHeads => each_row(chunk, &|bytes| bytes[row / 2..].fill(0)),
            Self::RepeatHalfOfHeads => each_row(chunk, &|bytes| bytes.copy_within(..row / 2, row / 2)),
            Self::ZeroHalfOfRows => each_row(chunk, &|row| {
                row.chunks_exact_mut(part).for_each(|bytes| bytes[part / 2..].fill(0));
            }),
            Self::Flip { bit, spread } => flip(layout, &layers, chunk, bit, spread),
            Self::FlipAtRandom { per_million } => flip_at_random(layout, &layers, chunk, per_million),
            Self::Reinterpret => each_element(chunk, &|bytes| element::reinterpret(dtype, bytes)),
            Self::Scale(factor) => each_element(chunk, &|bytes| element::read(dtype, bytes) * factor),
            Self::QuantizeInt8 => each_row(chunk, &|row| quantize_row(layout, row)),
            Self::QuantizeE4m3 => {
                each_element(chunk, &|bytes| element::round_to_e4m3(element::read(dtype, bytes)));
            }
            Self::ZeroLastRows { parts } => {
                each_layer(chunk, &|layer, _| layer[(rows - rows / parts) * row..].fill(0));
            }
            Self::ZeroLastRow => each_layer(chunk, &|layer, _| layer[(rows - 1) * row..].fill(0)),
            Self::Scramble => each_layer(chunk, &|layer, _| scramble(layer, layout.element_bytes())),
        }
    }
}

fn change_elements(layout: &Layout, layer: &mut [u8], value: &dyn Fn(&[u8]) -> f32) {
    for bytes in layer.chunks_exact_mut(layout.element_bytes()) {
        let changed = value(bytes);
        element::write(layout.dtype, changed, bytes);
    }
}

fn exchange_layers(layout: &Layout, layers: &Range<usize>, bytes: &mut [u8]) {
    let last = layout.layers() - 1;
    let pairs: Vec<usize> = match layers.len() {
        1 => vec![layers.start.min(last.saturating_sub(1))],
        _ => layers.clone().step_by(2).filter(|first| *first < last).collect(),
    };
    for first in pairs.into_iter().filter(|_| last > 0) {
        let (one, other) = bytes[layout.layer(first).start..layout.layer(first + 1).end]
            .split_at_mut(layout.layer(first).len());
        one.swap_with_slice(other);
    }
}

fn flip(layout: &Layout, layers: &Range<usize>, bytes: &mut [u8], bit: Bit, spread: Spread) {
    let bit = match bit {
        Bit::Lowest => 0,
        Bit::Exponent => element::fraction_bits(layout.dtype),
    };
    let scope = layout.layer(layers.start).start..layout.layer(layers.end - 1).end;
    let each = match spread {
        Spread::Once => scope.len(),
        Spread::EachRow => layout.row_bytes(),
    };
    for elements in bytes[scope].chunks_exact_mut(each) {
        let size = layout.element_bytes();
        let magnitude = |place: usize| element::read(layout.dtype, &elements[place..place + size]).abs();
        let places = (0..elements.len()).step_by(size);
        let largest = places.max_by(|one, other| magnitude(*one).total_cmp(&magnitude(*other)));
        let largest = largest.expect("a row has elements");
        elements[largest + bit / 8] ^= 1 << (bit % 8);
    }
}

fn flip_at_random(layout: &Layout, layers: &Range<usize>, bytes: &mut [u8], per_million: usize) {
    let scope = layout.layer(layers.start).start..layout.layer(layers.end - 1).end;
    let width = 8 * layout.element_bytes();
    let wanted = (8 * scope.len() * per_million / 1_000_000).max(1);
    let mut numbers = Numbers::default();
    let mut flipped = std::collections::BTreeSet::new();
    while flipped.len() < wanted {
        let bit = numbers.below(8 * scope.len());
        // Little-endian: an element's sign is its highest bit, and the exponent's highest comes next.
        if bit % width != width - 2 && flipped.insert(bit) {
            bytes[scope.start + bit / 8] ^= 1 << (bit % 8);
        }
    }
}

/// Symmetric quantisation to −127…127 with the row's largest magnitude as scale.
fn quantize_row(layout: &Layout, row: &mut [u8]) {
    let size = layout.element_bytes();
    let magnitudes = row.chunks_exact(size).map(|bytes| element::read(layout.dtype, bytes).abs());
    let scale = magnitudes.fold(0.0, f32::max) / 127.0;
    if scale > 0.0 {
        change_elements(layout, row, &|bytes| {
            (element::read(layout.dtype, bytes) / scale).round_ties_even() * scale
        });
    }
}

/// Fisher–Yates over elements.
fn scramble(layer: &mut [u8], size: usize) {
    let mut numbers = Numbers::default();
    for place in (1..layer.len() / size).rev() {
        let other = numbers.below(place + 1);
        for byte in 0..size {
            layer.swap(place * size + byte, other * size + byte);
        }
    }
}

#[cfg(test)]
#[path = "operator_tests.rs"]
mod tests;
