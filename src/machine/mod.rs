//! What this machine has: memory, processors, GPUs, disk, programs. Nothing else asks the operating system for these.
//!
//! Of memory and GPUs it tells what *this process* may use: control groups bound the one, `CUDA_VISIBLE_DEVICES` the other. Main
//! types: [`Device`], which is part of keys, and [`Machine`], which is not.

mod capacity;
mod device;
mod disk;
mod gpu;
mod memory;
mod program;
mod visible;

pub use capacity::{EngineNeeds, Machine};
pub use device::{Device, DeviceKind};
pub use disk::{DiskSpace, disk_space};
pub use gpu::{GpuMemory, cuda_version, visible_gpus};
pub use memory::{Memory, memory};
pub use program::{files_on, find_program};
pub use visible::Gpu;
