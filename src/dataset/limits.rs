//! How much of an archive is read before it is refused. Main type: [`Limits`].

use super::extract_error::{Bound, ExtractError, Near};

/// How much of an archive is read before it is refused. The defaults hold MMLU several times over: as published, with
/// its large auxiliary files, it has 166 MB; its questions are 15,858 and have 7 MB of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Members of the archive.
    pub members: u64,
    /// Bytes of one member.
    pub member_bytes: u64,
    /// Decompressed bytes of the whole archive: read, ignored, headers and padding.
    pub archive_bytes: u64,
    /// Bytes of one member's headers: long names, extended attributes, maps of sparse files.
    pub header_bytes: u64,
    /// Bytes of all fields of one row.
    pub row_bytes: usize,
    /// Questions in all splits.
    pub questions: u64,
    /// Bytes of text in all questions.
    pub text_bytes: u64,
    /// Memory for decompressing xz; what `xz -9` writes needs 65 MiB.
    pub xz_memory_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 10_000,
            member_bytes: 256 << 20,
            archive_bytes: 1 << 30,
            header_bytes: 1 << 20,
            row_bytes: 64 << 10,
            questions: 100_000,
            text_bytes: 64 << 20,
            xz_memory_bytes: 96 << 20,
        }
    }
}

impl Limits {
    pub(super) fn exceeded(&self, bound: Bound, near: Near) -> ExtractError {
        let allowed = match bound {
            Bound::Members => self.members,
            Bound::MemberBytes => self.member_bytes,
            Bound::ArchiveBytes => self.archive_bytes,
            Bound::HeaderBytes => self.header_bytes,
            Bound::Questions => self.questions,
            Bound::TextBytes => self.text_bytes,
            Bound::XzMemoryBytes => self.xz_memory_bytes,
        };
        ExtractError::LimitExceeded { bound, allowed, near }
    }
}
