//! Shared memory that LMCache's part of an engine leaves behind. Main type: [`Segments`].

use fs_err as fs;

const FOLDER: &str = "/dev/shm";

/// Segments of shared memory that hold an engine's KV where an LMCache server copies it (`transfer_mode` `lmcache_driven` on a
/// CPU), all of the cache: an engine that does not end by itself leaves them there. They go with this value.
#[derive(Debug, Default)]
pub(super) struct Segments {
    beginnings: Vec<String>,
}

impl Segments {
    /// Takes those of these processes, made by now or later.
    pub(super) fn expect_of(&mut self, processes: &[u32]) {
        self.beginnings.extend(processes.iter().map(|process| format!("lmcache_kv_{process}_")));
    }
}

impl Drop for Segments {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(FOLDER) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if self.beginnings.iter().any(|beginning| name.starts_with(beginning))
                && let Err(error) = fs::remove_file(entry.path())
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "an engine's shared memory was not removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_is_removed_and_no_more() {
        let process = std::process::id();
        let path = |name: String| format!("{FOLDER}/{name}");
        let (left, other) =
            (path(format!("lmcache_kv_{process}_0")), path(format!("lmcache_kv_{process}0_0")));
        fs::write(&left, "").unwrap();
        fs::write(&other, "").unwrap();
        let mut segments = Segments::default();
        segments.expect_of(&[process]);
        drop(segments);
        assert!(!fs::exists(&left).unwrap() && fs::exists(&other).unwrap());
        fs::remove_file(other).unwrap();
    }
}
