"""Digests on a GPU, those of `digest_rows`: one launch over all chunks and layers, where their blocks lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from kv_worker.digests import EMPTY_DIGEST, CannotDigestError, Layers, digest_rows, keys

WORDS_AT_ONCE = 1024


@dataclass(frozen=True)
class Pieces:
    """How blocks lie, in 32-bit words: each as runs of `words` at `starts`, the next block `block_stride` on."""

    block_stride: int
    starts: Any
    words: int


def find_pieces(caches: tuple[Any, ...]) -> Pieces | None:
    """Tell how the blocks of caches of one shape, (blocks, …), lie; None where they are no even runs of whole words."""
    cache, length = caches[0], 1
    dimensions = [(size, stride) for size, stride in zip(cache.shape[1:], cache.stride()[1:], strict=True) if size > 1]
    while dimensions and dimensions[-1][1] == length:
        length *= dimensions.pop()[0]
    if len(dimensions) > 1:
        return None
    count, stride = dimensions[0] if dimensions else (1, 0)
    words = [number * cache.element_size() / 4 for number in (cache.stride(0), stride, length)]
    if any(one.data_ptr() % 4 for one in caches) or not all(number.is_integer() for number in words):
        return None
    block_stride, stride, length = map(int, words)
    return Pieces(block_stride, torch.arange(count, device=cache.device) * stride, length)


def find_offsets(caches: tuple[Any, ...]) -> Any:
    """Return how many words lie between the first cache and each of them: (caches,) of int64, where they lie."""
    first = caches[0].data_ptr()
    words = [(cache.data_ptr() - first) // 4 for cache in caches]
    return torch.tensor(words, dtype=torch.int64, device=caches[0].device)


class DeviceDigests:
    """What the digests of one bucket's layers need on their GPU."""

    def __init__(self, layers: Layers) -> None:
        cache = layers.caches[0]
        words = cache[0].numel() * layers.digested_blocks * layers.parts * cache.element_size() // 4
        self._multipliers = keys(words, cache.device)
        self._base, self._offsets, self._pieces = cache, find_offsets(layers.caches), find_pieces(layers.caches)
        self._zero = torch.zeros(1, dtype=torch.int64, device=cache.device)

    def digest_in_place(self, index: Any) -> Any | None:
        """Digest chunks, (chunks, places) on the axis of blocks, where they lie: (layers, chunks, 2).

        None where blocks are no even runs: then gather them first.
        """
        if self._pieces is None:
            return None
        return digest_places(self._base, self._offsets, self._pieces, index, self._multipliers)

    def digest_gathered(self, gathered: Any) -> Any:
        """Digest copies of chunks, (layers, chunks, words): (layers, chunks, 2)."""
        layers, chunks, words = gathered.shape
        index = torch.arange(layers * chunks, device=gathered.device).view(-1, 1)
        pieces = Pieces(block_stride=words, starts=self._zero, words=words)
        return digest_places(gathered, self._zero, pieces, index, self._multipliers).view(layers, chunks, 2)


def digest_places(base: Any, offsets: Any, pieces: Pieces, index: Any, multipliers: Any) -> Any:
    """Digest each chunk's blocks in each layer: (layers, chunks, 2) of int64.

    `base` is the first layer's cache, `offsets` are those of `find_offsets`, `index` is (chunks, places) on the axis of
    blocks, `multipliers` are (2, words of a chunk).
    """
    digests = torch.empty((len(offsets), len(index), 2), dtype=torch.int64, device=index.device)
    _sum_places[(len(index), len(offsets))](
        digests,
        base,
        offsets,
        index,
        multipliers,
        pieces.starts,
        index.shape[1] * len(pieces.starts),
        len(pieces.starts),
        pieces.block_stride,
        pieces.words,
        *EMPTY_DIGEST,
        WORDS_AT_ONCE,
    )
    return digests


def check_sums(device: Any) -> None:
    """Hold the kernel's digests against those of torch, once an engine; raises CannotDigestError where they differ.

    Two layers of 5 blocks in two pieces of 1500 words each, K and V apart as attention backends lay them.
    """
    words = torch.arange(2 * 2 * 5 * 1500, dtype=torch.int64, device=device) * 2654435761
    layers = words.to(torch.int32).view(2, 2, 5, 1500)
    caches = tuple(layer.movedim(1, 0) for layer in layers)
    index = torch.tensor([[3, 1], [0, 4], [2, 2]], device=device)
    multipliers = keys(2 * 2 * 1500, device)
    pieces = find_pieces(caches)
    expected = [digest_rows(cache[index].reshape(len(index), -1), multipliers) for cache in caches]
    if pieces is None or not torch.equal(
        digest_places(caches[0], find_offsets(caches), pieces, index, multipliers), torch.stack(expected)
    ):
        raise CannotDigestError(f"Triton's sums differ from torch's on {device}")


@triton.jit(do_not_specialize=("runs", "count", "block_stride", "words"))  # type: ignore[misc]
def _sum_places(  # type: ignore[no-untyped-def]
    digests,
    base,
    offsets,
    index,
    multipliers,
    starts,
    runs,
    count,
    block_stride,
    words,
    empty_low,
    empty_high,
    at_once: tl.constexpr,
):
    chunk, layer = tl.program_id(0), tl.program_id(1)
    cache = base.to(tl.pointer_type(tl.int32)) + tl.load(offsets + layer)
    index += chunk * (runs // count)
    lanes = tl.arange(0, at_once)
    low, high = tl.zeros((at_once,), dtype=tl.int64), tl.zeros((at_once,), dtype=tl.int64)
    for run in range(runs):
        start = tl.load(index + run // count) * block_stride + tl.load(starts + run % count)
        for begin in range(0, words, at_once):
            inside = begin + lanes < words
            word = tl.load(cache + start + begin + lanes, mask=inside, other=0).to(tl.int64)
            multiplier = multipliers + run * words + begin + lanes
            low += word * tl.load(multiplier, mask=inside, other=0)
            high += word * tl.load(multiplier + runs * words, mask=inside, other=0)
    out = digests + (layer * tl.num_programs(0) + chunk) * 2
    tl.store(out, tl.sum(low) + empty_low)
    tl.store(out + 1, tl.sum(high) + empty_high)
