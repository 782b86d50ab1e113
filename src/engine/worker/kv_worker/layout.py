"""Where each element of a chunk's KV lies: learned from the attention backend's own writing, not guessed from its name.

Backends lay out a block in their own ways (heads before tokens, K and V packed together, K transposed or in tiles for
a processor's instructions). So each is asked to write keys and values that are numbers of their own places into a
scratch cache of the same shape; where they turn up is the layout. Nothing else is taken for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kv_worker.digests import in_memory_order

BASE = 128  # of the digits that places are written in: bfloat16 holds whole numbers up to 256 exactly


class UnknownLayoutError(Exception):
    """Where elements lie cannot be told, in words that say why."""


@dataclass(frozen=True)
class Part:
    """Keys, values, or a piece of a latent vector: (tokens, heads, elements)."""

    name: str
    heads: int
    elements: int


@dataclass(frozen=True)
class Layout:
    """How one place on the axis of blocks holds its tokens.

    `orders` has for each part where its elements are, (tokens, heads, elements), in the place in memory order.
    """

    parts: tuple[Part, ...]
    orders: tuple[Any, ...]


def learn_layout(module: Any, cache: Any, axis: int, tokens: int) -> Layout:
    """Find where an attention layer writes; `cache` has places of so many tokens on `axis`.

    Raises UnknownLayoutError where the backend cannot be asked or what it writes is not each element once.
    """
    import torch

    if cache.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise UnknownLayoutError(f"its elements are {cache.dtype}, which do not hold what is written")
    if not hasattr(getattr(module, "impl", None), "do_kv_cache_update"):
        raise UnknownLayoutError("the attention backend writes its cache within its forward pass")
    parts = _parts(module)
    sizes = [tokens * part.heads * part.elements for part in parts]
    total = sum(sizes)
    scratch = _scratch(cache, axis)
    flat = in_memory_order(scratch)
    slots = torch.arange(tokens, 2 * tokens, dtype=torch.int64, device=cache.device)
    numbers = torch.arange(total, device=cache.device)
    places = torch.zeros(scratch[0].numel(), dtype=torch.int64, device=cache.device)
    written = torch.ones_like(places, dtype=torch.bool)
    factor = 1
    with torch.inference_mode():
        while factor < total:
            scratch.zero_()
            digits = (numbers // factor % BASE + 1).to(cache.dtype).split(sizes)
            shaped = [one.view(tokens, part.heads, part.elements) for one, part in zip(digits, parts, strict=True)]
            _write(module, shaped, scratch.movedim(0, axis), slots)
            if bool(flat[0].any()):
                raise UnknownLayoutError("a block's tokens are written to other places, too")
            seen = flat[1].reshape(-1).to(torch.int64) - 1
            written &= seen >= 0
            places += seen.clamp(min=0) * factor
            factor *= BASE
    taken = written.nonzero().view(-1)
    order = torch.full((total,), -1, dtype=torch.int64, device=cache.device)
    if len(taken) != total or int(places[taken].max()) >= total:
        raise UnknownLayoutError(f"{len(taken)} elements are written where {total} were expected")
    order[places[taken]] = taken
    if bool((order < 0).any()):
        raise UnknownLayoutError("some elements are written twice")
    orders = [one.view(tokens, part.heads, part.elements) for one, part in zip(order.split(sizes), parts, strict=True)]
    return Layout(tuple(parts), tuple(orders))


def _parts(module: Any) -> list[Part]:
    if hasattr(module, "kv_lora_rank"):
        return [Part("latent", 1, int(module.kv_lora_rank)), Part("rope", 1, int(module.qk_rope_head_dim))]
    heads, elements = int(module.num_kv_heads), int(module.head_size)
    return [Part("key", heads, elements), Part("value", heads, int(getattr(module, "head_size_v", elements)))]


def _scratch(cache: Any, axis: int) -> Any:
    """Return two places of zeros, first axis, laid out in memory as the cache's own places are."""
    import torch

    shape = [2 if number == axis else size for number, size in enumerate(cache.shape)]
    by_stride = sorted(range(cache.dim()), key=lambda number: -cache.stride(number))
    dense = torch.zeros([shape[number] for number in by_stride], dtype=cache.dtype, device=cache.device)
    back = [by_stride.index(number) for number in range(cache.dim())]
    return dense.permute(back).movedim(axis, 0)


def _write(module: Any, parts: list[Any], cache: Any, slots: Any) -> None:
    if hasattr(module, "kv_lora_rank"):
        latent, rope = parts[0].squeeze(1), parts[1]
        module.impl.do_kv_cache_update(latent, rope, cache, slots, "auto", module._k_scale)
    else:
        module.impl.do_kv_cache_update(module, *parts, cache, slots)
