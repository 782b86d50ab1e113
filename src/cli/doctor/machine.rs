//! What a machine has. Reads and asks, changes nothing.

use std::net::{Ipv4Addr, TcpListener};

use camino::{Utf8Path, Utf8PathBuf};
use fs_err as fs;

use super::line::Line;
use crate::cli::prepare::is_wsl;
use crate::engine::environment::EnvironmentRequest;
use crate::machine::{Device, DiskSpace, Memory, cuda_version, disk_space, find_program, memory};

/// CPU features that decide which kernels vLLM takes, with what each is good for.
const FEATURES: [(&str, &str); 4] = [
    ("avx2", "the least that vLLM's CPU build needs"),
    ("avx512f", "faster kernels"),
    ("avx512_bf16", "bfloat16 in hardware"),
    ("amx_tile", "AMX; without it vLLM computes MLA by a slow reference"),
];

/// All that was found out, under its titles.
pub(super) fn describe_machine(
    device: &Device,
    request: &EnvironmentRequest,
) -> Vec<(&'static str, Vec<Line>)> {
    vec![
        ("machine", machine_lines(device, &request.cache)),
        ("programs", program_lines(request)),
        ("settings", setting_lines(request)),
    ]
}

fn machine_lines(device: &Device, cache: &Utf8Path) -> Vec<Line> {
    let mut lines = vec![Line::new("system", system()), Line::new("processor", processor())];
    for (feature, use_of_it) in FEATURES {
        let there = matches!(Device::cpu(), Device::Cpu { features, .. } if features.contains(feature));
        lines.push(Line::new("", format!("{feature}: {} ({use_of_it})", if there { "yes" } else { "no" })));
    }
    lines.push(Line::new("memory", memory_words()));
    lines.push(Line::new(
        "/dev/shm",
        free_words(Utf8Path::new("/dev/shm"), "LMCache's memory tier lies there"),
    ));
    lines.push(Line::new(
        "GPU",
        match (Device::cuda(), device) {
            (Some(cuda), _) => {
                format!("{cuda}; CUDA {}", cuda_version().unwrap_or_else(|| "unknown".to_owned()))
            }
            (None, _) if is_wsl() => {
                "those of WSL (/dev/dxg, /usr/lib/wsl/lib), which this program does not know".to_owned()
            }
            (None, _) => "none that NVIDIA's kernel driver shows".to_owned(),
        },
    ));
    lines.push(Line::new("disk", free_words(cache, "for the cache")));
    lines
}

fn program_lines(request: &EnvironmentRequest) -> Vec<Line> {
    let on_path = |name: &str, otherwise: &str| {
        find_program(&request.search_path, name)
            .map_or_else(|| format!("not found; {otherwise}"), Utf8PathBuf::into_string)
    };
    let environment = match request.find() {
        Ok(Some(environment)) => {
            let version = |version: Option<&str>| version.unwrap_or("unknown").to_owned();
            let identity = environment.identity();
            let unknown = identity.require_known_vllm().err();
            format!(
                "{} (vLLM {}, LMCache {}){}",
                environment.folder(),
                version(identity.vllm_version()),
                version(identity.version("lmcache")),
                unknown.map(|error| format!("; no run can {error}")).unwrap_or_default()
            )
        }
        Ok(None) => {
            let command = format!("kv-correctness env --device {}", request.stack);
            format!("not made yet; `{command}` or the first run makes it")
        }
        Err(error) => format!("cannot be used: {error}"),
    };
    let python = match request.find_python() {
        Ok(python) => python.into_string(),
        Err(error) => format!("none that serves: {error}"),
    };
    let mut lines = vec![
        Line::new("environment", environment),
        Line::new("Python", python),
        Line::new("uv", on_path("uv", "a pinned one is installed when it is needed")),
        Line::new(
            "redis-server",
            on_path("redis-server", "only route mp+redis needs it: `apt-get install redis-server`"),
        ),
        Line::new("nix", on_path("nix", "only the hermetic way needs it")),
    ];
    lines.extend(super::compilers::compiler_lines(request));
    lines
}

fn setting_lines(request: &EnvironmentRequest) -> Vec<Line> {
    let port = match TcpListener::bind((Ipv4Addr::LOCALHOST, 0)) {
        Ok(_) => "a port of 127.0.0.1 can be opened, as LMCache's server needs".to_owned(),
        Err(error) => format!("no port of 127.0.0.1 can be opened ({error}): only route in-process can run"),
    };
    let token = match std::env::var("HF_TOKEN") {
        Ok(token) if !token.is_empty() => "HF_TOKEN is set (never shown)",
        _ => "HF_TOKEN is not set; only gated models need it",
    };
    let cache = if request.cache.exists() { "" } else { " (will be made)" };
    let mut lines = vec![
        Line::new("ports", port),
        Line::new("tokens", token),
        Line::new("cache", format!("{}{cache}", request.cache)),
    ];
    for name in
        ["KV_CORRECTNESS_ENV", "KV_CORRECTNESS_PYTHON", "KV_CORRECTNESS_CACHE", "HF_ENDPOINT", "HF_HOME"]
    {
        if let Ok(value) = std::env::var(name) {
            lines.push(Line::new("variable", format!("{name}={value}")));
        }
    }
    lines
}

fn system() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.unwrap_or("an unnamed system").trim_matches('"').to_owned();
    format!("{name}, {} {} {}", std::env::consts::OS, kernel.trim(), std::env::consts::ARCH)
}

fn processor() -> String {
    Device::cpu().to_string()
}

fn memory_words() -> String {
    let Memory { total, available } = memory();
    let words = |bytes: Option<u64>| bytes.map_or_else(|| "unknown".to_owned(), gigabytes);
    format!("{} free of {}", words(available), words(total))
}

fn free_words(folder: &Utf8Path, what_for: &str) -> String {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Utf8Path::new("/"));
    match disk_space(there) {
        Ok(DiskSpace { free, total }) => {
            format!("{} free of {} at {there}; {what_for}", gigabytes(free), gigabytes(total))
        }
        Err(error) => format!("{there} cannot be asked: {error}"),
    }
}

fn gigabytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let gigabytes = bytes as f64 / 1e9;
    format!("{gigabytes:.1} GB")
}
