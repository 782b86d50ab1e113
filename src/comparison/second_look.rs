//! The second look: what a wrong cell of KV holds, element by element, against what an engine computed. Main types:
//! [`SecondLook`], [`Sight`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::QuestionId;
use crate::model::{CellBytes, CellPart, Element};

use super::Pass;
use super::likeness::{KnownCell, Likeness, number, recognise_rows};

/// Of the largest value of a head: what a recomputation that is no copy may differ by without it being told, since its own
/// rounding does that. A wrong exponent, another token or another layer is far beyond it.
const ROUNDING: f64 = 1.0 / 32.0;

/// One wrong cell, looked at again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecondLook {
    /// Whose prompt.
    pub question: QuestionId,
    /// In which pass.
    pub pass: Pass,
    /// Which chunk of the prompt, from 0.
    pub chunk: u32,
    /// Which layer, by its name in vLLM.
    pub layer: String,
    /// On which rank.
    pub rank: u32,
    /// What was seen.
    pub sight: Sight,
}

/// What a second look showed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "seen", rename_all = "snake_case")]
pub enum Sight {
    /// Nothing of what was judged: the blocks held something else by then.
    Gone {
        /// Why, in words.
        reason: String,
    },
    /// What was served, and nothing to hold it against.
    Alone {
        /// Whether all of it is zero.
        zeros: bool,
        /// Why, in words.
        reason: String,
    },
    /// What was served against what an engine computed.
    Held(KvDifference),
}

/// How what was served differs from what was computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KvDifference {
    /// What it was held against.
    pub against: ComputedKv,
    /// Why elements cannot be named, where the attention backend's layout is not understood; they are bytes then.
    pub unknown_layout: Option<String>,
    /// Elements of the cell.
    pub elements: u64,
    /// Elements that differ; against what is no copy, only those that rounding does not explain.
    pub differing_elements: u64,
    /// Bits of them that differ.
    pub differing_bits: u64,
    /// Tokens of the chunk in which something differs, from its first token on: the first and the last one, and how many.
    pub tokens: Option<(u32, u32, u32)>,
    /// The first element that differs: the first token, there keys before values, there the first head and element.
    pub first: Option<FirstElement>,
    /// Which parts and heads differ.
    pub parts: Vec<DifferingPart>,
    /// Largest difference in a head, as a share of the largest value that was computed in it; none where what was served
    /// holds what is no number.
    pub largest_relative_error: Option<f64>,
    /// What the rows that differ are instead, where they are known; those of most rows first.
    pub instead: Vec<RowsInstead>,
}

/// Where the bytes come from that a served cell is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputedKv {
    /// A repetition of the prompt gave them, and their digest is that of a copy which the judged pass had to be served.
    Copy,
    /// A repetition of the prompt gave them, and they are no such copy: another batch rounds otherwise.
    Repetition,
}

/// One element, as it was served and as it was computed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FirstElement {
    /// Its token in the prompt, from 0. Where the layout is not understood: the first token of the block.
    pub token: u32,
    /// Its part: `key`, `value`, `latent`, `rope`; `bytes` where the layout is not understood.
    pub part: String,
    /// Its head on this rank, from 0.
    pub head: u32,
    /// Its place in the head, from 0.
    pub element: u32,
    /// Its bits as they were served, in hexadecimal.
    pub served: String,
    /// Its bits as they were computed.
    pub computed: String,
}

/// A part of a cell in which something differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DifferingPart {
    /// Its name.
    pub part: String,
    /// Elements that differ.
    pub elements: u64,
    /// Heads in which some differ, from 0.
    pub heads: Vec<u32>,
    /// How many heads it has.
    pub of_heads: u32,
}

/// Rows that are known from elsewhere. A row is one part of one token, or of a block where the layout is not understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RowsInstead {
    /// How many.
    pub rows: u64,
    /// Of how many that differ.
    pub of_rows: u64,
    /// What they are, in words that follow "are".
    pub what: String,
}

/// Holds a served cell against a computed one of the same shape; `place` says which cell it is, with what was computed. `known` is
/// what else was computed. `None` where the shapes differ.
#[must_use]
pub fn look_closely(
    served: &CellBytes,
    place: KnownCell<'_>,
    against: ComputedKv,
    known: &[KnownCell<'_>],
) -> Option<KvDifference> {
    let computed = place.bytes;
    if !served.is_like(computed) {
        return None;
    }
    let mut scan = Scan { served, computed, against, largest: largest_values(computed) };
    let mut difference = KvDifference {
        against,
        unknown_layout: None,
        elements: served.elements() as u64,
        differing_elements: 0,
        differing_bits: 0,
        tokens: None,
        first: None,
        parts: Vec::new(),
        largest_relative_error: Some(0.0),
        instead: Vec::new(),
    };
    let mut rows: Vec<(usize, usize)> = Vec::new();
    let mut by_part: Vec<DifferingPart> = served.parts().iter().map(DifferingPart::none).collect();
    let row_tokens = served.row_tokens();
    for row in 0..served.rows() {
        for (part, counted) in by_part.iter_mut().enumerate() {
            let differing = scan.row(part, row, &mut difference);
            let Some(&first) = differing.first() else { continue };
            rows.push((part, row));
            let start = number(row) * row_tokens;
            difference.first.get_or_insert_with(|| {
                scan.name(part, row, first, place.chunk * number(served.rows()) * row_tokens + start)
            });
            counted.add(served.parts()[part].elements, &differing);
        }
        if rows.last().is_some_and(|(_, last)| *last == row) {
            let start = number(row) * row_tokens;
            let end = start + row_tokens - 1;
            let (first, _, count) = difference.tokens.unwrap_or((start, end, 0));
            difference.tokens = Some((first, end, count + row_tokens));
        }
    }
    by_part.retain(|part| part.elements > 0);
    difference.parts = by_part;
    difference.instead = recognise_rows(served, place, &rows, known)
        .into_iter()
        .map(|(likeness, count)| RowsInstead {
            rows: count,
            of_rows: rows.len() as u64,
            what: Likeness::words(&likeness),
        })
        .collect();
    Some(difference)
}

/// Two cells that are gone through row by row.
struct Scan<'a> {
    served: &'a CellBytes,
    computed: &'a CellBytes,
    against: ComputedKv,
    /// The largest value that was computed, by part and head.
    largest: Vec<Vec<f64>>,
}

impl Scan<'_> {
    /// The places of a row's elements that differ.
    fn row(&mut self, part: usize, row: usize, difference: &mut KvDifference) -> Vec<usize> {
        let element = self.served.element();
        let elements = to_usize(self.served.parts()[part].elements);
        let pairs = self.served.bits(part, row).zip(self.computed.bits(part, row)).enumerate();
        let mut differing = Vec::new();
        for (place, (served, computed)) in pairs {
            if served == computed {
                continue;
            }
            if element != Element::Byte {
                let (served, computed) = (element.value(served), element.value(computed));
                let error = relative(served, computed, self.largest[part][place / elements]);
                let seen = difference.largest_relative_error;
                difference.largest_relative_error = seen.zip(error).map(|(seen, error)| seen.max(error));
                if self.against == ComputedKv::Repetition && error.is_some_and(|error| error <= ROUNDING) {
                    continue;
                }
            }
            difference.differing_elements += 1;
            difference.differing_bits += u64::from((served ^ computed).count_ones());
            differing.push(place);
        }
        differing
    }

    fn name(&self, part: usize, row: usize, place: usize, token: u32) -> FirstElement {
        let CellPart { name, elements, .. } = &self.served.parts()[part];
        let hexadecimal = |cell: &CellBytes| {
            let bits = cell.bits(part, row).nth(place).unwrap_or_default();
            format!("0x{bits:0width$x}", width = 2 * cell.element().size())
        };
        FirstElement {
            token,
            part: name.clone(),
            head: number(place) / elements,
            element: number(place) % elements,
            served: hexadecimal(self.served),
            computed: hexadecimal(self.computed),
        }
    }
}

impl DifferingPart {
    fn none(part: &CellPart) -> Self {
        Self { part: part.name.clone(), elements: 0, heads: Vec::new(), of_heads: part.heads }
    }

    /// Counts elements of a row, in order, of heads that have so many each.
    fn add(&mut self, elements: u32, differing: &[usize]) {
        self.elements += differing.len() as u64;
        for head in differing.iter().map(|&place| number(place) / elements) {
            if let Err(place) = self.heads.binary_search(&head) {
                self.heads.insert(place, head);
            }
        }
    }
}

/// The difference as a share of the largest value; none where it is no number.
fn relative(served: f64, computed: f64, largest: f64) -> Option<f64> {
    let error = (served - computed).abs() / largest.max(f64::MIN_POSITIVE);
    error.is_finite().then_some(error)
}

fn largest_values(cell: &CellBytes) -> Vec<Vec<f64>> {
    let of_part = |(number, part): (usize, &CellPart)| {
        let mut largest = vec![0.0_f64; to_usize(part.heads)];
        for row in 0..cell.rows() {
            for (place, bits) in cell.bits(number, row).enumerate() {
                let value = cell.element().value(bits).abs();
                let head = &mut largest[place / to_usize(part.elements)];
                *head = head.max(value);
            }
        }
        largest
    };
    cell.parts().iter().enumerate().map(of_part).collect()
}

fn to_usize(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
