//! What one chunk holds in one layer on one rank, byte for byte. Main type: [`CellBytes`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Keys, values, or a piece of a latent vector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CellPart {
    /// `key`, `value`, `latent` or `rope`.
    pub name: String,
    /// Heads of the rank.
    pub heads: u32,
    /// Elements of a head.
    pub elements: u32,
}

/// The data type of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// The upper half of a float32.
    Bfloat16,
    /// IEEE 754's half precision.
    Float16,
    /// IEEE 754's single precision.
    Float32,
    /// Bytes whose meaning is not known.
    Byte,
}

/// A cell: parts one behind the other, each (rows, heads, elements), little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellBytes {
    rows: usize,
    row_tokens: u32,
    parts: Vec<CellPart>,
    element: Element,
    bytes: Vec<u8>,
}

impl Element {
    /// Of vLLM's name; `None` for one that is not known.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "bfloat16" => Some(Self::Bfloat16),
            "float16" => Some(Self::Float16),
            "float32" => Some(Self::Float32),
            _ => None,
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Bfloat16 | Self::Float16 => 2,
            Self::Float32 => 4,
        }
    }

    /// The number that these bits are.
    #[must_use]
    pub fn value(self, bits: u32) -> f64 {
        match self {
            Self::Byte => f64::from(bits),
            Self::Bfloat16 => f64::from(f32::from_bits(bits << 16)),
            Self::Float32 => f64::from(f32::from_bits(bits)),
            Self::Float16 => half(bits),
        }
    }
}

/// IEEE 754's half precision: a sign, five bits of an exponent whose bias is 15, ten of a fraction.
fn half(bits: u32) -> f64 {
    let sign = if bits >> 15 & 1 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (bits >> 10 & 0x1f, bits & 0x3ff);
    let share = f64::from(fraction) / 1024.0;
    match (exponent, fraction) {
        (0, _) => sign * share * 2_f64.powi(-14),
        (0x1f, 0) => sign * f64::INFINITY,
        (0x1f, _) => f64::NAN,
        _ => sign * (1.0 + share) * 2_f64.powf(f64::from(exponent) - 15.0),
    }
}

impl CellBytes {
    /// A cell of so many rows of one token each; `None` where the bytes are not as many as the parts say.
    #[must_use]
    pub fn of_tokens(rows: u32, parts: Vec<CellPart>, element: Element, bytes: Vec<u8>) -> Option<Self> {
        Self { rows: usize::try_from(rows).ok()?, row_tokens: 1, parts, element, bytes }.checked()
    }

    /// A cell whose layout is not understood: so many blocks of bytes as they lie, each of so many tokens.
    #[must_use]
    pub fn of_blocks(blocks: u32, block_tokens: u32, bytes: Vec<u8>) -> Option<Self> {
        let rows = usize::try_from(blocks).ok()?;
        let elements = u32::try_from(bytes.len().checked_div(rows)?).ok()?;
        let parts = vec![CellPart { name: "bytes".to_owned(), heads: 1, elements }];
        Self { rows, row_tokens: block_tokens, parts, element: Element::Byte, bytes }.checked()
    }

    fn checked(self) -> Option<Self> {
        let sizes = self.parts.iter().map(|part| self.row_size(part));
        let is_whole = self.rows > 0 && self.bytes.len() == self.rows * sizes.sum::<usize>();
        (is_whole && self.parts.iter().all(|part| self.row_size(part) > 0)).then_some(self)
    }

    /// Whether two cells have the same shape, so that they can be held against each other.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        (self.rows, self.row_tokens, &self.parts, self.element)
            == (other.rows, other.row_tokens, &other.parts, other.element)
    }

    /// How many rows: tokens, or blocks where the layout is not understood.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens of a row.
    #[must_use]
    pub fn row_tokens(&self) -> u32 {
        self.row_tokens
    }

    /// What a row is made of.
    #[must_use]
    pub fn parts(&self) -> &[CellPart] {
        &self.parts
    }

    /// What an element is.
    #[must_use]
    pub fn element(&self) -> Element {
        self.element
    }

    /// How many elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.bytes.len() / self.element.size()
    }

    /// Whether all of it is zero.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.bytes.iter().all(|byte| *byte == 0)
    }

    /// One part of one row, by their numbers: (heads, elements).
    #[must_use]
    pub fn row(&self, part: usize, row: usize) -> &[u8] {
        let before: usize = self.parts[..part].iter().map(|part| self.rows * self.row_size(part)).sum();
        let size = self.row_size(&self.parts[part]);
        &self.bytes[before + row * size..][..size]
    }

    /// The bits of each element of one part of one row.
    pub fn bits(&self, part: usize, row: usize) -> impl Iterator<Item = u32> {
        self.row(part, row).chunks_exact(self.element.size()).map(|bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            u32::from_le_bytes(word)
        })
    }

    fn row_size(&self, part: &CellPart) -> usize {
        let elements = u64::from(part.heads) * u64::from(part.elements);
        usize::try_from(elements).unwrap_or(usize::MAX).saturating_mul(self.element.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_read_as_the_numbers_that_they_are() {
        let cases = [
            (Element::Float16, 0x3c00, 1.0),
            (Element::Float16, 0xc000, -2.0),
            (Element::Float16, 0x0001, 2_f64.powi(-24)),
            (Element::Float16, 0x7bff, 65504.0),
            (Element::Float16, 0xfc00, f64::NEG_INFINITY),
            (Element::Bfloat16, 0x3f81, 1.0 + 2_f64.powi(-7)),
            (Element::Float32, 0x3fc0_0000, 1.5),
        ];
        for (element, bits, number) in cases {
            assert_eq!(element.value(bits).to_bits(), number.to_bits(), "{element:?} {bits:x}");
        }
        assert!(Element::Float16.value(0x7e00).is_nan());
    }

    #[test]
    fn a_cell_of_another_size_than_its_parts_say_is_none() {
        let parts = || vec![CellPart { name: "key".to_owned(), heads: 2, elements: 3 }];
        assert!(CellBytes::of_tokens(4, parts(), Element::Bfloat16, vec![0; 48]).is_some());
        assert!(CellBytes::of_tokens(4, parts(), Element::Bfloat16, vec![0; 47]).is_none());
        assert!(CellBytes::of_tokens(0, parts(), Element::Bfloat16, Vec::new()).is_none());
        assert!(CellBytes::of_blocks(0, 128, vec![0; 8]).is_none());
        assert!(CellBytes::of_blocks(3, 128, vec![0; 8]).is_none());
    }
}
