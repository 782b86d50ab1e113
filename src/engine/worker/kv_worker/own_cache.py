"""vLLM's own prefix cache beside a connector: on, as the connector knows blocks by its hashes, and read on demand."""

from __future__ import annotations

import time
from typing import Any

# Between two looks whether copies have arrived or blocks are free, seconds.
_LOOK_AGAIN = 0.001
# How long blocks may stay in use once nothing is asked any more, seconds.
_LONGEST_USE = 10.0


class Unread:
    """vLLM's own prefix cache, which finds nothing unless `serves` says so, and goes on to give blocks their hashes.

    A connector's lookup is another object's, of the same class at most.
    """

    def __init__(self, llm_engine: Any) -> None:
        """Raises AttributeError where this vLLM keeps its scheduler elsewhere."""
        self.serves = False
        coordinator = _scheduler(llm_engine).kv_cache_manager.coordinator
        find = coordinator.find_longest_cache_hit

        def find_if_it_serves(block_hashes: Any, max_cache_hit_length: int) -> Any:
            return find(block_hashes, max_cache_hit_length if self.serves else 0)

        coordinator.find_longest_cache_hit = find_if_it_serves


def empty(llm: Any) -> None:
    """Empty vLLM's own prefix cache; what a connector holds stays.

    Behind a last answer a batch may still be under way, without which blocks are not given back. Raises RuntimeError
    where some stay in use.
    """
    deadline = time.monotonic() + _LONGEST_USE
    while not llm.reset_prefix_cache():
        if time.monotonic() > deadline:
            raise RuntimeError("vLLM did not empty its prefix cache")
        llm.llm_engine.step()
        time.sleep(_LOOK_AGAIN)


def finish_stores(llm_engine: Any) -> None:
    """Have a connector finish what it stores after a request's last answer.

    vLLM's connectors that offload are handed a request's last blocks, and learn that copies are done, in the engine's
    steps, of which there are none once no request is left. One that does not tell of work under way is not waited for.
    """
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    name = "has_pending_push_work"
    try:
        scheduler = _scheduler(llm_engine)
    except AttributeError:
        return
    if getattr(type(scheduler.connector), name, None) is getattr(KVConnectorBase_V1, name, None):
        return
    while scheduler.has_requests():
        llm_engine.step()
        time.sleep(_LOOK_AGAIN)


def _scheduler(llm_engine: Any) -> Any:
    return llm_engine.engine_core.engine_core.scheduler
