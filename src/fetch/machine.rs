//! What a machine has, as far as engines need it. Main type: [`Machine`].

use std::process::Command;

use super::error::gigabytes;
use crate::engine::Device;

/// What this machine has.
#[derive(Debug)]
pub(super) struct Machine {
    /// Bytes of memory that can be had.
    pub(super) memory: Option<u64>,
    /// Bytes of each GPU's memory.
    pub(super) gpu_memory: Vec<u64>,
    /// Bytes of it that others have not taken.
    pub(super) gpu_free: Vec<u64>,
    pub(super) gpus: usize,
    /// Threads that the driver may use.
    pub(super) processors: usize,
}

impl Machine {
    /// The one that runs this, as far as the device is concerned.
    pub(super) fn this(device: &Device) -> Self {
        let (gpus, gpu_memory, gpu_free) = match device {
            Device::Cpu { .. } => (0, Vec::new(), Vec::new()),
            Device::Cuda { names, .. } => (names.len(), gpu_memory("total"), gpu_memory("free")),
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { memory: available_memory(), gpu_memory, gpu_free, gpus, processors }
    }

    /// This one, which has no GPU.
    pub(super) fn without_gpus() -> Self {
        Self {
            memory: available_memory(),
            gpu_memory: Vec::new(),
            gpu_free: Vec::new(),
            gpus: 0,
            processors: 1,
        }
    }
}

/// Bytes of memory that can be had.
fn available_memory() -> Option<u64> {
    let meminfo = fs_err::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    available.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Bytes of each GPU's memory, `total` or `free`, if NVIDIA's tool is there to tell.
fn gpu_memory(which: &str) -> Vec<u64> {
    let query = [&format!("--query-gpu=memory.{which}"), "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse::<u64>().ok()).map(|mib| mib << 20).collect()
}

/// What is too little, in words; nothing if it is enough or not known.
pub(super) fn lacks(needed: u64, there: Option<u64>) -> Option<String> {
    there.filter(|there| *there < needed).map(|there| format!("{:.1} GB here", gigabytes(there)))
}
