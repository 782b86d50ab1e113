"""Shows that an engine ends when a request is broken off while LMCache loads its KV; needs vLLM and LMCache alone.

    pip install vllm==0.32.0 lmcache==0.5.6        (on a GPU)
    python abort_while_loading.py

An engine answers a prompt over an LMCache server (`LMCacheMPConnector`), which stores its KV. Then it is asked the same
prompt, which it loads, and the request is broken off as soon as it waits for its KV, as when a client hangs up. The
connector tells vLLM of such a request twice: that its load has ended, and that nothing of it is being stored any more.
At the first of the two vLLM gives the request's blocks away and forgets it, and at the second it ends:
`assert req_id in self.requests`. The model is a small Llama with random weights, made here.

Exit status: 1 the engine ends, 0 it goes on, 2 no request could be met while it was loaded.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

CHUNK_TOKENS = 256
DRAW = random.Random(0)
PROMPT = [DRAW.randrange(10, 500) for _ in range(8 * CHUNK_TOKENS + 16)]
TIMES = 10
LONGEST = 20.0
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
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16).save_pretrained(folder)


def break_off(model: str, port: int) -> None:
    """Ask, ask again and break off while loading; print how often that was met, and what ended the engine."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    server = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
    connector = KVTransferConfig(
        kv_connector="LMCacheMPConnector",
        kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
        kv_role="kv_both",
        kv_connector_extra_config=server | {"lmcache.mp.mp_transfer_mode": "lmcache_driven"},
    )
    settings: dict[str, Any] = {"max_model_len": 4096, "enforce_eager": True, "enable_prefix_caching": False}
    settings |= {"seed": 0, "gpu_memory_utilization": 0.1}
    llm = LLM(model=model, dtype="bfloat16", skip_tokenizer_init=True, kv_transfer_config=connector, **settings)
    engine: Any = llm.llm_engine
    requests = engine.engine_core.engine_core.scheduler.requests
    parameters = SamplingParams(temperature=0, max_tokens=2, detokenize=False)
    met, ended = 0, ""

    def run(name: str, leaves: bool) -> bool:
        """Ask the prompt until nothing of it is left; whether it was broken off while it was loaded."""
        engine.add_request(name, {"prompt_token_ids": PROMPT}, parameters)
        broken_off, deadline = False, time.monotonic() + LONGEST
        while requests and time.monotonic() < deadline:
            engine.step()
            loading = any(one.status.name == "WAITING_FOR_REMOTE_KVS" for one in requests.values())
            if leaves and loading and not broken_off:
                engine.abort_request([name])
                broken_off = True
            time.sleep(0.002)
        return broken_off

    try:
        run("first", leaves=False)
        time.sleep(5)  # what is stored may arrive after the answer
        for number in range(TIMES):
            met += run(f"again-{number}", leaves=True)
    except AssertionError:
        met += 1
        frame = traceback.extract_tb(sys.exc_info()[2])[-1]
        ended = f"{Path(frame.filename).name}, {frame.name}: {frame.line}"
    print(json.dumps({"met": met, "ended": ended}), file=report, flush=True)
    Path(f"/dev/shm/lmcache_kv_{os.getpid()}_0").unlink(missing_ok=True)
    os._exit(0)  # engines leave threads behind


def start_server() -> tuple[subprocess.Popen[bytes], int]:
    """Start an LMCache server in a process group of its own, and wait until it is healthy."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        port, http, metrics = (listener.getsockname()[1] for listener in (one, two, three))
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {metrics}"
    options += f" --chunk-size {CHUNK_TOKENS} --l1-size-gb 1 --eviction-policy LRU --supported-transfer-mode auto"
    program = shutil.which("lmcache", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [program or "lmcache", "server", *options.split()]
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


def main() -> int:
    """Break requests off in an engine of their own, and tell what became of it."""
    with tempfile.TemporaryDirectory() as model, tempfile.TemporaryFile("w+") as log:
        make_model(model)
        server, port = start_server()
        try:
            command = [sys.executable, __file__, "--break-off", model, str(port)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log, "text": True}
            done = subprocess.run(command, check=False, timeout=300, env=os.environ | VARIABLES, **pipes)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.seek(0)
        said = log.read()
    if done.returncode:
        raise RuntimeError(f"the engine's process ended with {done.returncode}:\n{said[-2000:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    print(f"{told['met']} requests were broken off while they were loaded")
    print(f"the engine ended: {told['ended']}" if told["ended"] else "the engine goes on")
    return 2 if told["met"] == 0 else int(bool(told["ended"]))


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--break-off"]:
        break_off(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
