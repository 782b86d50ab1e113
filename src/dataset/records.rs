//! Rows of one CSV file, read into buffers of a fixed size. Main type: [`Records`].
//!
//! The dialect is RFC 4180 as Python's `csv` reads it: a quoted field may hold line ends and doubled quotes, white space
//! counts, `\n`, `\r\n` and `\r` end a record, blank lines and a byte order mark at the very start are skipped.

use std::io::{self, Read};

use csv_core::{ReadRecordResult, Reader};

use super::RowProblem;
use super::formats::name_of_encoding;

/// Bytes that are read at once.
const CHUNK: u64 = 32 * 1024;

/// The fields of a row: question, four options, answer.
pub(super) const COLUMNS: usize = 6;

/// Why no further record could be read.
#[derive(Debug)]
pub(super) enum RecordError {
    /// The source failed.
    Read(io::Error),
    /// Record number `row`, from 1, is ill-formed.
    Row { row: u32, problem: RowProblem },
}

/// Reads records of six non-empty fields from one CSV file after the other.
pub(super) struct Records {
    parser: Reader,
    input: Vec<u8>,
    consumed: usize,
    text: Box<[u8]>,
    row: u32,
    /// Nothing of the file was read yet.
    at_start: bool,
}

impl Records {
    /// A record whose fields have more than `record_bytes` bytes together is refused.
    pub(super) fn new(record_bytes: usize) -> Self {
        // The parser asks for more room as soon as none is left.
        let text = vec![0; record_bytes + 1].into_boxed_slice();
        Self { parser: Reader::new(), input: Vec::new(), consumed: 0, text, row: 0, at_start: true }
    }

    /// Forgets the file before: the next record is the first of another.
    pub(super) fn begin_file(&mut self) {
        self.parser.reset();
        self.input.clear();
        self.consumed = 0;
        self.row = 0;
        self.at_start = true;
    }

    /// The number and fields of the next record in `source`, or `None` at its end.
    pub(super) fn next(
        &mut self,
        source: &mut dyn Read,
    ) -> Result<Option<(u32, [&str; COLUMNS])>, RecordError> {
        let row = self.row + 1;
        // One more than a sound record has, so that longer ones are seen.
        let mut ends = [0; COLUMNS + 1];
        let (mut text_length, mut columns) = (0, 0);
        loop {
            if self.consumed == self.input.len() {
                self.refill(source).map_err(RecordError::Read)?;
                if self.at_start
                    && let Some(format) = name_of_encoding(&self.input)
                {
                    return Err(RecordError::Row { row, problem: RowProblem::NotText(format) });
                }
                self.at_start = false;
            }
            let (result, read, written, ended) = self.parser.read_record(
                &self.input[self.consumed..],
                &mut self.text[text_length..],
                &mut ends[columns..],
            );
            self.consumed += read;
            text_length += written;
            columns += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::Record => break,
                ReadRecordResult::End => return Ok(None),
                ReadRecordResult::OutputFull => {
                    let problem = RowProblem::TooLong { allowed: self.text.len() - 1 };
                    return Err(RecordError::Row { row, problem });
                }
                ReadRecordResult::OutputEndsFull => {
                    return Err(RecordError::Row { row, problem: RowProblem::Columns { found: columns } });
                }
            }
        }
        self.row = row;
        let fields = split_fields(&self.text, &ends[..columns])
            .map_err(|problem| RecordError::Row { row, problem })?;
        Ok(Some((row, fields)))
    }

    /// Fills the input buffer whole: the parser finds a byte order mark only if all of it arrives at once.
    fn refill(&mut self, source: &mut dyn Read) -> io::Result<()> {
        self.input.clear();
        self.consumed = 0;
        source.take(CHUNK).read_to_end(&mut self.input)?;
        Ok(())
    }
}

fn split_fields<'a>(text: &'a [u8], ends: &[usize]) -> Result<[&'a str; COLUMNS], RowProblem> {
    let ends: &[usize; COLUMNS] = ends.try_into().map_err(|_| RowProblem::Columns { found: ends.len() })?;
    let mut fields = [""; COLUMNS];
    let mut start = 0;
    for (index, (field, &end)) in fields.iter_mut().zip(ends).enumerate() {
        let column = index + 1;
        *field = str::from_utf8(&text[start..end]).map_err(|_| RowProblem::NotUtf8 { column })?;
        if field.is_empty() {
            return Err(RowProblem::EmptyField { column });
        }
        start = end;
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mut csv: &[u8]) -> Vec<[String; COLUMNS]> {
        let mut records = Records::new(100);
        let mut rows = Vec::new();
        while let Some((row, fields)) = records.next(&mut csv).unwrap() {
            assert_eq!(row as usize, rows.len() + 1);
            rows.push(fields.map(str::to_owned));
        }
        rows
    }

    #[test]
    fn fields_keep_white_space_quotes_and_line_ends() {
        let csv = b" q ,\"a\"\"b\",\"c\r\nd\",\"e\nf\",\tNone,A\r\n\r\nq,1,2,3,\xef\xbb\xbf4,D";
        let expected =
            [[" q ", "a\"b", "c\r\nd", "e\nf", "\tNone", "A"], ["q", "1", "2", "3", "\u{feff}4", "D"]];
        assert_eq!(rows(csv), expected);
    }

    #[test]
    fn only_a_byte_order_mark_at_the_start_is_dropped() {
        let csv = "\u{feff}q,1,2,3,4,A\n\u{feff}q,1,2,3,4,A\n";
        let expected = [["q", "1", "2", "3", "4", "A"], ["\u{feff}q", "1", "2", "3", "4", "A"]];
        assert_eq!(rows(csv.as_bytes()), expected);
    }

    #[test]
    fn a_record_may_be_exactly_as_long_as_allowed() {
        let mut records = Records::new(10);
        assert!(records.next(&mut &b"abcde,1,2,3,4,A\n"[..]).unwrap().is_some());
        records.begin_file();
        let error = records.next(&mut &b"abcdef,1,2,3,4,A\n"[..]).unwrap_err();
        assert!(matches!(error, RecordError::Row { row: 1, problem: RowProblem::TooLong { allowed: 10 } }));
    }
}
