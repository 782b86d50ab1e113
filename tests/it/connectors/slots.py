"""A connector that keeps blocks of KV in a few slots of this process's memory, and does wrong on demand.

Slots are taken one after the other, and the first ones again once there are no more: what was there is given up. Blocks
are known by the tokens of a prompt up to their end. `fault` among its settings is one of

- none: right in every case;
- stale: what was given up is still served from its old place;
- silent: each third block is not stored, and taken for stored;
- early: blocks are stored two steps late, though vLLM gives them to others as soon as their request ends;
- beyond: each prompt is served a block more than is stored of it.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata


@dataclass
class Copies(KVConnectorMetadata):
    """Pairs of a slot and a block of vLLM's cache."""

    loads: list = field(default_factory=list)
    stores: list = field(default_factory=list)


@dataclass
class Tracked:
    """A request that computes its prompt: hashes of its blocks, where they lie, and how many were stored or served."""

    hashes: list
    blocks: list
    done: int


class SlotsConnector(KVConnectorBase_V1):
    """Both roles live in one process, each in an object of its own."""

    def __init__(self, vllm_config, role, kv_cache_config=None):
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        settings = vllm_config.kv_transfer_config
        self.fault = settings.get_from_extra_config("fault", "none")
        self.slots = int(settings.get_from_extra_config("slots", 96))
        self.block_size = vllm_config.cache_config.block_size
        # The scheduler's side.
        self.index, self.owners, self.next, self.stored = {}, {}, 0, 0
        self.tracked, self.loads = {}, {}
        # The worker's side.
        self.caches, self.memory, self.late = {}, {}, []

    # What is stored, and what is asked.

    def hashes(self, tokens):
        """Name each whole block of these tokens, but for the last token."""
        ends = range(self.block_size, len(tokens), self.block_size)
        return [hashlib.sha256(struct.pack(f"<{end}I", *tokens[:end])).digest() for end in ends]

    def get_num_new_matched_tokens(self, request, num_computed_tokens):
        """Count the first blocks of a request that are there."""
        hashes = self.hashes(list(request.prompt_token_ids))
        found = next((place for place, name in enumerate(hashes) if name not in self.index), len(hashes))
        if self.fault == "beyond" and 0 < found < len(hashes):
            found += 1
        return max(found * self.block_size - num_computed_tokens, 0), False

    def update_state_after_alloc(self, request, blocks, num_external_tokens):
        """Load into these blocks in the coming step."""
        if num_external_tokens > 0:
            self.loads[request.request_id] = num_external_tokens // self.block_size

    def build_connector_meta(self, scheduler_output):
        """Say what the step loads before, and stores behind, its forward pass."""
        copies = Copies()
        for request_id in [*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())]:
            tracked = self.tracked.get(request_id)
            if tracked is not None:
                tracked.blocks = []
        for new in scheduler_output.scheduled_new_reqs:
            self.tracked[new.req_id] = Tracked(self.hashes(list(new.prompt_token_ids)), [], 0)
            self.admit(copies, new.req_id, new.block_ids[0], new.num_computed_tokens)
            self.store(copies, new.req_id, new.num_computed_tokens, scheduler_output)
        cached = scheduler_output.scheduled_cached_reqs
        for place, request_id in enumerate(cached.req_ids):
            blocks, computed = cached.new_block_ids[place], cached.num_computed_tokens[place]
            if request_id in cached.resumed_req_ids:
                self.admit(copies, request_id, blocks[0], computed)
            elif blocks is not None:
                self.tracked[request_id].blocks.extend(blocks[0])
            self.store(copies, request_id, computed, scheduler_output)
        return copies

    def admit(self, copies, request_id, blocks, computed):
        """Load what a request was promised: the last of what it need not compute."""
        tracked = self.tracked[request_id]
        tracked.blocks, tracked.done = list(blocks), computed // self.block_size
        for place in range(tracked.done - self.loads.pop(request_id, 0), tracked.done):
            # One block more than is stored is loaded from anywhere.
            slot = self.index.get(tracked.hashes[place], 0)
            copies.loads.append((slot, tracked.blocks[place]))

    def store(self, copies, request_id, computed, scheduler_output):
        """Store the blocks of a prompt that this step completes."""
        tracked = self.tracked[request_id]
        complete = (computed + scheduler_output.num_scheduled_tokens[request_id]) // self.block_size
        for place in range(tracked.done, min(complete, len(tracked.hashes))):
            name = tracked.hashes[place]
            if name not in self.index:
                slot, self.next = self.next, (self.next + 1) % self.slots
                given_up = self.owners.get(slot)
                if given_up is not None and self.fault != "stale":
                    self.index.pop(given_up, None)
                self.index[name], self.owners[slot] = slot, name
                self.stored += 1
                if self.fault != "silent" or self.stored % 3:
                    copies.stores.append((slot, tracked.blocks[place]))
            tracked.done = place + 1

    # What is copied.

    def register_kv_caches(self, kv_caches):
        """Keep room for so many blocks of each layer; the first axis of a layer's cache counts blocks."""
        self.caches = kv_caches
        self.memory = {name: cache.new_zeros((self.slots, *cache.shape[1:])) for name, cache in kv_caches.items()}

    def start_load_kv(self, forward_context, **kwargs):
        """Copy from slots to blocks."""
        for slot, block in self._get_connector_metadata().loads:
            for name, cache in self.caches.items():
                cache[block].copy_(self.memory[name][slot])

    def wait_for_layer_load(self, layer_name):
        """All was loaded before."""

    def save_kv_layer(self, layer_name, kv_layer, attn_metadata, **kwargs):
        """All is stored behind the forward pass."""

    def wait_for_save(self):
        """Copy from blocks to slots, at once or two steps late."""
        self.late.append(self._get_connector_metadata().stores)
        while len(self.late) > (2 if self.fault == "early" else 0):
            for slot, block in self.late.pop(0):
                for name, cache in self.caches.items():
                    self.memory[name][slot].copy_(cache[block])
