"""Looks into derivations that `evaluate` wrote as JSON, for what a run would lack: holds.py FOLDER."""

import json
import re
import sys
from pathlib import Path


def main(folder: str) -> None:
    def environment(name: str) -> dict[str, str]:
        shown = json.loads((Path(folder) / f"{name}.json").read_text())
        derivation = next(iter(shown.get("derivations", shown).values()))
        variables = derivation["env"]
        # Some builders of nixpkgs hand over their variables as JSON.
        return variables | {key: str(value) for key, value in json.loads(variables.get("__json", "{}")).items()}

    faults = []

    def holds(name: str, variable: str, *wanted: str, without: tuple[str, ...] = ()) -> None:
        text = environment(name).get(variable, "")
        faults.extend(f"{name}: {variable} lacks {part}" for part in wanted if part not in text)
        faults.extend(f"{name}: {variable} holds {part}" for part in without if part in text)

    for name in ("env-baseline", "env-lmcache"):
        holds(name, "autoPatchelfFlags", "--preserve-origin")
        holds(name, "autoPatchelfIgnoreMissingDeps", "*")
        holds(name, "installCheckPhase", "loads.py")
        holds(name, "libcudaStub", "cuda_cudart", "/lib/stubs")
    holds("lmcache", "CUDA_HOME", "cuda-home")
    holds("lmcache", "buildPhase", "MAX_JOBS=$NIX_BUILD_CORES")
    holds("lmcache", "TORCH_CUDA_ARCH_LIST", "8.0;", "9.0;", "12.0+PTX")
    for name, stack in (("lmcache", "cuda"), ("lmcache-cpu", "cpu")):
        pinned = re.search(r"^lmcache==(\S+)", Path(f"nix/stacks/{stack}.lock").read_text(), re.MULTILINE)
        holds(name, "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_LMCACHE", pinned[1])
    # Headers lie in outputs of their own.
    paths = environment("cuda-home")["paths"].split()
    for library in ("libcusparse", "libcublas", "libcusolver", "libcurand", "cuda_nvrtc"):
        if not any(library in path and path.endswith("-include") for path in paths):
            faults.append(f"cuda-home: no headers of {library}")
    faults.extend(f"cuda-home: no {part}" for part in ("cuda_crt", "cccl") if not any(part in path for path in paths))
    for device in ("cpu", "cuda"):
        name = f"stages.{device}.baseline"
        holds(name, "buildCommand", "gcc-wrapper", "lscpu", "git-", "redis-", "uv-")
        holds(name, "CC", "/bin/cc")
        holds(name, "buildCommand", "unset NIX_CFLAGS_COMPILE NIX_LDFLAGS")
    holds("stages.cuda.baseline", "TRITON_LIBCUDA_PATH", "/run/opengl-driver/lib")
    holds("stages.cuda.baseline", "requiredSystemFeatures", "cuda")
    holds("stages.cpu.baseline", "requiredSystemFeatures", "big-parallel")
    holds("stages.cuda.baseline", "CUDA_HOME", "cuda-home")
    for name in ("correctness", "doctor"):
        holds(name, "text", "gcc-wrapper", "lscpu", "git-", "redis-", "uv-", "CXX=")
    holds("correctness", "text", "env-cuda", "cuda_home=/nix/store/")
    for name, stack in (("image", "cuda"), ("image-cpu", "cpu")):
        wanted = [f"{part}=/nix/store/" for part in ("CC", "CXX", "KV_CORRECTNESS_ENV", "KV_CORRECTNESS_ENV_BASELINE")]
        wanted += [f"env-{stack}-lmcache", f"env-{stack}-baseline", "gcc-wrapper", "lscpu", "git-", "redis-"]
        holds(name, "text", *wanted)
        holds(f"{name}-files", "paths", "kv-correctness", "bin-sh", "ca-certificates")
    holds("image", "text", "CUDA_HOME=/nix/store/", "LD_LIBRARY_PATH=", "NVIDIA_VISIBLE_DEVICES=all")
    holds("image-files", "extraCommands", "sbin/ldconfig")  # Triton asks it first
    nested = "checks.x86_64-linux.tests"
    holds(nested, "nativeBuildInputs", "git-", "bash-interactive")
    if faults:
        sys.exit("\n".join(["evaluate:", *faults]))


if __name__ == "__main__":
    main(*sys.argv[1:])
