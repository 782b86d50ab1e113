//! The map of a request's KV: a row for each chunk, a field for each layer. Main type: [`CellMapView`].

use super::shown::label;
use crate::comparison::CellMap;

pub(super) struct CellMapView {
    pub(super) title: String,
    pub(super) layers: usize,
    pub(super) rows: Vec<CellRow>,
}

pub(super) struct CellRow {
    /// Counted from 1.
    pub(super) chunk: usize,
    pub(super) cells: Vec<CellView>,
}

pub(super) struct CellView {
    pub(super) class: &'static str,
    pub(super) letter: char,
    pub(super) words: String,
}

impl CellMapView {
    pub(super) fn of(map: &CellMap) -> Self {
        let cell = |(layer, letter): (usize, char)| CellView {
            class: match letter {
                'X' | 'R' | 'E' => "wrong",
                '.' => "right",
                _ => "other",
            },
            letter,
            words: format!("layer {}", layer + 1),
        };
        let row = |(place, letters): (usize, &String)| CellRow {
            chunk: place + 1,
            cells: letters.chars().enumerate().map(cell).collect(),
        };
        Self {
            title: label(&format!("{}, {}, rank {}", map.question, map.pass.words(), map.rank)),
            layers: map.chunks.first().map_or(1, |letters| letters.chars().count().max(1)),
            rows: map.chunks.iter().enumerate().map(row).collect(),
        }
    }
}
