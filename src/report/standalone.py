"""Shows that LMCache changes what vLLM computes; needs these two and nothing else. Written by kv-correctness.

The same prompts are answered four times, always one at a time: twice by vLLM alone, whose own prefix cache serves the
second pass (`control`), and twice by vLLM with LMCache, which stores in the first pass and serves the second (`load`).
`control` and `load` compute the same tokens behind KV of another origin, so their log-probabilities must be equal, bit
for bit, where kernels repeat. The model has the shape of the one that was tested and random weights, made here;
`--model DIR` takes a real one.

Exit status: 1 they differ, 0 they are equal, 2 LMCache served nothing, 3 the control was served other tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CASE: dict[str, Any] = json.loads(r"""@CASE@""")


def make_model(folder: Path) -> None:
    """Write a model with the tested one's configuration and random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    (folder / "config.json").write_text(json.dumps(CASE["config"]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.to(getattr(torch, CASE["arguments"]["dtype"])).save_pretrained(folder)


def answer_twice(role: str, model: str, port: int) -> list[list[dict[str, Any]]]:
    """Answer all prompts, then all of them again; runs in a process of its own."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    extra: dict[str, Any] = {"enable_prefix_caching": True, "block_size": CASE["chunk_tokens"]}
    if role == "lmcache":
        connector: dict[str, Any] = {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
        if CASE["route"] == "mp":
            server = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port}
            connector = {
                "kv_connector": "LMCacheMPConnector",
                "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {**server, **CASE["connector"]},
            }
        extra = {"enable_prefix_caching": False, "kv_transfer_config": KVTransferConfig(**connector)}
    llm = LLM(model=model, skip_tokenizer_init=True, seed=CASE["seed"], **CASE["arguments"], **extra)
    parameters = SamplingParams(
        temperature=0, max_tokens=CASE["max_tokens"], logprobs=8, seed=CASE["seed"], detokenize=False, ignore_eos=True
    )
    passes = []
    for number in range(2):
        if number and role == "lmcache":
            time.sleep(5)  # stored chunks may arrive after the answer
        answers = []
        for prompt in CASE["prompts"]:
            output = llm.generate([{"prompt_token_ids": prompt["token_ids"]}], parameters, use_tqdm=False)[0]
            logprobs = output.outputs[0].logprobs or []
            steps = [sorted((token, one.logprob) for token, one in step.items()) for step in logprobs]
            answers.append(
                {
                    "cached": output.num_cached_tokens or 0,
                    "tokens": list(output.outputs[0].token_ids),
                    "logprobs": steps,
                }
            )
        passes.append(answers)
    llm.llm_engine.engine_core.shutdown()
    return passes


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_server(port: int) -> subprocess.Popen[bytes]:
    """Start `lmcache server` with a memory tier of its own, and wait until it is healthy."""
    http = free_port()
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {free_port()}"
    options += f" --chunk-size {CASE['chunk_tokens']} --l1-size-gb {CASE['memory_gib']} --eviction-policy LRU"
    options += " --supported-transfer-mode auto"
    start = "import sys; from lmcache.cli.main import main; sys.exit(main())"
    server = subprocess.Popen([sys.executable, "-c", start, "server", *options.split()])
    for _ in range(120):
        time.sleep(1)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=1):
                return server
        except OSError:
            if server.poll() is not None:
                break
    server.kill()
    sys.exit("the LMCache server did not start")


def run_role(role: str, model: str, port: int) -> list[list[dict[str, Any]]]:
    """Run `answer_twice` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "passes.json"
        subprocess.run(
            [sys.executable, __file__, "--role", role, "--model", model, "--port", str(port), "--result", str(result)],
            check=True,
        )
        passes: list[list[dict[str, Any]]] = json.loads(result.read_text())
        return passes


def compare(control: list[dict[str, Any]], load: list[dict[str, Any]]) -> int:
    """Print what differs, and return the exit status."""
    differing = 0
    for prompt, one, other in zip(CASE["prompts"], control, load, strict=True):
        both = dict(one["logprobs"][0]).keys() & dict(other["logprobs"][0]).keys()
        largest = max(
            (abs(dict(one["logprobs"][0])[token] - dict(other["logprobs"][0])[token]) for token in both),
            default=math.nan,
        )
        equal = one["logprobs"] == other["logprobs"]
        differing += not equal
        print(
            f"{prompt['name']}: {len(prompt['token_ids'])} tokens; served:",
            f"control {one['cached']}, LMCache {other['cached']};",
            f"tokens {one['tokens']} and {other['tokens']};",
            "equal bit for bit" if equal else f"DIFFERENT, log-probabilities by up to {largest:.3g} nats",
        )
    if not any(other["cached"] for other in load):
        print("LMCache served nothing")
        return 2
    if any(one["cached"] != other["cached"] for one, other in zip(control, load, strict=True)):
        print("the control was served other tokens than LMCache, so bits may differ without a fault")
        return 3
    print(f"{differing} of {len(load)} prompts differ")
    return 1 if differing else 0


def main() -> int:
    """Run all passes and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model's folder, instead of random weights")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(CASE["variables"])
    if arguments.role:
        arguments.result.write_text(json.dumps(answer_twice(arguments.role, arguments.model, arguments.port)))
        sys.stdout.flush()
        os._exit(0)  # in-process LMCache leaves threads behind that keep a plain exit waiting
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.model:
            make_model(Path(folder))
        model, port = arguments.model or folder, free_port()
        control = run_role("control", model, port)
        server = start_server(port) if CASE["route"] == "mp" else None
        try:
            load = run_role("lmcache", model, port)
        finally:
            if server:
                server.terminate()
                try:
                    server.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    server.kill()
    return compare(control[1], load[1])


if __name__ == "__main__":
    sys.exit(main())
