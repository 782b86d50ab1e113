//! What an engine compiles with or loads while it starts, found as inductor, Triton, `FlashInfer` and the loader find it.

use std::ffi::OsString;

use camino::{Utf8Path, Utf8PathBuf};

use super::line::Line;

use crate::engine::environment::{EnvironmentRequest, Stack};
use crate::machine::find_program;

/// Where distributions keep libraries.
const LIBRARY_FOLDERS: [&str; 3] = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];

/// Where each of them is, or what will fail without it.
pub(super) fn compiler_lines(request: &EnvironmentRequest) -> Vec<Line> {
    let found = |variable: &str, programs: &[&str], otherwise: &str| {
        named(std::env::var_os(variable), variable)
            .or_else(|| {
                programs.iter().find_map(|name| find_program(&request.search_path, name)).map(Into::into)
            })
            .unwrap_or_else(|| format!("not found; {otherwise}"))
    };
    let mut lines = vec![
        Line::new(
            "C++ compiler",
            found(
                "CXX",
                &["g++", "clang++"],
                "PyTorch's inductor needs one: `apt-get install g++`, or set CXX",
            ),
        ),
        Line::new("lscpu", found("", &["lscpu"], "vLLM on a CPU needs it: `apt-get install util-linux`")),
    ];
    if request.stack == Stack::Cpu {
        let file = LIBRARY_FOLDERS.iter().map(|folder| Utf8Path::new(folder).join("libnuma.so.1"));
        let otherwise =
            "not found; vLLM on a CPU needs it, unless the environment brings it: `apt-get install libnuma1`";
        let found = file.into_iter().find(|path| path.exists());
        lines
            .push(Line::new("libnuma", found.map_or_else(|| otherwise.to_owned(), Utf8PathBuf::into_string)));
    }
    if request.stack == Stack::Cuda {
        let loader =
            ["/sbin/ldconfig", "/usr/sbin/ldconfig"].into_iter().find(|path| Utf8Path::new(path).exists());
        let libcuda = named(std::env::var_os("TRITON_LIBCUDA_PATH"), "TRITON_LIBCUDA_PATH")
            .or_else(|| loader.map(|path| format!("asked of {path}")))
            .unwrap_or_else(|| "not found; set TRITON_LIBCUDA_PATH to the folder of libcuda.so.1".to_owned());
        let nvcc =
            std::env::var_os("CUDA_HOME").map(|home| Utf8PathBuf::from(home.to_string_lossy().as_ref()));
        let nvcc = nvcc.map(|home| home.join("bin/nvcc")).filter(|path| path.is_file()).map(Into::into);
        lines.extend([
            Line::new(
                "C compiler",
                found("CC", &["gcc", "clang"], "Triton needs one: `apt-get install gcc`, or set CC"),
            ),
            Line::new("libcuda", libcuda),
            Line::new(
                "nvcc",
                nvcc.unwrap_or_else(|| {
                    found("", &["nvcc"], "only FlashInfer's kernels need it: set CUDA_HOME")
                }),
            ),
        ]);
    }
    lines
}

/// What a variable names, if it is set.
fn named(value: Option<OsString>, variable: &str) -> Option<String> {
    let value = value?.to_string_lossy().into_owned();
    (!value.is_empty()).then(|| format!("{value} ({variable})"))
}
