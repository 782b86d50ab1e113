//! Why faults cannot be planted. Main type: [`FaultError`].

use std::io;

use camino::Utf8PathBuf;

use super::layout::LayoutError;

/// Why faults cannot be planted. None of these is a verdict.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The chunks are not arranged as is known.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file of a tier cannot be read or written.
    #[error("plant faults in {path}")]
    Io {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Values of a tier in Redis cannot be read or written.
    #[error("plant faults in the Redis server")]
    Redis(#[source] redis::RedisError),
    /// Chunks of the second tier are missing, or have other names.
    #[error("find the stored chunks in {folder}: {missing} of {wanted} are not there under their names")]
    Missing {
        /// The tier's folder or address.
        folder: Utf8PathBuf,
        /// How many.
        missing: usize,
        /// Of how many.
        wanted: usize,
    },
    /// Ranks that hold different layers.
    #[error("plant faults in {model}: its layers are divided over {stages} pipeline stages")]
    Stages {
        /// The model.
        model: String,
        /// How many.
        stages: u32,
    },
    /// Nothing to plant faults in.
    #[error("find two questions whose prompts have two whole chunks of {chunk_tokens} tokens and a rest")]
    TooShort {
        /// Tokens of a chunk.
        chunk_tokens: u32,
    },
}

impl FaultError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Layout(error) => error.hint(),
            Self::Redis(_) => Some("its log is beside the artifact: redis.log".to_owned()),
            Self::Io { .. } => Some("is the disk full, or /dev/shm? `df -h` tells".to_owned()),
            Self::Missing { .. } => Some(
                "faults are known for LMCache 0.5.6 in MP mode, and a very long cache folder makes file names \
                 too long; use a shorter `--cache`, or run without `--faults`"
                    .to_owned(),
            ),
            Self::Stages { .. } => {
                Some("faults are known for tensor parallelism alone; run without `--faults`".to_owned())
            }
            Self::TooShort { .. } => Some("use longer prompts, more questions or a smaller chunk".to_owned()),
        }
    }
}
