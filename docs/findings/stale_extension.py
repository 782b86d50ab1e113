"""Shows if LMCache copies KV by Python because its wheel was compiled for another torch; needs no GPU and no engine.

    pip install lmcache==0.5.6 torch==2.11.0
    python stale_extension.py

Each compiled file of LMCache is opened behind torch. Then LMCache is imported and asked what it copies KV with on a
GPU. That should be the compiled `multi_layer_block_kv_transfer`; where its file does not open, LMCache raises nothing,
says in its log that it was "not found", and takes functions of the same names in Python, by which requests were served
the KV of others.

Exit status: 1 the extension does not load and Python takes its place, 0 it loads and is used, 2 neither.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from types import TracebackType


def open_extensions() -> dict[str, str]:
    """Open each compiled file, without importing LMCache, and say what the loader says of those that it refuses."""
    found = importlib.util.find_spec("lmcache")
    folder = Path((found.submodule_search_locations or [])[0]) if found else Path("missing")
    refused = {}
    for file in sorted(folder.glob("*.so")):
        name = file.name.split(".")[0]
        try:
            ctypes.CDLL(str(file))
        except OSError as error:
            refused[name] = str(error).rpartition(": ")[2]
            print(f"  {name} does not load: {str(error).partition(': ')[2]}")
        else:
            print(f"  {name} loads")
    return refused


def main() -> int:
    """Open what is compiled, then ask LMCache."""
    import torch

    lmcache = importlib.metadata.version("lmcache")
    print(f"lmcache {lmcache}, torch {torch.__version__}, compiled for CUDA {torch.version.cuda}")
    refused = open_extensions()

    from lmcache.v1.platform import resolve_device_ops

    # Without a GPU LMCache 0.5.3 has put functions for processors in the place of its module `c_ops`.
    sys.modules.pop("lmcache.c_ops", None)
    used = resolve_device_ops("cuda").multi_layer_block_kv_transfer
    compiled = not hasattr(used, "__code__") and not hasattr(used, "__func__")
    print(f"imported without an error; KV on a GPU is copied by {'compiled code' if compiled else 'Python'}")
    if compiled:
        return 0
    # The extension for CUDA is `c_ops` up to LMCache 0.5.3 and `cuda_ops` since.
    return 1 if refused.keys() & {"c_ops", "cuda_ops"} else 2


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    sys.exit(main())
