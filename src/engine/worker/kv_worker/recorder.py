"""Records digests of the KV itself, in the process of each rank, while the engine runs.

For each whole chunk of a prompt and each layer: 128 bits over the raw bytes, order-sensitive, computed on the device
that holds them, in order with the stream that computes, so nothing waits that would not wait without them. The first is
taken where it can first matter: of a chunk that was served, where attention is about to read it (behind the connector's
`wait_for_layer_load`); of one that was computed, behind the forward pass that completed it. The last is taken before
the chunk's blocks can be given to another request; in a layer that sees a window alone, whose blocks leave earlier,
behind the forward pass that read a served chunk first, and never for a computed one. In a layer that keeps states a
chunk has a digest only where a step ended with it, and of those served the last alone, which the layer goes on from; it
is taken at the layer's turn, and once.

A prompt that is served whole but for its last token has that token's KV written into its last chunk again, in each
layer ahead of its attention. That chunk is digested before the forward pass, as it was loaded, and not again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from kv_worker.digests import DIGEST_BYTES, Layers, digest_on_host, find_layers, gather, index_blocks

if TYPE_CHECKING:
    from kv_worker.kernel import DeviceDigests


@dataclass(eq=False)
class Chunk:
    """One chunk of one request; each digest is a place in the results: bucket of layers → (batch, row).

    `stored` is that of what a lossy form of storage makes of a computed chunk, where it is declared. `blocks` are those
    that each bucket's digest was taken of.
    """

    request: str
    number: int
    served: bool
    completed_again: bool = False
    first: dict[int, tuple[int, int]] = field(default_factory=dict)
    last: dict[int, tuple[int, int]] = field(default_factory=dict)
    stored: dict[int, tuple[int, int]] = field(default_factory=dict)
    blocks: dict[int, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Held:
    """A chunk that was collected: its request's id, its number, whether it was served, its blocks by bucket."""

    request: str
    number: int
    served: bool
    blocks: dict[int, list[int]]


@dataclass
class Request:
    """One request between its admission and the end of its blocks."""

    blocks: list[list[int]]
    whole_chunks: int
    served: int
    complete: int
    chunks: dict[int, Chunk] = field(default_factory=dict)


@dataclass(frozen=True)
class Wanted:
    """A digest that is due: of this chunk, its first or its last one, in these blocks of the bucket's group."""

    chunk: Chunk
    is_first: bool
    blocks: list[int]


class Recorder:
    """Follows the scheduler's output through one rank and takes the digests that are due."""

    def __init__(self, model_runner: Any, chunk_tokens: int, stored_as: str | None, *, answers: bool) -> None:
        """Find the layers and hook into the model runner; raises CannotDigestError where that is not possible.

        `stored_as` is torch's name of the data type that elements go through on their way into the cache and back.
        With `answers` chunks that generated tokens complete are digested, too.
        """
        self.stored_as = stored_as
        self._answers = answers
        self._modules = model_runner.vllm_config.compilation_config.static_forward_context
        self.chunk_tokens = chunk_tokens
        self._names, self.buckets = find_layers(model_runner, chunk_tokens)
        self._on_device = _start_on_device(self.buckets)
        self._requests: dict[str, Request] = {}
        # Of each request that has not ended; one that was preempted has no blocks, and is taken up again.
        self._whole_chunks: dict[str, int] = {}
        self._chunks: list[Chunk] = []
        # Chunks that were collected last, whose blocks may still hold what they held.
        self._collected: list[Chunk] = []
        self._batches: list[list[Any]] = [[] for _ in self.buckets]
        # Of the forward pass that comes next: chunks that it reads first, by bucket, and what it completes.
        self._reading: list[list[Wanted]] = [[] for _ in self.buckets]
        self._ahead: list[list[Wanted]] = [[] for _ in self.buckets]
        self._gathered: dict[tuple[int, int], Any] = {}
        self._indices: dict[int, Any] = {}
        self._behind: list[list[Wanted]] = [[] for _ in self.buckets]
        # Of the forward pass that came last: the chunks that it completed, with the numbers of their buckets.
        self.completed: list[tuple[int, Wanted]] = []
        self._problem: str | None = None
        self._spoilt_chunk: int | None = None
        self._spoilt_layers = 0
        self._hook(model_runner)

    def layers(self) -> list[str]:
        """Name the layers in the order in which digests are reported."""
        return self._names

    def windows(self) -> list[int | None]:
        """Tell how many tokens each of these layers keeps, None where it keeps all."""
        windows: list[int | None] = [None] * len(self._names)
        for layers in self.buckets:
            for position in layers.positions:
                windows[position] = layers.window
        return windows

    def collect(self) -> tuple[str | None, list[tuple[str, int, bool, bytes, bytes, bytes]]]:
        """Return what was taken since the last time, of an engine without unfinished requests.

        First what kept digests from being taken, if anything did. Each chunk then has the request's id, its number,
        whether it was served, and its first and last digests and those of what is stored of it, those of all layers
        one behind the other; one that was not taken is zero. Of what is stored there are none without loss.
        """
        import torch

        self._end(list(self._requests))
        self._whole_chunks.clear()
        # Of each bucket one row a chunk: the digests of its layers.
        rows: list[Any] = [torch.cat(batches).cpu().numpy() if batches else None for batches in self._batches]
        starts = [list(accumulate((len(batch) for batch in batches), initial=0)) for batches in self._batches]

        whole, width = b"" if rows[0] is None else rows[0].tobytes(), DIGEST_BYTES * len(self._names)

        def joined(places: dict[int, tuple[int, int]]) -> bytes:
            if len(self.buckets) == 1 and places:
                batch, row = places[0]
                start = (starts[0][batch] + row) * width
                return whole[start : start + width]
            digests = [bytes(DIGEST_BYTES)] * len(self._names)
            for bucket, (batch, row) in places.items():
                taken = rows[bucket][starts[bucket][batch] + row]
                for position, digest in zip(self.buckets[bucket].positions, taken, strict=True):
                    digests[position] = digest.tobytes()
            return b"".join(digests)

        collected = [
            (
                chunk.request,
                chunk.number,
                chunk.served,
                joined(chunk.first),
                joined(chunk.last),
                joined(chunk.stored) if chunk.stored else b"",
            )
            for chunk in self._chunks
            if chunk.first or chunk.last
        ]
        self._collected, self._chunks = self._chunks, []
        self._batches = [[] for _ in self.buckets]
        return self._problem, collected

    def spoil(self, chunk: int) -> None:
        """Set this chunk of every request that is served it to zero, from now on, before attention reads it."""
        self._spoilt_chunk, self._spoilt_layers = chunk, 0

    def end_spoiling(self) -> int:
        """Spoil no more; return in how many layers a chunk was."""
        self._spoilt_chunk = None
        return self._spoilt_layers

    def held(self) -> list[Held]:
        """Return the chunks that were collected last, for a second look before the next requests come."""
        return [Held(chunk.request, chunk.number, chunk.served, chunk.blocks) for chunk in self._collected]

    def digest_again(self, bucket: int, place: int, blocks: list[int], *, as_stored: bool) -> bytes:
        """Digest what these blocks hold now in one layer of a bucket, or what is stored of that."""
        layers = self.buckets[bucket]
        index = index_blocks(layers, [blocks])
        looked = self._look_as_stored(bucket, place, index) if as_stored else _look(layers.caches[place], index)
        return bytes(self._digest(bucket, [looked]).cpu().numpy().tobytes())

    def through_storage(self, layer: str, rows: Any) -> Any:
        """Return what becomes of a layer's elements, given as integers, that are stored and loaded again."""
        import torch

        cache = self._modules[layer].kv_cache
        dtype = (cache[0] if isinstance(cache, list | tuple) else cache).dtype
        elements = rows.contiguous().view(dtype)
        return elements.to(getattr(torch, str(self.stored_as))).to(dtype).view(rows.dtype)

    def _hook(self, model_runner: Any) -> None:
        execute = model_runner.execute_model

        def execute_model(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
            self._begin(scheduler_output)
            return execute(scheduler_output, *arguments, **named)

        model_runner.execute_model = execute_model
        model = model_runner.get_model()
        connector = _connector()
        model.register_forward_pre_hook(lambda *_: self._read_ahead(self._ahead))
        if connector is None:
            model.register_forward_pre_hook(lambda *_: self._read_ahead(self._reading))
        else:
            wait = connector.wait_for_layer_load

            def wait_for_layer_load(layer_name: str) -> None:
                wait(layer_name)
                self._read(layer_name)

            connector.wait_for_layer_load = wait_for_layer_load
            for name in (name for layers in self.buckets if layers.keep_states for name in layers.names):
                # Such a layer waits for no connector.
                self._modules[name].register_forward_pre_hook(lambda *_, name=name: self._read(name))
        model.register_forward_hook(lambda *_: self._finish_forward())

    def _begin(self, output: Any) -> None:
        """Take the last digests of what lost its blocks, and note what the coming forward pass reads and completes.

        Nothing of this step was written yet: the blocks still hold what their last owner left.
        """
        self._end([*output.finished_req_ids, *(output.preempted_req_ids or ())])
        for request_id in output.finished_req_ids:
            self._whole_chunks.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            tokens = len(new.prompt_token_ids or ()) + (new.sampling_params.max_tokens if self._answers else 0)
            self._whole_chunks[new.req_id] = tokens // self.chunk_tokens
            self._admit(new.req_id, new.block_ids, new.num_computed_tokens)
        cached = output.scheduled_cached_reqs
        for request_id, new_blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if request_id in cached.resumed_req_ids and request_id in self._whole_chunks:
                self._end([request_id])
                self._admit(request_id, new_blocks, computed)
                continue
            request = self._requests.get(request_id)
            if request is None:
                continue
            for group, blocks in enumerate(new_blocks or ()):
                request.blocks[group].extend(blocks)
            if computed < request.complete:
                self._take_back(request, computed)
        starts = {name: request.complete for name, request in self._requests.items()} if any(self._reading) else {}
        for request_id, tokens in output.num_scheduled_tokens.items():
            request = self._requests.get(request_id)
            if request is not None:
                self._schedule(request_id, request, tokens)
        self._wait_for_writers(starts)

    def _wait_for_writers(self, starts: dict[str, int]) -> None:
        """Digest behind the forward pass what another request of the same pass writes.

        vLLM's own prefix cache serves blocks that are computed in the very step in which they are served; each layer
        writes them ahead of its attention. `starts` are the tokens that requests had before the pass.
        """
        for bucket, layers in enumerate(self.buckets):
            if not self._reading[bucket]:
                continue
            tokens = self.chunk_tokens // layers.blocks_of_chunk
            written = {
                block
                for name, start in starts.items()
                if (request := self._requests.get(name)) is not None and request.complete > start
                for block in request.blocks[layers.group][start // tokens : -(-request.complete // tokens)]
            }
            late = [one for one in self._reading[bucket] if not written.isdisjoint(one.blocks)]
            if late:
                self._reading[bucket] = [one for one in self._reading[bucket] if one not in late]
                self._behind[bucket].extend(late)

    def _admit(self, request_id: str, blocks: Any, computed: int) -> None:
        whole_chunks = self._whole_chunks[request_id]
        self._requests[request_id] = Request([list(group) for group in blocks], whole_chunks, computed, 0)
        request = self._requests[request_id]
        for number in range(min(-(-computed // self.chunk_tokens), whole_chunks)):
            last = (number + 1) * self.chunk_tokens - 1
            if computed < last:
                continue
            chunk = Chunk(request_id, number, served=True, completed_again=computed == last)
            request.chunks[number] = chunk
            self._chunks.append(chunk)
            for bucket, layers in enumerate(self.buckets):
                wanted = self._wanted(request, layers, chunk, is_first=True)
                if wanted is not None:
                    (self._ahead if chunk.completed_again else self._reading)[bucket].append(wanted)
                    if layers.window is not None and not layers.keep_states and not chunk.completed_again:
                        self._behind[bucket].append(Wanted(chunk, False, wanted.blocks))
        request.complete = computed

    def _take_back(self, request: Request, computed: int) -> None:
        """Forget chunks that the scheduler has computed again, since their load failed and vLLM knows of it."""
        for number in [number for number in request.chunks if (number + 1) * self.chunk_tokens > computed]:
            forgotten = request.chunks.pop(number)
            self._chunks.remove(forgotten)
        request.served = min(request.served, computed)
        request.complete = computed

    def _schedule(self, request_id: str, request: Request, tokens: int) -> None:
        before, request.complete = request.complete, request.complete + tokens
        # A chunk of which the last token alone is computed again counts as served.
        first = max(before // self.chunk_tokens, -(-request.served // self.chunk_tokens))
        for number in range(first, min(request.complete // self.chunk_tokens, request.whole_chunks)):
            chunk = Chunk(request_id, number, served=False)
            request.chunks[number] = chunk
            self._chunks.append(chunk)
            for bucket, layers in enumerate(self.buckets):
                # A later state takes the place of one behind which no step ended.
                if layers.keep_states:
                    if request.complete != (number + 1) * self.chunk_tokens:
                        continue
                # Blocks that had left a window before this pass may be another request's by now.
                elif layers.window is not None and number * self.chunk_tokens < before - layers.window + 1:
                    continue
                wanted = self._wanted(request, layers, chunk, is_first=True)
                if wanted is not None:
                    self._behind[bucket].append(wanted)

    def _wanted(self, request: Request, layers: Layers, chunk: Chunk, *, is_first: bool) -> Wanted | None:
        """Return the digest to take of a chunk's blocks; None where the scheduler has given some of them away."""
        blocks = layers.of_chunk(request.blocks[layers.group], chunk.number)
        if len(blocks) < layers.digested_blocks or (layers.window is not None and 0 in blocks):
            return None
        return Wanted(chunk, is_first, blocks)

    def _end(self, request_ids: list[str]) -> None:
        ended = [request for name in request_ids if (request := self._requests.pop(name, None)) is not None]
        for bucket, layers in enumerate(self.buckets):
            if layers.window is not None:
                continue
            wanted = [
                last
                for request in ended
                for chunk in request.chunks.values()
                if not chunk.completed_again
                if (last := self._wanted(request, layers, chunk, is_first=False)) is not None
            ]
            self._take(bucket, wanted)

    def _read(self, layer_name: str) -> None:
        """Gather one layer of what this forward pass reads first; what is gathered no later write can change."""
        for bucket, layers in enumerate(self.buckets):
            if self._reading[bucket] and layer_name in layers.names:
                place = layers.names.index(layer_name)
                if (bucket, place) not in self._gathered:
                    if bucket not in self._indices:
                        self._indices[bucket] = index_blocks(layers, [one.blocks for one in self._reading[bucket]])
                    self._gathered[bucket, place] = _look(layers.caches[place], self._indices[bucket])
                    self._spoil(bucket, place)

    def _spoil(self, bucket: int, place: int) -> None:
        """Set the chunk to be spoilt to zero in one layer, if this forward pass reads it."""
        if self._spoilt_chunk is None:
            return
        read = zip(self._reading[bucket], self._indices[bucket], strict=True)
        rows = [index for wanted, index in read if wanted.chunk.number == self._spoilt_chunk]
        for row in rows:
            self.buckets[bucket].caches[place].index_fill_(0, row, 0)
        self._spoilt_layers += len(rows)

    def _read_ahead(self, reading: list[list[Wanted]]) -> None:
        for bucket, wanted in enumerate(reading):
            self._take(bucket, wanted)
            reading[bucket] = []

    def _finish_forward(self) -> None:
        self.completed.clear()
        for bucket, layers in enumerate(self.buckets):
            wanted, self._reading[bucket] = self._reading[bucket], []
            if wanted:
                places = range(len(layers.names))
                missing = [layers.names[place] for place in places if (bucket, place) not in self._gathered]
                if missing:
                    self._problem = f"vLLM did not wait for the connector before {missing[0]}"
                else:
                    self._keep(bucket, wanted, [self._gathered[bucket, place] for place in places])
            behind, self._behind[bucket] = self._behind[bucket], []
            computed = [one for one in behind if one.is_first and not one.chunk.served]
            self.completed.extend((bucket, one) for one in computed)
            self._take(bucket, behind)
            if self.stored_as is not None:
                self._take_as_stored(bucket, [one.chunk for one in computed])
        self._gathered.clear()
        self._indices.clear()

    def _take(self, bucket: int, wanted: list[Wanted]) -> None:
        if wanted:
            layers = self.buckets[bucket]
            index = index_blocks(layers, [one.blocks for one in wanted])
            digests = self._on_device[bucket].digest_in_place(index) if self._on_device else None
            if digests is None:
                self._keep(bucket, wanted, [_look(cache, index) for cache in layers.caches])
            else:
                self._note(bucket, wanted, digests)

    def _take_as_stored(self, bucket: int, chunks: list[Chunk]) -> None:
        if chunks:
            layers = self.buckets[bucket]
            index = index_blocks(layers, [chunk.blocks[bucket] for chunk in chunks])
            looked = [self._look_as_stored(bucket, place, index) for place in range(len(layers.names))]
            batch = self._add(bucket, self._digest(bucket, looked))
            for row, chunk in enumerate(chunks):
                chunk.stored[bucket] = (batch, row)

    def _look_as_stored(self, bucket: int, place: int, index: Any) -> Any:
        """Take hold of what is stored of chunks of one layer, as `_look` does of what they are."""
        import torch

        layers = self.buckets[bucket]
        rows = self.through_storage(layers.names[place], gather(layers.caches[place], index))
        return rows if rows.is_cuda else digest_on_host(rows, torch.arange(len(rows)).view(-1, 1))

    def _keep(self, bucket: int, wanted: list[Wanted], looked: list[Any]) -> None:
        self._note(bucket, wanted, self._digest(bucket, looked))

    def _digest(self, bucket: int, looked: list[Any]) -> Any:
        """Digest what was gathered of some layers, or take the digests that the host has made: (layers, chunks, 2)."""
        import torch

        stacked = torch.stack(looked)
        return self._on_device[bucket].digest_gathered(stacked) if self._on_device else stacked

    def _note(self, bucket: int, wanted: list[Wanted], digests: Any) -> None:
        """Note where each chunk's digests lie, given (layers, chunks, 2) of them."""
        batch = self._add(bucket, digests)
        for row, one in enumerate(wanted):
            (one.chunk.first if one.is_first else one.chunk.last)[bucket] = (batch, row)
            one.chunk.blocks[bucket] = one.blocks

    def _add(self, bucket: int, digests: Any) -> int:
        """Keep digests, (layers, chunks, 2); the number of the batch that they are."""
        self._batches[bucket].append(digests.transpose(0, 1))
        return len(self._batches[bucket]) - 1


def _look(cache: Any, index: Any) -> Any:
    """Take hold of chunks of one layer as they are now: a copy on a GPU, whose digest comes later; else the digest."""
    return gather(cache, index) if cache.is_cuda else digest_on_host(cache, index)


def _start_on_device(buckets: list[Layers]) -> list[DeviceDigests]:
    """Make ready to digest each bucket's layers on their GPU; nothing where they lie in the host's memory."""
    if not any(layers.caches[0].is_cuda for layers in buckets):
        return []
    from kv_worker.kernel import DeviceDigests, check_sums

    check_sums(buckets[0].caches[0].device)
    return [DeviceDigests(layers) for layers in buckets]


def _connector() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group

    return get_kv_transfer_group() if has_kv_transfer_group() else None
