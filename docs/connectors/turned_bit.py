"""A connector that is wrong on purpose: of each prompt that it loads, one bit in one layer is not what was stored."""

from typing import Any

import torch
from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector

LAYER = 1
TOKEN = 300


class TurnedBitConnector(ExampleConnector):
    """Keeps the KV of prompts in a folder, and turns the lowest bit of one number once it is loaded."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        super().start_load_kv(forward_context, **kwargs)
        layers = [layer for layer in forward_context.no_compile_layers.values() if hasattr(layer, "kv_cache")]
        for request in self._get_connector_metadata().requests:
            if not request.is_store and len(request.slot_mapping) > TOKEN:
                slot = int(request.slot_mapping[TOKEN])
                cache = layers[LAYER].kv_cache
                block, place = slot // self._block_size, slot % self._block_size
                # Latent attention has one number for all heads, and no axis of them.
                numbers = cache[block, place] if cache.dim() == 3 else cache[block, 0, place]
                numbers.view(torch.int16)[0] ^= 1
