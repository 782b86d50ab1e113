#!/usr/bin/env python3
"""What an engine is served of the KV that another one stored in the same LMCache server; needs vLLM and LMCache alone.

    python another_engine.py data-type MODEL    bfloat16 stores, float16 asks
    python another_engine.py weights MODEL      asks with other weights in the same place, which are written there
    python another_engine.py driven MODEL       the same engine, with `lmcache_driven` transfer

MODEL is a folder in Hugging Face's layout, of which a copy is used. Four engines answer the same prompts, one by one:
one stores; one that differs from it asks; a twin of the latter computes everything alone; another twin is served by
vLLM's own prefix cache what it has computed itself. Prints for each prompt the tokens that were served, and by how much
the log-probabilities of the likeliest tokens move against those computed alone, in nats. Exit status: 1 if the engine
that asks was served and moves by more than twice what vLLM's own cache moves, 0 if not, 2 if it was served nothing.
"""

import argparse
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CHUNK_TOKENS = 256
PROMPTS = 4
PROMPT_TOKENS = 4 * CHUNK_TOKENS + 40
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


def answer(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer all prompts by one engine, `passes` times; the last pass counts."""
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    extra: dict[str, Any] = {"enable_prefix_caching": job["passes"] > 1}
    if job["port"]:
        settings = {"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": job["port"], **job["connector"]}
        extra["kv_transfer_config"] = KVTransferConfig(
            kv_connector="LMCacheMPConnector",
            kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
            kv_role="kv_both",
            kv_connector_extra_config=settings,
        )
    llm = LLM(
        model=job["model"],
        dtype=job["dtype"],
        skip_tokenizer_init=True,
        max_model_len=2048,
        max_num_seqs=1,
        enforce_eager=True,
        seed=0,
        **extra,
    )
    numbers = random.Random(0)
    prompts = [[numbers.randrange(10, 1500) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=8, detokenize=False, ignore_eos=True)
    answers: list[dict[str, Any]] = []
    for _ in range(job["passes"]):
        answers = []
        for prompt in prompts:
            (output,) = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)
            likeliest = (output.outputs[0].logprobs or [{}])[0]
            logprobs = {token: one.logprob for token, one in likeliest.items()}
            answers.append({"served": output.num_cached_tokens or 0, "logprobs": logprobs})
    time.sleep(3)  # what is stored may arrive behind the answers
    return answers


def run(name: str, model: Path, dtype: str, port: int | None, passes: int, connector: dict[str, Any]) -> Any:
    """Run an engine in a process of its own."""
    job = {"model": str(model), "dtype": dtype, "port": port, "passes": passes, "connector": connector}
    with tempfile.TemporaryDirectory() as folder:
        told, log = Path(folder) / "answers.json", Path(folder) / "log"
        command = [sys.executable, __file__, "--job", json.dumps(job), "--told", str(told)]
        with log.open("w") as file:
            ended = subprocess.run(command, env={**os.environ, **VARIABLES}, stdout=file, stderr=file, check=False)
        if ended.returncode:
            sys.exit(f"the engine that {name} ended with {ended.returncode}:\n{log.read_text()[-3000:]}")
        return json.loads(told.read_text())


def free_port() -> int:
    """Find a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_server(port: int) -> subprocess.Popen[bytes]:
    """Start an LMCache server and wait until it is healthy."""
    http = free_port()
    options = f"--host 127.0.0.1 --port {port} --http-host 127.0.0.1 --http-port {http} --prometheus-port {free_port()}"
    options += f" --chunk-size {CHUNK_TOKENS} --l1-size-gb 1 --eviction-policy LRU --supported-transfer-mode auto"
    start = "import sys; from lmcache.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "server", *options.split()]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        time.sleep(0.5)
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/healthcheck", timeout=1).close()
        except OSError:
            if server.poll() is not None:
                break
        else:
            return server
    server.kill()
    sys.exit("the LMCache server did not start")


def change_weights(model: Path) -> None:
    """Write other weights in their place: each a little larger."""
    from safetensors.torch import load_file, save_file

    for file in model.glob("*.safetensors"):
        weights = {name: weight * 1.05 for name, weight in load_file(file).items()}
        save_file(weights, file, {"format": "pt"})


def moved(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return by how much the log-probability of a token that both list moves, at most; infinite if they list none."""
    both = one["logprobs"].keys() & other["logprobs"].keys()
    return max((abs(one["logprobs"][token] - other["logprobs"][token]) for token in both), default=float("inf"))


def main() -> int:
    """Run all engines and compare."""
    if sys.argv[1:2] == ["--job"]:
        Path(sys.argv[4]).write_text(json.dumps(answer(json.loads(sys.argv[2]))))
        os._exit(0)  # connectors leave threads behind
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("data-type", "weights", "driven"))
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    connector = {"lmcache.mp.mp_transfer_mode": "lmcache_driven"} if options.case == "driven" else {}
    dtype = "float16" if options.case == "data-type" else "bfloat16"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(shutil.copytree(options.model, Path(folder) / "model"))
        port = free_port()
        server = start_server(port)
        try:
            run("stores", model, "bfloat16", port, 1, connector)
            if options.case == "weights":
                change_weights(model)
            asks = run("asks", model, dtype, port, 1, connector)
        finally:
            server.kill()
        alone = run("computes alone", model, dtype, None, 1, {})
        control = run("is served by vLLM", model, dtype, None, 2, {})
    served, worst = 0, [0.0, 0.0]
    for number, (one, by_lmcache, by_vllm) in enumerate(zip(alone, asks, control, strict=True), 1):
        moves = [moved(one, by_lmcache), moved(one, by_vllm)]
        served += by_lmcache["served"]
        worst = [max(pair) for pair in zip(worst, moves, strict=True)]
        print(
            f"prompt {number} of {PROMPT_TOKENS} tokens:",
            f"served {by_lmcache['served']} by LMCache, moves by {moves[0]:.3g} nats;",
            f"served {by_vllm['served']} by vLLM, moves by {moves[1]:.3g}",
        )
    if not served:
        print("the engine that asks was served nothing")
        return 2
    print(f"served {served} tokens; moved by {worst[0]:.3g} nats at most, by {worst[1]:.3g} where vLLM serves")
    return int(worst[0] > 2 * worst[1])


if __name__ == "__main__":
    sys.exit(main())
