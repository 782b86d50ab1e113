"""The layers whose KV is digested, and the arithmetic of a digest on each device. When one is taken is `recorder`'s."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

DIGEST_BYTES = 16
GOLDEN = -7046029254386353131  # 2^64 divided by the golden ratio, as a signed number
EMPTY_DIGEST = (0x243F6A8885A308D3, 0x13198A2E03707344)  # of zeros, so that zero can mark an absent digest


class CannotDigestError(Exception):
    """This engine's KV cannot be observed, in words that say why."""


@dataclass(frozen=True)
class Layers:
    """Layers of one KV cache group whose chunks have the same size.

    `caches` are integer views with the axis of blocks first and the others as memory orders them: (blocks, …).
    `positions` are the layers' places among all layers of the rank. A chunk takes `blocks_of_chunk` of the scheduler's
    blocks, each of them `parts` of the axis. `window` is how many tokens the layers keep, None where they keep all.

    Layers with `keep_states` keep one state of the sequence in a block, that behind the block's last token; of a chunk
    that is the state in its last block. To the rest of the program they keep a window of one token.
    """

    group: int
    names: tuple[str, ...]
    positions: tuple[int, ...]
    caches: tuple[Any, ...]
    blocks_of_chunk: int
    parts: int
    window: int | None
    keep_states: bool

    @property
    def digested_blocks(self) -> int:
        """Of a chunk's blocks, how many at its end are digested."""
        return 1 if self.keep_states else self.blocks_of_chunk

    def of_chunk(self, blocks: list[int], chunk: int) -> list[int]:
        """Of a request's blocks, those that are digested of a chunk, as far as they are there."""
        end = (chunk + 1) * self.blocks_of_chunk
        return blocks[end - self.digested_blocks : end]


def keys(words: int, device: Any) -> Any:
    """Return the multipliers of `words` 32-bit words, (2, words) of int64: splitmix64 of the position, made odd."""
    import torch

    state = torch.arange(1, 2 * words + 1, dtype=torch.int64, device=device) * GOLDEN
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        state = (state ^ ((state >> shift) & ((1 << (64 - shift)) - 1))) * factor
    state = state ^ ((state >> 31) & ((1 << 33) - 1))
    return state.view(2, words) | 1


def digest_rows(rows: Any, multipliers: Any) -> Any:
    """Digest each row of int32 words (…, words): two int64 each, (…, 2).

    Multilinear hashing (Lemire and Kaser 2014): Σ multiplier[i]·word[i] modulo 2^64, twice. What differs in one word
    never agrees, since multipliers are odd; what differs in more agrees with a chance of 2^-32 at most in each half.
    """
    import torch

    wide = rows.to(torch.int64)
    sums = [(wide * multiplier).sum(dim=-1) for multiplier in multipliers]
    return torch.stack([half + empty for half, empty in zip(sums, EMPTY_DIGEST, strict=True)], dim=-1)


def digest_on_host(cache: Any, index: Any) -> Any:
    """Digest chunks of one layer in the host's memory, block by block where they lie: (chunks, 2) of int64.

    The first 128 bits of BLAKE3, which vLLM and LMCache bring: it takes a third of the time of SHA-256, and unlike
    torch's threads none from those of the engine that wait for each other.
    """
    import torch
    from blake3 import blake3

    rows = cache.numpy()
    digests = []
    for places in index.tolist():
        hashed = blake3()
        for place in places:
            row = rows[place]
            hashed.update(memoryview(row if row.flags.c_contiguous else row.copy()).cast("B"))
        digest = hashed.digest()
        if digest == _digest_of_zeros(len(places) * rows[0].nbytes):
            digests.append(list(EMPTY_DIGEST))
        else:
            halves = digest[: DIGEST_BYTES // 2], digest[DIGEST_BYTES // 2 : DIGEST_BYTES]
            digests.append([int.from_bytes(half, "little", signed=True) for half in halves])
    return torch.tensor(digests, dtype=torch.int64)


@functools.cache
def _digest_of_zeros(size: int) -> bytes:
    from blake3 import blake3

    return bytes(blake3(bytes(size)).digest())


def index_blocks(layers: Layers, chunks: list[list[int]]) -> Any:
    """Return the places on the axis of blocks that these chunks take, (chunks, places), where the caches lie."""
    import numpy
    import torch

    places = numpy.array(chunks, dtype=numpy.int64)[:, :, None] * layers.parts + numpy.arange(layers.parts)
    index = torch.from_numpy(places.reshape(len(chunks), -1))
    cache = layers.caches[0]
    return index.pin_memory().to(cache.device, non_blocking=True) if cache.is_cuda else index


def gather(cache: Any, index: Any) -> Any:
    """Copy the chunks' blocks of one layer: (chunks, words) of int32."""
    import torch

    return cache.index_select(0, index.view(-1)).view(len(index), -1).view(torch.int32)


def in_memory_order(view: Any) -> Any:
    """Order all but the first axis as memory does, so that a block's bytes are digested where they lie, run by run."""
    return view.permute(0, *sorted(range(1, view.dim()), key=lambda axis: -view.stride(axis)))


def find_layers(model_runner: Any, chunk_tokens: int) -> tuple[list[str], list[Layers]]:
    """Name all layers of a model runner, group by group, and find where each one's KV lies.

    Raises CannotDigestError for a layer that is no attention over a cache of blocks, or whose blocks cannot be told.
    """
    import torch

    parallel = model_runner.vllm_config.parallel_config
    if getattr(parallel, "decode_context_parallel_size", 1) > 1:
        raise CannotDigestError("context parallelism lays a chunk's tokens into blocks of several ranks")
    config = model_runner.kv_cache_config
    modules = model_runner.vllm_config.compilation_config.static_forward_context
    names: list[str] = []
    buckets: dict[tuple[Any, ...], list[tuple[str, int, Any]]] = {}
    for number, group in enumerate(config.kv_cache_groups):
        for name in group.layer_names:
            spec = getattr(group.kv_cache_spec, "kv_cache_specs", {}).get(name, group.kv_cache_spec)
            kind = type(spec).__name__
            keeps_states = getattr(spec, "mamba_cache_mode", None) == "align"
            no_tokens = not hasattr(spec, "head_size") and not keeps_states
            if no_tokens or kind in ("EncoderOnlyAttentionSpec", "CrossAttentionSpec"):
                raise CannotDigestError(f"{name} keeps its state as {kind}, which is not KV of single tokens")
            if chunk_tokens % spec.block_size:
                raise CannotDigestError(
                    f"chunks of {chunk_tokens} tokens are not whole blocks of {spec.block_size} in {name}"
                )
            cache = modules[name].kv_cache
            if keeps_states and isinstance(cache, list | tuple) and len(cache) > 1:
                raise CannotDigestError(f"{name} keeps a state of {len(cache)} parts")
            cache = cache[0] if isinstance(cache, list | tuple) else cache
            axis = next((axis for axis in (0, 1) if axis < cache.dim() and _holds(cache.shape[axis], config)), None)
            if axis is None:
                shape = tuple(cache.shape)
                raise CannotDigestError(f"no axis of {name}'s cache {shape} counts {config.num_blocks} blocks")
            parts = cache.shape[axis] // config.num_blocks
            integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[cache.element_size()]
            view = in_memory_order(cache.view(integers).movedim(axis, 0))
            window = getattr(spec, "sliding_window", None) or getattr(spec, "attention_chunk_size", None)
            # Without the hybrid KV cache manager such a layer keeps every token.
            window = None if kind == "FullAttentionSpec" else 1 if keeps_states else window
            blocks = chunk_tokens // spec.block_size
            key = (number, view.shape, view.stride(), integers, blocks, parts, window, keeps_states)
            buckets.setdefault(key, []).append((name, len(names), view))
            names.append(name)
    return names, [
        Layers(
            group=key[0],
            names=tuple(name for name, _, _ in layers),
            positions=tuple(position for _, position, _ in layers),
            caches=tuple(view for _, _, view in layers),
            blocks_of_chunk=key[4],
            parts=key[5],
            window=key[6],
            keep_states=key[7],
        )
        for key, layers in buckets.items()
    ]


def _holds(size: int, config: Any) -> bool:
    blocks = int(config.num_blocks)
    return size >= blocks > 1 and size % blocks == 0
