//! The pinned stacks and what each needs of a machine. Main type: [`Stack`].

use std::fmt;

/// A pinned set of vLLM, LMCache and torch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stack {
    /// For machines without a GPU.
    Cpu,
    /// For NVIDIA GPUs.
    Cuda,
}

impl Stack {
    /// The stack's name on the command line and in `nix/stacks`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// The lock: a requirements file with hashes and without addresses.
    #[must_use]
    pub fn lock(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("../../../nix/stacks/cpu.lock"),
            Self::Cuda => include_str!("../../../nix/stacks/cuda.lock"),
        }
    }

    /// Disk space in bytes that the environment takes at most: `cpu` was measured at 5.3 GiB; the wheels of `cuda` hold 8.0 GiB, and an older vLLM
    /// with its packages was measured at 9.2 GiB.
    #[must_use]
    pub fn disk_bytes(self) -> u64 {
        const GIB: u64 = 1 << 30;
        match self {
            Self::Cpu => 6 * GIB,
            Self::Cuda => 10 * GIB,
        }
    }
}

/// Name and version of each package that a lock pins, in its order.
pub(super) fn pins(lock: &str) -> impl Iterator<Item = (&str, &str)> {
    lock.lines().filter(|line| !line.starts_with([' ', '#'])).filter_map(pin)
}

/// Name and version in a line of a lock, if it begins a package.
fn pin(line: &str) -> Option<(&str, &str)> {
    line.split_whitespace().next()?.split_once("==")
}

impl fmt::Display for Stack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_lock_holds_what_was_asked_for_once_and_with_hashes() {
        let asked = [
            (Stack::Cpu, include_str!("../../../nix/stacks/cpu.in")),
            (Stack::Cuda, include_str!("../../../nix/stacks/cuda.in")),
        ];
        for (stack, asked) in asked {
            let pins: BTreeMap<_, _> = super::pins(stack.lock()).collect();
            assert_eq!(pins.len(), super::pins(stack.lock()).count(), "{stack}: a package is pinned twice");
            for line in asked.lines().filter(|line| !line.starts_with('#')) {
                let (name, version) = line.split_once("==").unwrap();
                assert_eq!(pins.get(name), Some(&version), "{stack}: run nix/stacks/update.sh");
            }
            let unhashed =
                stack.lock().split('\n').filter(|line| line.contains("==") && !line.ends_with('\\'));
            assert_eq!(unhashed.collect::<Vec<_>>(), Vec::<&str>::new(), "{stack}");
        }
    }

    #[test]
    fn no_lock_holds_an_address() {
        for text in [Stack::Cpu.lock(), Stack::Cuda.lock(), include_str!("../../../nix/stacks/uv.txt")] {
            assert!(!text.contains("://"));
        }
    }
}
