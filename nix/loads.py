"""Imports what a stack's engines import, where the environment is built: loads.py STACK PART.

STACK is cpu or cuda, PART baseline (vLLM) or lmcache (LMCache as well). LMCache hides an extension that does not load
behind a fallback in Python, so each of its compiled files is opened by itself.
"""

import ctypes
import importlib
import importlib.metadata
import sys
from pathlib import Path


def main(stack: str, part: str) -> None:
    import torch
    import vllm

    print(f"loads: torch {torch.__version__}, vllm {vllm.__version__}")
    importlib.import_module("vllm.engine.arg_utils")
    if stack == "cuda":
        importlib.import_module("vllm._C_stable_libtorch")
        print(f"loads: CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
        if torch.backends.cudnn.version() is None:
            sys.exit("loads: cuDNN does not load")
    if part == "lmcache":
        import lmcache

        importlib.import_module("lmcache.v1.config")
        folder = Path(lmcache.__path__[0])
        extensions = sorted(file.relative_to(folder) for file in folder.rglob("*.so"))
        for extension in extensions:
            ctypes.CDLL(str(folder / extension))
        version = importlib.metadata.version("lmcache")
        print(f"loads: lmcache {version} with {', '.join(map(str, extensions))}")
        names = {extension.name.split(".")[0] for extension in extensions}
        if not names or (stack == "cuda" and not names & {"cuda_ops", "c_ops"}):
            sys.exit(f"loads: LMCache was built without its compiled extension, there is only {sorted(names)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
