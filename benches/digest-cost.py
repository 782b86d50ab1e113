"""What digests of the KV cost: passes with and without them, side by side in one run.

    python benches/digest-cost.py MODEL_FOLDER [--prompts 64] [--tokens 1000] [--sequences 16] [--repeat 7] [--cuda]

Run it with the Python of an environment that has vLLM. Two engines are started behind the worker protocol, one that
digests and one that does not, and take turns: each computes the same prompts (store), then is served them by vLLM's own
prefix cache (load). Prints lines of JSON for each pass, of the time that passed and of the processors' time, which
counts on a busy machine: the medians in seconds, and the median and the quartiles of the share that digests add in a
turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHUNK_TOKENS = 256
WORKER = Path(__file__).parent.parent / "src" / "engine" / "worker"
sys.path.insert(0, str(WORKER))
PROTOCOL = importlib.import_module("kv_worker.protocol").PROTOCOL
VARIABLES = {
    "PYTHONPATH": str(WORKER),
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "GOMP_SPINCOUNT": "20000",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}


class Worker:
    """One engine behind the worker protocol."""

    def __init__(self, options: argparse.Namespace, *, digests: bool) -> None:
        arguments: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": options.tokens + CHUNK_TOKENS,
            "max_num_seqs": options.sequences,
            "enforce_eager": True,
        }
        if options.cuda:
            arguments |= {"kv_cache_memory_bytes": 8 << 30, "gpu_memory_utilization": 0.01}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kv_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | VARIABLES,
        )
        self._ask(
            {
                "type": "start",
                "protocol": PROTOCOL,
                "model": options.model,
                "arguments": arguments | json.loads(options.arguments),
                "connector": None,
                "hit_multiple": CHUNK_TOKENS,
                "whole_hits": False,
                "digest_chunk_tokens": CHUNK_TOKENS if digests else None,
                "stored_as": None,
                "letters": [5, 6, 7, 8],
                "top": 5,
                "max_tokens": 2,
                "seed": 0,
            },
            "ready",
        )

    def score(self, prompts: list[dict[str, Any]], *, read_cache: bool) -> tuple[float, float]:
        """Return the seconds that one pass took, replies included, and the processors' seconds."""
        started, used = time.perf_counter(), self._processor_seconds()
        how = {"read_cache": read_cache, "hand_over": False, "misreading": None}
        self._ask({"type": "score", **how, "prompts": prompts}, "counted")
        return time.perf_counter() - started, self._processor_seconds() - used

    def _processor_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def finish(self) -> None:
        """Shut the engine down."""
        self._ask({"type": "finish"}, "finished")
        self._process.wait(60)

    def _ask(self, request: dict[str, Any], last: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            kind = json.loads(line)["type"]
            if kind == last:
                return
            if kind == "failed":
                raise SystemExit(line)
        raise SystemExit("the worker ended")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--arguments", default="{}", help="further keyword arguments of vllm.LLM, as JSON")
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    random_numbers = random.Random(0)
    prompts = [
        {
            "question": number,
            "token_ids": [random_numbers.randrange(10, 2000) for _ in range(options.tokens)],
            "transfer": None,
        }
        for number in range(options.prompts)
    ]
    workers = {digests: Worker(options, digests=digests) for digests in (False, True)}
    seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for turn in range(options.repeat + 1):
        for name, read_cache in (("store", False), ("load", True)):
            for digests in (False, True) if turn % 2 else (True, False):
                taken = workers[digests].score(prompts, read_cache=read_cache)
                if turn > 0:  # the first warms up
                    seconds.setdefault((name, digests), []).append(taken)
    for name in ("store", "load"):
        for place, clock in enumerate(("passed", "processors")):
            without, with_digests = (
                statistics.median(taken[place] for taken in seconds[name, digests]) for digests in (False, True)
            )
            pairs = zip(seconds[name, False], seconds[name, True], strict=True)
            shares = [taken[place] / alone[place] - 1 for alone, taken in pairs]
            report = {
                "without": round(without, 4),
                "with": round(with_digests, 4),
                "share": round(statistics.median(shares), 4),
                "quartiles": [round(share, 4) for share in statistics.quantiles(shares, n=4)[::2]],
            }
            print(json.dumps({"pass": name, "clock": clock, **report}))
    for worker in workers.values():
        worker.finish()


if __name__ == "__main__":
    main()
