"""What digests of the KV cost: passes with and without them, by one engine that does both in turn.

    python benches/digest-cost.py MODEL_FOLDER [--prompts 64] [--tokens 1000] [--sequences 16] [--repeat 21] [--cuda]

Run it with the Python of an environment that has vLLM. The engine computes prompts (store), then is served them by
vLLM's own prefix cache (load), each with digests and without, in an order that changes from turn to turn. Two engines
side by side would differ by more than digests cost: a processor that is shared runs now faster, now slower. Prints a
line of JSON for each pass: the medians in seconds, and the median and the quartiles of the share that digests add in a
turn, of the time that passed and of the processors' time, which counts on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any, TextIO

CHUNK_TOKENS = 256
sys.path.insert(0, str(Path(__file__).parent.parent / "src" / "engine" / "worker"))
VARIABLES = {
    "PYTHONPATH": sys.path[0],
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


class Bench:
    """The worker's engine in this process, and its recorder, which can be made to look away."""

    def __init__(self, options: argparse.Namespace) -> None:
        arguments: dict[str, Any] = {
            "dtype": "bfloat16",
            "max_model_len": options.tokens + CHUNK_TOKENS,
            "max_num_seqs": options.sequences,
            "enforce_eager": True,
        }
        if options.cuda:
            arguments |= {"kv_cache_memory_bytes": 8 << 30, "gpu_memory_utilization": 0.01}
        self._protocol = importlib.import_module("kv_worker.protocol")
        start = self._protocol.Start(
            protocol=self._protocol.PROTOCOL,
            model=options.model,
            arguments=arguments | json.loads(options.arguments),
            connector=None,
            hit_multiple=CHUNK_TOKENS,
            whole_hits=False,
            digest_chunk_tokens=CHUNK_TOKENS,
            stored_as=None,
            letters=(5, 6, 7, 8),
            top=5,
            max_tokens=2,
            seed=0,
        )
        self._engine = importlib.import_module("kv_worker.engine").Engine(start)
        problem = self._engine.ready().digests.problem
        if problem is not None:
            raise SystemExit(f"the KV is not digested: {problem}")
        self._recorders: list[Any] = []
        self._engine._llm.collective_rpc(lambda worker: self._recorders.append(worker.kv_recorder))
        self._replies: TextIO = Path(os.devnull).open("w")  # noqa: SIM115  # it is needed as long as the engine

    def time(self, prompts: list[Any], *, read_cache: bool, digests: bool) -> tuple[float, float]:
        """Return the seconds that one pass took, replies included, and the processors' seconds."""
        for recorder in self._recorders:
            if digests:
                vars(recorder).pop("_begin", None)
            else:
                # Without what the scheduler says nothing is due, and every other hook returns at once.
                recorder._begin = lambda _: None
        request = self._protocol.Score(read_cache=read_cache, hand_over=False, misreading=None, prompts=prompts)
        started, used = time.perf_counter(), time.process_time()
        chunks = 0
        for reply in self._engine.score(request):
            self._protocol.write_reply(self._replies, reply)
        for reply in self._engine.digested()[1]:
            self._protocol.write_reply(self._replies, reply)
            chunks += len(reply.chunks)
        taken = time.perf_counter() - started, time.process_time() - used
        expected = len(prompts) * (len(prompts[0].token_ids) // CHUNK_TOKENS) if digests else 0
        if chunks != expected:
            raise SystemExit(f"{chunks} chunks were digested, not {expected}")
        return taken

    def prompts(self, count: int, tokens: int) -> list[Any]:
        """Make prompts of random tokens, the same ones each time."""
        random_numbers = random.Random(0)
        return [
            self._protocol.Prompt(number, [random_numbers.randrange(10, 2000) for _ in range(tokens)])
            for number in range(count)
        ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=21)
    parser.add_argument("--arguments", default="{}", help="further keyword arguments of vllm.LLM, as JSON")
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    os.environ.update(VARIABLES)
    # vLLM prints to standard output.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(options)
    prompts = bench.prompts(options.prompts, options.tokens)
    seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for turn in range(options.repeat + 1):
        for name, read_cache in (("store", False), ("load", True)):
            for digests in (False, True) if turn % 2 else (True, False):
                taken = bench.time(prompts, read_cache=read_cache, digests=digests)
                if turn > 0:  # the first warms up
                    seconds.setdefault((name, digests), []).append(taken)
    for name in ("store", "load"):
        for place, clock in enumerate(("passed", "processors")):
            without, with_digests = (
                statistics.median(taken[place] for taken in seconds[name, digests]) for digests in (False, True)
            )
            pairs = zip(seconds[name, False], seconds[name, True], strict=True)
            shares = [taken[place] / alone[place] - 1 for alone, taken in pairs]
            line = {
                "without": round(without, 4),
                "with": round(with_digests, 4),
                "share": round(statistics.median(shares), 4),
                "quartiles": [round(share, 4) for share in statistics.quantiles(shares, n=4)[::2]],
            }
            print(json.dumps({"pass": name, "clock": clock, **line}), file=report, flush=True)
    os._exit(0)  # engines leave threads behind


if __name__ == "__main__":
    main()
