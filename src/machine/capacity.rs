//! What a machine has room for. Main type: [`Machine`].

use super::gpu::{GpuMemory, gpu_memory, visible_gpus};
use super::memory::memory;
use super::{Device, DeviceKind};

/// What an engine with its server keeps busy where several run beside each other.
const PROCESSORS_OF_AN_ENGINE: usize = 4;

/// What a machine has, as far as engines need it.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Bytes of memory that can be had.
    pub memory: Option<u64>,
    /// The memory of each visible GPU, where it is told.
    pub gpu_memory: Vec<GpuMemory>,
    /// Visible GPUs.
    pub gpus: usize,
    /// Threads that the driver may use.
    pub processors: usize,
}

/// What one engine takes of a machine.
#[derive(Debug, Clone, Copy)]
pub struct EngineNeeds {
    /// GPUs, or processes on a processor.
    pub ranks: u32,
    /// Bytes of each GPU.
    pub gpu_bytes: u64,
    /// Bytes of memory, its LMCache's.
    pub memory_bytes: u64,
}

impl Machine {
    /// The one that runs this, as far as the device is concerned.
    #[must_use]
    pub fn this(device: &Device) -> Self {
        let gpus = match device.kind() {
            DeviceKind::Cpu => Vec::new(),
            DeviceKind::Cuda => visible_gpus(),
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { memory: memory().available, gpu_memory: gpu_memory(&gpus), gpus: gpus.len(), processors }
    }

    /// This one, which has no GPU.
    #[must_use]
    pub fn without_gpus() -> Self {
        Self { memory: memory().available, gpu_memory: Vec::new(), gpus: 0, processors: 1 }
    }

    /// How many such engines may run beside each other: as many as the free memory of one GPU, the memory and the processors have
    /// room for; one on a processor, which an engine has to itself, and where a model takes several GPUs.
    #[must_use]
    pub fn engines_at_a_time(&self, kind: DeviceKind, each: EngineNeeds) -> usize {
        let (Some(gpu), Some(memory)) = (self.gpu_memory.first(), self.memory) else { return 1 };
        if kind == DeviceKind::Cpu || each.ranks > 1 {
            return 1;
        }
        let on_gpu = gpu.free / each.gpu_bytes.max(1);
        let in_memory = memory / each.memory_bytes.max(1);
        let room = usize::try_from(on_gpu.min(in_memory)).unwrap_or(1);
        room.min(self.processors / PROCESSORS_OF_AN_ENGINE).max(1)
    }
}
