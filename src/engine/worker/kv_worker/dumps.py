"""A second look: writes what chunks hold to files, element by element where the layout is understood.

Asked of chunks that were digested last and only between two batches of requests, so that a pass in which all is right
does none of this. Each chunk is digested again beside it, which shows whether its blocks still hold what was seen.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_worker.digests import in_memory_order
from kv_worker.layout import Layout, UnknownLayoutError, learn_layout

if TYPE_CHECKING:
    from kv_worker.recorder import Held, Recorder

# A request's number, a chunk's number, names of layers.
Wanted = tuple[str, int, list[str]]


class Dumper:
    """Writes chunks of one rank that its recorder still knows."""

    def __init__(self, model_runner: Any, recorder: Recorder, rank: int) -> None:
        """Nothing is looked at yet."""
        self._modules = model_runner.vllm_config.compilation_config.static_forward_context
        self._recorder = recorder
        self._rank = rank
        self._layouts: dict[str, Layout | str] = {}
        self._serial = 0

    def dump(self, folder: str, wanted: list[Wanted]) -> list[dict[str, Any]]:
        """Write the wanted chunks below `folder`, and say of each what `protocol.SeenCell` does."""
        of_chunk: dict[tuple[str, int], list[str]] = {}
        for request, number, layers in wanted:
            of_chunk.setdefault((request, number), []).extend(layers)
        seen = []
        for held in self._recorder.held():
            for layer in of_chunk.get((held.request.split("-")[0], held.number), ()):
                found = self._find(layer)
                if found is not None and found[0] in held.blocks:
                    seen.append(self._dump(folder, held, layer, *found))
        return seen

    def _find(self, layer: str) -> tuple[int, int] | None:
        for bucket, layers in enumerate(self._recorder.buckets):
            if layer in layers.names:
                return bucket, layers.names.index(layer)
        return None

    def _dump(self, folder: str, held: Held, layer: str, bucket: int, place: int) -> dict[str, Any]:
        layers = self._recorder.buckets[bucket]
        blocks = held.blocks[bucket]
        places = [block * layers.parts + part for block in blocks for part in range(layers.parts)]
        # Of what was computed, what must have been served: what a lossy form of storage makes of it.
        as_stored = not held.served and self._recorder.stored_as is not None
        digest = self._recorder.digest_again(bucket, place, blocks, as_stored=as_stored)
        rows = layers.caches[place][places].reshape(len(places), -1)
        if as_stored:
            rows = self._recorder.through_storage(layer, rows)
        layout = self._layout(layer, bucket, place)
        if isinstance(layout, Layout):
            parts = [{"name": one.name, "heads": one.heads, "elements": one.elements} for one in layout.parts]
            pieces = [rows[:, order.reshape(-1)].reshape(-1) for order in layout.orders]
        else:
            parts, pieces = [], [rows.reshape(-1)]
        self._serial += 1
        file = f"rank{self._rank}-{self._serial}.kv"
        with (Path(folder) / file).open("wb") as written:
            for piece in pieces:
                written.write(piece.cpu().numpy().tobytes())
        return {
            "request": held.request.split("-")[0],
            "chunk": held.number,
            "layer": layer,
            "rank": self._rank,
            "served": held.served,
            "digest": digest.hex(),
            "file": file,
            "blocks": len(places),
            "dtype": str(self._cache(layer).dtype).removeprefix("torch."),
            "parts": parts,
            "problem": None if isinstance(layout, Layout) else layout,
        }

    def _cache(self, layer: str) -> Any:
        cache = self._modules[layer].kv_cache
        return cache[0] if isinstance(cache, list | tuple) else cache

    def _layout(self, layer: str, bucket: int, place: int) -> Layout | str:
        """Return the layout of a layer, or why it is not understood."""
        if layer not in self._layouts:
            try:
                self._layouts[layer] = self._learn(layer, bucket, place)
            except UnknownLayoutError as error:
                self._layouts[layer] = str(error)
            except Exception as error:  # whatever a backend raises that is asked to write elsewhere
                self._layouts[layer] = f"the attention backend did not write elsewhere ({error!r})"
        return self._layouts[layer]

    def _learn(self, layer: str, bucket: int, place: int) -> Layout:
        layers, cache = self._recorder.buckets[bucket], self._cache(layer)
        if layers.keep_states:
            raise UnknownLayoutError("it keeps a state, and no tokens")
        view = layers.caches[place]
        moved = ((axis, in_memory_order(cache.movedim(axis, 0))) for axis in (0, 1))
        axis = next(axis for axis, one in moved if (one.shape, one.stride()) == (view.shape, view.stride()))
        tokens = self._recorder.chunk_tokens // (layers.blocks_of_chunk * layers.parts)
        return learn_layout(self._modules[layer], cache, axis, tokens)
