"""Shows that LMCache serves a model the KV of another one in the same place; needs vLLM and LMCache and nothing else.

    python other_weights.py

An engine answers four prompts over an LMCache server (`LMCacheMPConnector`), which stores their KV. Then another
revision of the model's weights takes the place of the first, in the same folder, and a new engine asks the same
server, and then answers without LMCache. Its answers must be its own. Then it asks with a salt (`cache_salt`), twice.
The model is a small Llama with random weights, made here.

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


def make_model(folder: str, seed: int) -> None:
    """Write a small Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=2048, initializer_range=0.2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, port_text: str, *salts: str) -> None:
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
    llm = LLM(model=model, dtype="bfloat16", skip_tokenizer_init=True, seed=0, **settings, **extra)
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


def ask(model: str, port: int, *salts: str) -> list[list[dict[str, Any]]]:
    """Run `answer` in a process of its own."""
    command = [sys.executable, __file__, "--answer", model, str(port), *salts]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | VARIABLES)
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{done.stderr[-2000:]}")
    answers: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


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


def served(answers: list[dict[str, Any]]) -> int:
    """Add up the tokens that were served."""
    return sum(one["served"] for one in answers)


def main() -> int:
    """Store, read as another, and compare."""
    with tempfile.TemporaryDirectory() as model:
        make_model(model, 0)
        server, port = start_server()
        try:
            ask(model, port, "")
            itself = served(ask(model, port, "")[0])
            make_model(model, 1)
            reader, first, again = ask(model, port, "", "second", "second")
        finally:
            server.kill()
        (alone,) = ask(model, 0, "")
    print(f"the engine that stored is served {itself} tokens of its own")
    salted = f"with a salt {served(first)}, then {served(again)}"
    print(f"an engine with other weights is served {served(reader)} tokens of these; {salted}")
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
