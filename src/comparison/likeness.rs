//! What rows of KV are that should be others: zeros, the other of K and V, rows of other tokens, chunks, layers, ranks or
//! prompts. Main function: [`recognise_rows`].

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::dataset::QuestionId;
use crate::model::CellBytes;

/// How many kinds of wrong rows are told of one cell.
const KINDS: usize = 3;

/// A computed cell that a wrong one may have been taken for.
#[derive(Debug, Clone, Copy)]
pub struct KnownCell<'a> {
    /// Whose prompt.
    pub question: &'a QuestionId,
    /// Which chunk of it, from 0.
    pub chunk: u32,
    /// Which layer.
    pub layer: &'a str,
    /// On which rank.
    pub rank: u32,
    /// What it holds.
    pub bytes: &'a CellBytes,
}

/// What a row is instead. The first of several that explain as many rows is told: simple ones come first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Likeness {
    /// Zeros.
    Zeros,
    /// Heads of the same row in another order.
    Heads,
    /// A row of a cell that was computed.
    Row {
        /// Whether it is another part: values where keys should be, or the reverse.
        exchanged: bool,
        /// By how many tokens (or blocks) it is shifted.
        shift: i64,
        /// In what its cell differs from the one that it is in, in words; empty if in nothing.
        cell: String,
    },
}

impl Likeness {
    /// In words that follow "rows are".
    pub(super) fn words(&self) -> String {
        let Self::Row { exchanged, shift, cell } = self else {
            let heads = "those of the same token with heads in another order";
            return if *self == Self::Zeros { "zeros" } else { heads }.to_owned();
        };
        let mut words = Vec::new();
        if *exchanged {
            words.push("the other of keys and values".to_owned());
        }
        if !cell.is_empty() {
            words.push(format!("the KV of {cell}"));
        }
        if *shift != 0 {
            words.push(format!("shifted: each is the row {} {}", shift.unsigned_abs(), side(*shift)));
        }
        words.join(", ")
    }
}

fn side(shift: i64) -> &'static str {
    if shift > 0 { "behind its own" } else { "before its own" }
}

/// What these rows (part, row) of a served cell are, each likeness with how many rows it explains; the most first.
pub(super) fn recognise_rows(
    served: &CellBytes,
    place: KnownCell<'_>,
    rows: &[(usize, usize)],
    known: &[KnownCell<'_>],
) -> Vec<(Likeness, u64)> {
    let wanted: HashSet<&[u8]> = rows.iter().map(|&(part, row)| served.row(part, row)).collect();
    let mut found: HashMap<&[u8], Vec<(usize, usize, usize)>> = HashMap::new();
    let cells: Vec<KnownCell<'_>> =
        [place].into_iter().chain(known.iter().copied()).filter(|cell| cell.bytes.is_like(served)).collect();
    for (cell, known) in cells.iter().enumerate() {
        for part in 0..served.parts().len() {
            for row in 0..served.rows() {
                let bytes = known.bytes.row(part, row);
                if wanted.contains(bytes) && tells_anything(bytes) {
                    found.entry(bytes).or_default().push((cell, part, row));
                }
            }
        }
    }
    let explained = |&(part, row): &(usize, usize)| -> Vec<Likeness> {
        let bytes = served.row(part, row);
        let mut all = Vec::new();
        if bytes.iter().all(|byte| *byte == 0) {
            all.push(Likeness::Zeros);
        }
        if has_heads_of(served, place.bytes, part, row) {
            all.push(Likeness::Heads);
        }
        let from = found.get(bytes).into_iter().flatten();
        all.extend(from.map(|&(cell, other_part, other_row)| {
            likeness(place, cells[cell], part != other_part, (row, other_row))
        }));
        all.sort_unstable();
        all.dedup();
        all
    };
    most_first(rows.iter().map(explained).collect())
}

/// The likenesses that explain most rows, one after the other, each of what the ones before leave.
fn most_first(mut rows: Vec<Vec<Likeness>>) -> Vec<(Likeness, u64)> {
    let mut told = Vec::new();
    while told.len() < KINDS {
        let mut count: BTreeMap<&Likeness, u64> = BTreeMap::new();
        rows.iter().flatten().for_each(|likeness| *count.entry(likeness).or_default() += 1);
        // Of equal counts the first in order.
        let most = count.into_iter().rev().max_by_key(|(_, count)| *count);
        let Some((likeness, count)) = most.map(|(likeness, count)| (likeness.clone(), count)) else { break };
        rows.retain(|row| !row.contains(&likeness));
        told.push((likeness, count));
    }
    told
}

/// Rows of one repeated byte are alike without having anything to do with each other.
fn tells_anything(row: &[u8]) -> bool {
    row.iter().any(|byte| *byte != row[0])
}

fn likeness(
    place: KnownCell<'_>,
    from: KnownCell<'_>,
    exchanged: bool,
    (row, other): (usize, usize),
) -> Likeness {
    let rows = i64::from(number(place.bytes.rows()));
    let mut shift = i64::from(number(other)) - i64::from(number(row));
    let mut cell = Vec::new();
    let same_kind = place.question == from.question && place.layer == from.layer && place.rank == from.rank;
    if same_kind && shift != 0 {
        // Rows of one prompt follow each other across chunks.
        shift += (i64::from(from.chunk) - i64::from(place.chunk)) * rows;
    } else if place.chunk != from.chunk {
        cell.push(format!("chunk {}", from.chunk + 1));
    }
    if place.layer != from.layer {
        cell.push(format!("layer {}", from.layer));
    }
    if place.rank != from.rank {
        cell.push(format!("rank {}", from.rank));
    }
    if place.question != from.question {
        cell.push(format!("the prompt of {}", from.question));
    }
    Likeness::Row { exchanged, shift, cell: cell.join(", ") }
}

/// Whether each head of a row is a head of what was computed there, in another order.
fn has_heads_of(served: &CellBytes, computed: &CellBytes, part: usize, row: usize) -> bool {
    let heads = served.parts()[part].heads;
    let size = served.row(part, row).len() / usize::try_from(heads).unwrap_or(usize::MAX).max(1);
    if heads < 2 || size == 0 {
        return false;
    }
    let split = |cell: &'_ CellBytes| -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = cell.row(part, row).chunks_exact(size).map(<[u8]>::to_vec).collect();
        all.sort_unstable();
        all
    };
    split(served) == split(computed)
}

pub(super) fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}
