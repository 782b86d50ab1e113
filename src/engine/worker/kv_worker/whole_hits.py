"""Keeps what vLLM's own prefix cache holds as it is, although it serves prompts whole.

The last token of such a prompt is computed again, and its KV goes into the last of the cached blocks. Newer vLLMs give
the request a copy of that block; in others the block itself is written to, and whoever shares the prefix would then
read KV that another computation left there. So its content is kept while such a request runs, and put back before
anything else is computed.
"""

from __future__ import annotations

from typing import Any

from kv_worker.digests import find_layers, index_blocks

Kept = list[tuple[Any, Any, Any]]
"""Of each layer: its cache with the axis of blocks first, places on that axis, and what stood there."""


class WholeHits:
    """Follows the scheduler's output through one rank of an engine whose own prefix cache serves whole prompts."""

    def __init__(self, model_runner: Any, chunk_tokens: int) -> None:
        """Hook into the model runner; raises CannotDigestError where the place of a layer's blocks is not known."""
        self._chunk_tokens = chunk_tokens
        _, self._buckets = find_layers(model_runner, chunk_tokens)
        self._kept: dict[str, Kept] = {}
        execute = model_runner.execute_model

        def execute_model(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
            self._begin(scheduler_output)
            return execute(scheduler_output, *arguments, **named)

        model_runner.execute_model = execute_model

    def _begin(self, output: Any) -> None:
        for request_id in (*output.finished_req_ids, *(output.preempted_req_ids or ())):
            for cache, places, content in self._kept.pop(request_id, ()):
                cache[places] = content
        copied = {copy.dst_block_id for copy in getattr(output, "kv_cache_block_copies", None) or ()}
        for new in output.scheduled_new_reqs:
            tokens = len(new.prompt_token_ids or ())
            if tokens % self._chunk_tokens == 0 and new.num_computed_tokens + 1 == tokens:
                self._kept[new.req_id] = self._keep(new.block_ids, tokens // self._chunk_tokens, copied)

    def _keep(self, block_ids: Any, chunks: int, copied: set[int]) -> Kept:
        kept = []
        for layers in self._buckets:
            block = block_ids[layers.group][chunks * layers.blocks_of_chunk - 1]
            if block not in copied:
                places = index_blocks(layers, [[block]]).view(-1)
                kept += [(cache, places, cache[places].clone()) for cache in layers.caches]
        return kept
