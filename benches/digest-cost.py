"""What digests of the KV cost: passes with and without them, by one engine that does both in turn.

    python benches/digest-cost.py MODEL_FOLDER [--prompts 64] [--tokens 1000] [--sequences 16] [--repeat 21] [--cuda]
                                  [--own-cache]

Run it with the Python of an environment that has vLLM and LMCache. The engine computes prompts that an LMCache server
stores (store), then is served them by it (load), as in a run over `mp`; with `--own-cache` vLLM's own prefix cache
serves them, which copies nothing, as in a run's control. Each pass is made with digests and without, in an order that
changes from turn to turn. Two engines side by side would differ by more than digests cost: a processor that is shared
runs now faster, now slower. Prints a line of JSON for each pass: the medians in seconds, and the median and the
quartiles of the share that digests add in a turn, of the time that passed and of the processors' time, which counts on
a busy machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
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

    def __init__(self, options: argparse.Namespace, server_port: int | None) -> None:
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
            connector=server_port and self._connector(server_port),
            hit_multiple=None if server_port else CHUNK_TOKENS,
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

    def _connector(self, port: int) -> Any:
        return self._protocol.Connector(
            name="LMCacheMPConnector",
            module_path="lmcache.integration.vllm.lmcache_mp_connector",
            role="kv_both",
            extra={"lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port},
            settings={},
            python_path=[],
            cache_salt=None,
            model_by_name=False,
            prefix_caching="off",
        )

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
        chunks = served = 0
        for reply in self._engine.score(request):
            self._protocol.write_reply(self._replies, reply)
            served += reply.cached_tokens
        for reply in self._engine.digested()[1]:
            self._protocol.write_reply(self._replies, reply)
            chunks += len(reply.chunks)
        taken = time.perf_counter() - started, time.process_time() - used
        whole = len(prompts) * (len(prompts[0].token_ids) // CHUNK_TOKENS)
        if chunks != (whole if digests else 0):
            raise SystemExit(f"{chunks} chunks were digested of {whole}")
        if served != (whole * CHUNK_TOKENS if read_cache else 0):
            raise SystemExit(f"{served} tokens were served of {whole * CHUNK_TOKENS} in whole chunks")
        return taken

    def prompts(self, count: int, tokens: int, seed: int) -> list[Any]:
        """Make prompts of random tokens, the same ones for the same seed."""
        random_numbers = random.Random(seed)
        return [
            self._protocol.Prompt(number, [random_numbers.randrange(10, 2000) for _ in range(tokens)])
            for number in range(count)
        ]


def start_server(memory_gib: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start an LMCache server and wait until it is healthy; return it and its port."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for listener in (one, two, three):
            listener.bind(("127.0.0.1", 0))
        port, http_port, metrics_port = (listener.getsockname()[1] for listener in (one, two, three))
    options = {
        "--host": "127.0.0.1",
        "--port": port,
        "--http-host": "127.0.0.1",
        "--http-port": http_port,
        "--prometheus-port": metrics_port,
        "--chunk-size": CHUNK_TOKENS,
        "--l1-size-gb": memory_gib,
        "--eviction-policy": "LRU",
        "--supported-transfer-mode": "auto",
    }
    command = [str(Path(sys.executable).parent / "lmcache"), "server"]
    command += [str(word) for option in options.items() for word in option]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while server.poll() is None and time.monotonic() < until:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http_port}/healthcheck", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return server, port
    server.kill()
    raise SystemExit("the LMCache server is not healthy")


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
    parser.add_argument("--own-cache", action="store_true", help="vLLM's own prefix cache serves, no LMCache")
    parser.add_argument("--memory-gib", type=int, default=4, help="of the LMCache server")
    options = parser.parse_args()
    os.environ.update(VARIABLES)
    # vLLM prints to standard output.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server, port = (None, None) if options.own_cache else start_server(options.memory_gib)
    try:
        measure(Bench(options, port), options, report)
    finally:
        if server is not None:
            os.killpg(server.pid, signal.SIGKILL)
    os._exit(0)  # engines leave threads behind


def measure(bench: Bench, options: argparse.Namespace, report: TextIO) -> None:
    """Make the passes and print what they took."""
    seconds: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for turn in range(options.repeat + 1):
        for digests in (False, True) if turn % 2 else (True, False):
            prompts = bench.prompts(options.prompts, options.tokens, 2 * turn + digests)
            for name in ("store", "load"):
                taken = bench.time(prompts, read_cache=name == "load", digests=digests)
                if turn > 0:  # the first warms up
                    seconds.setdefault((name, digests), []).append(taken)
                time.sleep(0 if options.own_cache else 0.5)  # the server takes what it is given behind the answers
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


if __name__ == "__main__":
    main()
