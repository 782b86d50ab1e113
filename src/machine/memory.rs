//! Memory that this process may use. Main type: [`Memory`].
//!
//! A control group, as of a container, a batch system or a service, may allow less than the machine has; each group from the
//! process's own up to the root may. Sources: proc(5), cgroups(7), and the kernel's `cgroup-v2.rst` and `cgroup-v1/memory.rst`.

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

/// Bytes of memory; `None` where it is not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All that this process could have.
    pub total: Option<u64>,
    /// What it can have now without pushing anything else out.
    pub available: Option<u64>,
}

/// The memory that this process may use.
#[must_use]
pub fn memory() -> Memory {
    memory_under(Utf8Path::new("/"))
}

/// The same, of a system whose files lie under `root`.
fn memory_under(root: &Utf8Path) -> Memory {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let meminfo = read("proc/meminfo");
    let field = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
    };
    let mut memory = Memory { total: field("MemTotal:"), available: field("MemAvailable:") };
    for bound in read("proc/self/cgroup").lines().flat_map(|line| bounds(root, line)) {
        memory.total = memory.total.map(|total| total.min(bound.limit));
        memory.available = memory.available.map(|available| available.min(bound.left));
    }
    memory
}

/// What one control group allows.
struct Bound {
    limit: u64,
    left: u64,
}

/// Names of a group's files: the limit, what is used, and in `memory.stat` what of it can be dropped.
struct Names {
    limit: &'static str,
    used: &'static str,
    droppable: &'static str,
}

const VERSION_1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    droppable: "total_inactive_file ",
};
const VERSION_2: Names = Names { limit: "memory.max", used: "memory.current", droppable: "inactive_file " };

/// The bounds of a line of `/proc/self/cgroup`: `hierarchy:controllers:path`. In a container the path may be the host's, of which
/// only some end of the way to the root is to be seen.
fn bounds(root: &Utf8Path, line: &str) -> Vec<Bound> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (mount, names) = match controllers {
        "" => (root.join("sys/fs/cgroup"), VERSION_2),
        some if some.split(',').any(|name| name == "memory") => {
            (root.join("sys/fs/cgroup/memory"), VERSION_1)
        }
        _ => return Vec::new(),
    };
    let group = mount.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|group| group.starts_with(&mount));
    groups.filter_map(|group| bound(&group.to_owned(), &names)).collect()
}

/// What a group allows; none where it sets no limit.
fn bound(group: &Utf8PathBuf, names: &Names) -> Option<Bound> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit = number(names.limit)?; // `max` is no number
    let used = number(names.used)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(names.droppable)?.trim().parse().ok());
    Some(Bound { limit, left: limit.saturating_sub(used.saturating_sub(droppable.unwrap_or(0))) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       24000 kB\nMemFree:         100 kB\nMemAvailable:   20000 kB\n";

    fn measured(files: &[(&str, &str)]) -> [u64; 2] {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        for (name, text) in files.iter().chain(&[("proc/meminfo", MEMINFO)]) {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), text).unwrap();
        }
        let memory = memory_under(root);
        [memory.total.unwrap() >> 10, memory.available.unwrap() >> 10]
    }

    #[test]
    fn without_a_limit_the_machine_has_what_the_kernel_says() {
        assert_eq!(measured(&[]), [24000, 20000]);
        assert_eq!(
            measured(&[("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "max\n")]),
            [24000, 20000]
        );
        assert_eq!(memory_under(Utf8Path::new("/nonexistent")), Memory::default());
    }

    #[test]
    fn the_tightest_group_on_the_way_to_the_root_bounds_it_and_its_page_cache_can_be_dropped() {
        let files = [
            ("proc/self/cgroup", "0::/batch/job\n"),
            ("sys/fs/cgroup/batch/job/memory.max", "max\n"),
            ("sys/fs/cgroup/batch/memory.max", "8192000\n"),
            ("sys/fs/cgroup/batch/memory.current", "4096000\n"),
            ("sys/fs/cgroup/batch/memory.stat", "anon 3072000\ninactive_file 1024000\n"),
        ];
        assert_eq!(measured(&files), [8000, 5000]);
    }

    #[test]
    fn version_1_has_a_hierarchy_of_its_own_and_a_container_sees_only_its_end() {
        let files = [
            ("proc/self/cgroup", "9:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/docker/x\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4096000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1024000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 0\n"),
        ];
        assert_eq!(measured(&files), [4000, 3000]);
        let unlimited =
            [files[0], ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"), files[2]];
        assert_eq!(measured(&unlimited), [24000, 20000]);
    }
}
