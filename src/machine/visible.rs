//! Which GPUs CUDA shows to a process, by `CUDA_VISIBLE_DEVICES`. Main type: [`Gpu`].
//!
//! The rules are those of CUDA's programming guide: a list of indexes, of UUIDs (their beginning is enough) or of MIG instances; only
//! what stands before the first that names nothing is visible; an empty list shows nothing; a device that is named twice spoils
//! the list. Indexes count in PCI order, which the driver's engines are started with (`CUDA_DEVICE_ORDER`).

/// A GPU, or a part of one (MIG).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Model name.
    pub name: String,
    /// `GPU-…` or `MIG-…`; empty where the kernel driver does not tell.
    pub uuid: String,
}

/// Of these GPUs, in PCI order, the ones that a list names; all of them without a list. `instances` is what `nvidia-smi -L` says, and
/// is asked only for MIG instances.
pub(super) fn visible(gpus: &[Gpu], list: Option<&str>, instances: impl Fn() -> String) -> Vec<Gpu> {
    let Some(list) = list else { return gpus.to_vec() };
    let named = list.split(',').map(|name| named(gpus, name.trim(), &instances));
    let shown: Vec<Gpu> = named.map_while(|gpu| gpu).collect();
    let twice = shown.iter().enumerate().any(|(place, gpu)| shown[..place].contains(gpu));
    if twice { Vec::new() } else { shown }
}

fn named(gpus: &[Gpu], name: &str, instances: impl Fn() -> String) -> Option<Gpu> {
    if let Ok(index) = name.parse::<usize>() {
        return gpus.get(index).cloned();
    }
    if name.starts_with("MIG-") {
        return instance(gpus, name, &instances());
    }
    by_uuid(gpus, name).cloned()
}

/// The GPU whose UUID begins so, if there is one alone.
fn by_uuid<'a>(gpus: &'a [Gpu], start: &str) -> Option<&'a Gpu> {
    let mut fitting = gpus.iter().filter(|gpu| start.starts_with("GPU-") && gpu.uuid.starts_with(start));
    fitting.next().filter(|_| fitting.next().is_none())
}

/// A MIG instance: `MIG-<its own UUID>`, or `MIG-GPU-<UUID of the GPU>/<instance>/<compute instance>` up to driver 470. Its name is
/// that of the GPU with its profile, as in `NVIDIA H100 MIG 1g.10gb`.
fn instance(gpus: &[Gpu], name: &str, listed: &str) -> Option<Gpu> {
    let of_gpu = name.strip_prefix("MIG-").filter(|rest| rest.starts_with("GPU-"));
    if let Some((uuid, _)) = of_gpu.and_then(|rest| rest.split_once('/')) {
        let gpu = by_uuid(gpus, uuid)?;
        return Some(Gpu { name: format!("{} MIG", gpu.name), uuid: name.to_owned() });
    }
    let mut parent = None;
    for line in listed.lines() {
        let uuid = line.split("UUID: ").nth(1)?.trim_end_matches([')', ' ']);
        if let Some(gpu) = gpus.iter().find(|gpu| gpu.uuid == uuid) {
            parent = Some(gpu);
        } else if uuid.starts_with(name) {
            let profile = line.split_whitespace().nth(1)?;
            return Some(Gpu { name: format!("{} MIG {profile}", parent?.name), uuid: uuid.to_owned() });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTED: &str = "GPU 0: NVIDIA A100 (UUID: GPU-aa11)\n\
        \x20 MIG 3g.20gb     Device  0: (UUID: MIG-c7)\n\
        GPU 1: NVIDIA H100 (UUID: GPU-aa22)\n\
        \x20 MIG 1g.10gb     Device  0: (UUID: MIG-d8)\n";

    fn shown(list: Option<&str>) -> Vec<String> {
        let gpu = |name: &str, uuid: &str| Gpu { name: name.to_owned(), uuid: uuid.to_owned() };
        let gpus =
            [gpu("NVIDIA A100", "GPU-aa11"), gpu("NVIDIA H100", "GPU-aa22"), gpu("NVIDIA T4", "GPU-bb33")];
        visible(&gpus, list, || LISTED.to_owned()).into_iter().map(|gpu| gpu.name).collect()
    }

    #[test]
    fn only_what_the_list_names_is_visible_and_in_its_order() {
        assert_eq!(shown(None), ["NVIDIA A100", "NVIDIA H100", "NVIDIA T4"]);
        assert_eq!(shown(Some("1")), ["NVIDIA H100"]);
        assert_eq!(shown(Some("2, 0")), ["NVIDIA T4", "NVIDIA A100"]);
        assert_eq!(shown(Some("GPU-bb33,GPU-aa1")), ["NVIDIA T4", "NVIDIA A100"]);
    }

    #[test]
    fn what_stands_behind_a_name_of_nothing_is_hidden_as_is_all_with_an_empty_list() {
        for nothing in ["", "-1", "NoDevFiles", "3", "GPU-", "GPU-aa", "GPU-ff,0", "0,0"] {
            assert_eq!(shown(Some(nothing)), Vec::<String>::new(), "{nothing}");
        }
        assert_eq!(shown(Some("1,-1,0")), ["NVIDIA H100"]);
    }

    #[test]
    fn a_part_of_a_gpu_is_named_by_its_profile() {
        assert_eq!(shown(Some("MIG-d8")), ["NVIDIA H100 MIG 1g.10gb"]);
        assert_eq!(shown(Some("MIG-c7")), ["NVIDIA A100 MIG 3g.20gb"]);
        assert_eq!(shown(Some("MIG-GPU-aa22/1/0")), ["NVIDIA H100 MIG"]);
        assert_eq!(shown(Some("MIG-ee")), Vec::<String>::new());
    }
}
