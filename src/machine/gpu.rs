//! NVIDIA GPUs that this process may use. Main function: [`visible_gpus`].

use std::process::{Command, Stdio};

use super::visible::{Gpu, visible};

/// Bytes of a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// All of it.
    pub total: u64,
    /// What others have not taken.
    pub free: u64,
}

/// The GPUs that CUDA would show to this process, in its order.
#[must_use]
pub fn visible_gpus() -> Vec<Gpu> {
    let list = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    visible(&all_gpus(), list.as_deref(), || ask(&["-L"]).unwrap_or_default())
}

/// All GPUs of this machine in PCI order, as the kernel driver tells.
fn all_gpus() -> Vec<Gpu> {
    let mut folders: Vec<_> =
        fs_err::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten().collect();
    folders.sort_by_key(fs_err::DirEntry::file_name);
    let texts =
        folders.iter().filter_map(|folder| fs_err::read_to_string(folder.path().join("information")).ok());
    texts.filter_map(|text| read_information(&text)).collect()
}

fn read_information(text: &str) -> Option<Gpu> {
    let field = |name: &str| Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
    Some(Gpu { name: field("Model:")?, uuid: field("GPU UUID:").unwrap_or_default() })
}

/// The memory of these GPUs, as NVIDIA's tool tells; of a part of a GPU its profile tells it, and all of it is taken for free.
pub(super) fn gpu_memory(gpus: &[Gpu]) -> Vec<GpuMemory> {
    let text = ask(&["--query-gpu=uuid,memory.total,memory.free", "--format=csv,noheader,nounits"])
        .unwrap_or_default();
    read_memory(gpus, &text)
}

/// `text` has a line `uuid, MiB in all, MiB free` for each GPU of the machine.
fn read_memory(gpus: &[Gpu], text: &str) -> Vec<GpuMemory> {
    let lines: Vec<(&str, GpuMemory)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(',').map(str::trim);
            let uuid = words.next()?;
            let mut bytes = || words.next()?.parse::<u64>().ok().map(|mebibytes| mebibytes << 20);
            Some((uuid, GpuMemory { total: bytes()?, free: bytes()? }))
        })
        .collect();
    let of = |gpu: &Gpu| match gpu.name.rsplit_once("g.") {
        Some((_, size)) if gpu.uuid.starts_with("MIG-") => {
            let total = size.split("gb").next()?.parse::<u64>().ok()? << 30;
            Some(GpuMemory { total, free: total })
        }
        _ => lines.iter().find(|(uuid, _)| *uuid == gpu.uuid).map(|(_, memory)| *memory),
    };
    gpus.iter().filter_map(of).collect()
}

/// The newest CUDA that the driver serves, in the words of NVIDIA's tool.
#[must_use]
pub fn cuda_version() -> Option<String> {
    let text = ask(&[])?;
    let version = text.split("CUDA Version: ").nth(1)?;
    version.split_whitespace().next().map(str::to_owned)
}

/// What NVIDIA's tool says, if it is there.
fn ask(arguments: &[&str]) -> Option<String> {
    let output = Command::new("nvidia-smi").args(arguments).stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_driver_tells_name_and_uuid() {
        let text = "Model: \t\t NVIDIA H200\nIRQ:   \t\t 131\nGPU UUID: \t GPU-0c2f\nVideo BIOS: \t 96.00\n";
        assert_eq!(
            read_information(text),
            Some(Gpu { name: "NVIDIA H200".to_owned(), uuid: "GPU-0c2f".to_owned() })
        );
        assert_eq!(read_information("IRQ: 1\n"), None);
    }

    #[test]
    fn memory_is_that_of_the_visible_gpu_and_not_of_the_first() {
        let gpu = |name: &str, uuid: &str| Gpu { name: name.to_owned(), uuid: uuid.to_owned() };
        let text = "GPU-aa, 40960, 100\nGPU-bb, 81920, 81000\n";
        let gib = |gpus: &[Gpu]| -> Vec<u64> {
            read_memory(gpus, text).iter().map(|memory| memory.total >> 30).collect()
        };
        assert_eq!(gib(&[gpu("NVIDIA H100", "GPU-bb")]), [80]);
        assert_eq!(gib(&[gpu("NVIDIA H100 MIG 1g.10gb", "MIG-cc"), gpu("NVIDIA A100", "GPU-aa")]), [10, 40]);
        assert_eq!(gib(&[gpu("NVIDIA H100", "")]), Vec::<u64>::new());
    }
}
