//! Which of the driver's own variables reach an engine or a server: none but these. Main functions: [`passed_on`],
//! [`keyed_variables`].
//!
//! Whatever else vLLM, LMCache, `PyTorch`, oneDNN, MKL, cuBLAS or Python would listen to is not there, so it cannot change a
//! result in silence. Those that can change one and that some machines cannot do without are part of each engine's key.

use std::ffi::OsString;

/// Variables that say where things are and who runs them, and change no number. `CUDA_VISIBLE_DEVICES` chooses the GPUs,
/// which are part of the key as the device.
const HARMLESS: [&str; 14] = [
    "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOGNAME",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "XDG_RUNTIME_DIR",
];
const HARMLESS_PREFIXES: [&str; 1] = ["LC_"];

/// Variables that choose libraries, compilers, or ways for GPUs to talk to each other. The Nix wrapper names the machine's
/// `libcuda` by `LD_LIBRARY_PATH`.
const KEYED: [&str; 8] = [
    "CC",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "LD_LIBRARY_PATH",
    "TRITON_LIBCUDA_PATH",
    "TRITON_PTXAS_PATH",
];
const KEYED_PREFIXES: [&str; 1] = ["NCCL_"];

fn is_one_of(name: &str, names: &[&str], prefixes: &[&str]) -> bool {
    names.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Those of the given variables that every process gets.
pub(super) fn passed_on(
    own: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    own.filter(|(name, _)| {
        let Some(name) = name.to_str() else { return false };
        is_one_of(name, &HARMLESS, &HARMLESS_PREFIXES) || is_one_of(name, &KEYED, &KEYED_PREFIXES)
    })
}

/// Those of this process's variables that reach an engine and may change what it computes, sorted; they belong into its key.
#[must_use]
pub fn keyed_variables() -> Vec<(String, String)> {
    keyed_of(std::env::vars_os())
}

fn keyed_of(own: impl Iterator<Item = (OsString, OsString)>) -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    let mut keyed: Vec<_> = own.filter_map(text).collect();
    keyed.retain(|(name, _)| is_one_of(name, &KEYED, &KEYED_PREFIXES));
    keyed.sort();
    keyed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_change_a_number_is_not_passed_on_or_is_keyed() {
        let names = [
            "ATEN_CPU_CAPABILITY",
            "CC",
            "CUBLAS_WORKSPACE_CONFIG",
            "CUDA_VISIBLE_DEVICES",
            "HOME",
            "HTTP_PROXY",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "LD_PRELOAD",
            "LMCACHE_CHUNK_SIZE",
            "MKL_CBWR",
            "NCCL_ALGO",
            "NVIDIA_TF32_OVERRIDE",
            "ONEDNN_MAX_CPU_ISA",
            "PATH",
            "PYTHONPATH",
            "VLLM_LOGGING_LEVEL",
        ];
        let own = || names.map(|name| (OsString::from(name), OsString::from("value"))).into_iter();
        let passed: Vec<String> = passed_on(own()).map(|(name, _)| name.into_string().unwrap()).collect();
        let expected =
            ["CC", "CUDA_VISIBLE_DEVICES", "HOME", "LC_ALL", "LD_LIBRARY_PATH", "NCCL_ALGO", "PATH"];
        assert_eq!(passed, expected);
        let keyed: Vec<String> = keyed_of(own()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(keyed, ["CC", "LD_LIBRARY_PATH", "NCCL_ALGO"]);
    }
}
