//! Which of the driver's own variables reach an engine or a server: none but these. Main functions: [`passed_on`],
//! [`keyed_variables`].
//!
//! Whatever else vLLM, LMCache, torch, oneDNN, MKL, cuBLAS or Python would listen to is not there, so it cannot change a
//! result in silence. Those that can change one and that some machines cannot do without are part of each engine's key.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Variables that say where things are and who runs them, and change no number. `CUDA_VISIBLE_DEVICES` chooses the GPUs,
/// which are part of the key as the device.
const HARMLESS: [&str; 15] = [
    "CUDA_VISIBLE_DEVICES",
    "GLOO_SOCKET_IFNAME",
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOCALE_ARCHIVE",
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
const KEYED: [&str; 12] = [
    "CC",
    "CPATH",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_PATH",
    "CXX",
    "LD_LIBRARY_PATH",
    "LIBRARY_PATH",
    "NIX_CFLAGS_COMPILE",
    "NIX_LD",
    "NIX_LDFLAGS",
    "NIX_LD_LIBRARY_PATH",
];
const KEYED_PREFIXES: [&str; 2] = ["NCCL_", "TRITON_"];
const LIBRARIES: &str = "LD_LIBRARY_PATH";

/// This process's variables, less what `cargo run` adds for this program alone.
pub(super) fn own_variables() -> Vec<(OsString, OsString)> {
    let mut own: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let (cargo, executable) = (std::env::var_os("CARGO"), std::env::current_exe().unwrap_or_default());
    if let Some(cargo) = cargo {
        own.retain_mut(|(name, value)| {
            if *name == LIBRARIES {
                *value = without_cargos(value, Path::new(&cargo), &executable);
            }
            *name != LIBRARIES || !value.is_empty()
        });
    }
    own
}

/// A search path without the folders of this program's build and of cargo's toolchain.
fn without_cargos(libraries: &OsStr, cargo: &Path, executable: &Path) -> OsString {
    let toolchain = cargo.ancestors().nth(2).map(|root| root.join("lib")).unwrap_or_default();
    let is_cargos = |folder: &Path| {
        let built = executable.parent().is_some_and(|build| folder.starts_with(build));
        built || folder == toolchain || folder.starts_with(toolchain.join("rustlib"))
    };
    let left = std::env::split_paths(libraries).filter(|folder| !is_cargos(folder));
    std::env::join_paths(left.filter(|folder| !folder.as_os_str().is_empty())).unwrap_or_default()
}

fn is_one_of(name: &str, names: &[&str], prefixes: &[&str]) -> bool {
    names.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// Those of the given variables that every process gets.
pub(super) fn passed_on(own: Vec<(OsString, OsString)>) -> impl Iterator<Item = (OsString, OsString)> {
    own.into_iter().filter(|(name, _)| {
        let Some(name) = name.to_str() else { return false };
        is_one_of(name, &HARMLESS, &HARMLESS_PREFIXES) || is_one_of(name, &KEYED, &KEYED_PREFIXES)
    })
}

/// Those of this process's variables that reach an engine and may change what it computes, sorted; they belong into its key.
#[must_use]
pub fn keyed_variables() -> Vec<(String, String)> {
    keyed_of(own_variables())
}

fn keyed_of(own: Vec<(OsString, OsString)>) -> Vec<(String, String)> {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    };
    let mut keyed: Vec<_> = own.into_iter().filter_map(text).collect();
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
        let own = || names.map(|name| (OsString::from(name), OsString::from("value"))).to_vec();
        let passed: Vec<String> = passed_on(own()).map(|(name, _)| name.into_string().unwrap()).collect();
        let expected =
            ["CC", "CUDA_VISIBLE_DEVICES", "HOME", "LC_ALL", "LD_LIBRARY_PATH", "NCCL_ALGO", "PATH"];
        assert_eq!(passed, expected);
        let keyed: Vec<String> = keyed_of(own()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(keyed, ["CC", "LD_LIBRARY_PATH", "NCCL_ALGO"]);
    }

    #[test]
    fn what_cargo_adds_to_the_search_path_of_libraries_is_no_difference() {
        let without = |libraries: &str| {
            let (cargo, executable) =
                ("/home/me/.rustup/toolchains/stable/bin/cargo", "/src/target/release/driver");
            without_cargos(OsStr::new(libraries), Path::new(cargo), Path::new(executable))
        };
        let added = "/src/target/release/deps:/src/target/release:/home/me/.rustup/toolchains/stable/lib\
            :/home/me/.rustup/toolchains/stable/lib/rustlib/x86_64-unknown-linux-gnu/lib";
        assert_eq!(without(added), "");
        assert_eq!(without(&format!("{added}:/opt/driver/lib")), "/opt/driver/lib");
        assert_eq!(without("/opt/a:/opt/b"), "/opt/a:/opt/b");
    }
}
