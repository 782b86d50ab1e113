//! What computes. Main type: [`Device`]. Part of every engine stage's key, since kernels differ by it.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::gpu::visible_gpus;

/// CPU features that choose between vLLM's, torch's and oneDNN's kernels.
const KERNEL_FEATURES: [&str; 8] =
    ["amx_bf16", "amx_int8", "amx_tile", "avx2", "avx512_bf16", "avx512_fp16", "avx512_vnni", "avx512f"];

/// The two kinds that suites know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// NVIDIA GPUs.
    Cuda,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

/// The device that a run computes on, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Device {
    /// The processor.
    Cpu {
        /// Model name.
        name: String,
        /// Of the features that choose kernels, those that it has.
        features: BTreeSet<String>,
        /// How many threads compute; sums are split by them.
        threads: usize,
    },
    /// NVIDIA GPUs.
    Cuda {
        /// Model names, one a GPU.
        names: Vec<String>,
        /// Version of the kernel driver.
        driver: String,
    },
}

impl Device {
    /// The processor of this machine.
    #[must_use]
    pub fn cpu() -> Self {
        let text = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |wanted: &str| {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.find(|(name, _)| name.trim() == wanted).map_or("", |(_, value)| value.trim())
        };
        let has: BTreeSet<&str> = field("flags").split(' ').collect();
        let features = KERNEL_FEATURES.into_iter().filter(|feature| has.contains(feature)).map(str::to_owned);
        Self::Cpu {
            name: field("model name").to_owned(),
            features: features.collect(),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// The GPUs of this machine that are visible to this process, if its kernel has NVIDIA's driver and at least one is.
    #[must_use]
    pub fn cuda() -> Option<Self> {
        let version = fs_err::read_to_string("/proc/driver/nvidia/version").ok()?;
        let driver = version.split_whitespace().find(|word| {
            word.contains('.') && word.chars().all(|character| character.is_ascii_digit() || character == '.')
        })?;
        let names: Vec<String> = visible_gpus().into_iter().map(|gpu| gpu.name).collect();
        (!names.is_empty()).then(|| Self::Cuda { names, driver: driver.to_owned() })
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        match self {
            Self::Cpu { .. } => DeviceKind::Cpu,
            Self::Cuda { .. } => DeviceKind::Cuda,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { name, threads, .. } => write!(formatter, "{name}, {threads} threads"),
            Self::Cuda { names, driver } => write!(formatter, "{}, driver {driver}", names.join(" + ")),
        }
    }
}
