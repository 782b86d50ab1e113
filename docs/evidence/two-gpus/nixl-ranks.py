"""What does vLLM's NixlConnector make of KV that another number of ranks computed? Needs vLLM and nixl.

    python nixl-ranks.py MODEL PREFILL_RANKS DECODE_RANKS [--device cuda|cpu] [--gpus N] [--out FOLDER]

One engine computes prompts and leaves their KV; another one pulls it and answers. Then the second one computes the
same prompts itself, on its own ranks. Ranks round in another order, so log-probabilities may move by a little; KV whose
heads are exchanged, or missing, moves them by more. How far off another prompt's are says what a nat is worth here, and
half of the least of that is the bound: wrong KV that moves less is not seen. On CUDA prefill has the first
GPUs and decode those behind them, or the same ones where there are too few, so that two GPUs do for two ranks beside
one. The model is a folder; its prompts are made up.

Exit status: 0 all tokens but the last were pulled and nothing moved further than the bound, 1 something did, 4 less was
pulled, 2 an engine ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

PROMPTS = [[random.Random(number).randrange(50, 1900) for _ in range(600)] for number in range(6)]
VARIABLES = {
    "PYTHONHASHSEED": "0",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
    "UCX_NET_DEVICES": "lo",
}
OF_DEVICE = {
    "cuda": {
        "VLLM_BATCH_INVARIANT": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",
        "UCX_TLS": "cuda_copy,cuda_ipc,tcp,sm,self",
    },
    "cpu": {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "UCX_TLS": "tcp,sm,self",
    },
}
# The rotary embedding for CPUs disagrees with its own reference on MLA's strided queries and keys.
CPU_ARGUMENTS = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}}


def serve(model: str, ranks: int, role: str, device: str) -> None:
    """Answer what is asked line by line: a prompt, and where its KV was left, if anywhere."""
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output
    let_vllm_start_in_one_process()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    connector = KVTransferConfig(
        kv_connector="NixlConnector",
        kv_role=role,
        kv_buffer_device=device,
        engine_id=role,
        kv_connector_extra_config={"kv_lease_duration": 600},
    )
    settings: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 1, "enforce_eager": True}
    settings |= {"enable_prefix_caching": False, "tensor_parallel_size": ranks, "dtype": "bfloat16"}
    if device == "cpu":
        settings |= CPU_ARGUMENTS
    else:
        settings |= {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.01}
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        seed=42,
        disable_log_stats=False,
        kv_transfer_config=connector,
        **settings,
    )
    print("ready", file=report, flush=True)
    for line in sys.stdin:
        prompt, transfer = json.loads(line)
        parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=20, detokenize=False)
        if transfer is not None:
            parameters.extra_args = {"kv_transfer_params": transfer}
        output = llm.generate([{"prompt_token_ids": prompt}], parameters, use_tqdm=False)[0]
        best = {token: one.logprob for token, one in (output.outputs[0].logprobs or [{}])[0].items()}
        answer = {"served": pulled(llm), "best": best, "left": output.kv_transfer_params}
        print(json.dumps(answer), file=report, flush=True)
    os._exit(0)  # engines leave threads behind


def pulled(llm: Any) -> int:
    """How many tokens all requests of an engine had from its connector so far, by vLLM's own count."""
    hits = [one for one in llm.get_metrics() if one.name == "vllm:external_prefix_cache_hits"]
    return sum(int(one.value) for one in hits)


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


class Engine:
    """An engine in a process of its own, with its log in a folder."""

    def __init__(self, model: str, role: str, device: str, gpus: list[int], port: int, out: Path) -> None:
        variables = VARIABLES | OF_DEVICE[device] | {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        if device == "cuda":
            variables |= {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
        command = [sys.executable, __file__, "--serve", model, str(len(gpus)), role, device]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.log = out / f"{role}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, text=True, stderr=log, env=os.environ | variables, **pipes)

    def read(self) -> str:
        """Wait for a line; SystemExit with the end of the log if there is none."""
        line: str = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            print(f"an engine ended; {self.log} ends with:\n{self.log.read_text()[-1500:]}", file=sys.stderr)
            sys.exit(2)
        return line

    def ask(self, prompt: list[int], transfer: dict[str, Any] | None) -> dict[str, Any]:
        """Ask one prompt, and wait for its answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([prompt, transfer]) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.read())
        return answer


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at, all of them others."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def distance(one_answer: dict[str, Any], other_answer: dict[str, Any]) -> float:
    """The largest difference of a log-probability of the eight most likely tokens of the first, in nats.

    A token that is not among the 20 of the other is at most as likely as the last of these.
    """
    one: dict[str, float] = one_answer["best"]
    other: dict[str, float] = other_answer["best"]
    likely, least = sorted(one.items(), key=lambda entry: -entry[1])[:8], min(other.values())
    return max(abs(value - other.get(token, least)) for token, value in likely)


def main() -> int:
    """Let one engine compute, the other pull, and compare with what it computes itself."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prefill", type=int)
    parser.add_argument("decode", type=int)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    first = list(range(options.prefill))
    apart = options.prefill + options.decode <= options.gpus
    second = [options.prefill * apart + number for number in range(options.decode)]
    make = zip(("kv_producer", "kv_consumer"), (first, second), free_ports(2), strict=True)
    engines = [Engine(options.model, role, options.device, gpus, port, options.out) for role, gpus, port in make]
    try:
        return compare(*engines)
    finally:
        for engine in engines:
            engine.process.kill()


def compare(prefill: Engine, decode: Engine) -> int:
    """Ask all prompts of both engines, and say what came of it."""
    for engine in (prefill, decode):
        engine.read()
    remote = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    leave = {"do_remote_decode": True, "do_remote_prefill": False, **remote}
    pulling = [decode.ask(prompt, prefill.ask(prompt, leave)["left"]) for prompt in PROMPTS]
    served, wanted = pulling[-1]["served"], sum(map(len, PROMPTS))
    alone = [decode.ask(prompt, None) for prompt in PROMPTS]
    moved = [distance(own, other) for own, other in zip(alone, pulling, strict=True)]
    others = [distance(alone[number], alone[number - 1]) for number in range(len(PROMPTS))]
    print(f"{served} of {wanted} tokens were pulled, {alone[-1]['served'] - served} when nothing was to be")
    print(f"log-probabilities move by up to {max(moved):.3g} nats: {', '.join(f'{one:.3g}' for one in moved)}")
    print(f"those of another prompt are off by {min(others):.3g} nats at least")
    # vLLM counts the last token of each prompt as served, or not.
    if served < wanted - len(PROMPTS) or alone[-1]["served"] != served:
        return 4
    return int(max(moved) > min(others) / 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5])
    else:
        sys.exit(main())
