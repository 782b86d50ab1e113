"""Faults of a connector's timing, planted around a real one: loads that come late, blocks given away too early.

The connector, its server and the engine are the real ones. `SchedulerFaults` sits beside the scheduler and `RankFaults`
in each rank; both do nothing until a fault begins, and nothing of them is installed before the first one does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kv_worker.digests import index_blocks
from kv_worker.protocol import Late, Reused
from kv_worker.recorder import Recorder

Cell = tuple[str, int, int, int]  # request, chunk, layer, bits that were others


class CannotPlantError(Exception):
    """A fault of timing cannot be planted in this engine, in words that say why."""


class SchedulerFaults:
    """Tells the ranks which loads are to be late, and gives blocks away too early."""

    def __init__(self, llm: Any) -> None:
        """Hook into the scheduler's connector; raises CannotPlantError where that is not possible."""
        try:
            connector = llm.llm_engine.engine_core.engine_core.scheduler.connector
            allocate = connector.update_state_after_alloc
            finished = connector.request_finished
            finished_all_groups = getattr(connector, "request_finished_all_groups", None)
        except AttributeError as error:
            raise CannotPlantError(f"this vLLM lacks a hook ({error!r})") from error
        self._llm = llm
        self._late: Late | None = None
        self._questions: dict[str, int] = {}
        self._gives_away = False
        self._given_away: list[str] = []

        def update_state_after_alloc(request: Any, blocks: Any, external_tokens: int) -> None:
            allocate(request, blocks, external_tokens)
            if self._late is not None and external_tokens > 0:
                self._delay(self._late, request.request_id, blocks.get_block_ids())

        def given_away(finish: Any) -> Any:
            def request_finished(request: Any, block_ids: Any) -> tuple[bool, Any]:
                keeps, parameters = finish(request, block_ids)
                if self._gives_away:
                    self._given_away.append(request.request_id)
                return keeps and not self._gives_away, parameters

            return request_finished

        connector.update_state_after_alloc = update_state_after_alloc
        connector.request_finished = given_away(finished)
        if finished_all_groups is not None:
            connector.request_finished_all_groups = given_away(finished_all_groups)
        problems = llm.collective_rpc("install_faults")
        problem = next((said for said in problems if said is not None), None)
        if problem is not None:
            raise CannotPlantError(problem)

    def begin(self, fault: Late | Reused, questions: dict[str, int]) -> None:
        """Plant a fault in the requests that are to come; `questions` will name them, and is kept."""
        self._late = fault if isinstance(fault, Late) else None
        self._questions = questions
        self._gives_away = isinstance(fault, Reused)
        if self._gives_away:
            self._llm.collective_rpc("hold_stores")

    def end(self) -> list[list[Cell]]:
        """Have everything stored that was held back; return what each rank's fault did to which cells."""
        self._late, self._gives_away = None, False
        given_away, self._given_away = self._given_away, []
        ended: list[list[Cell]] = self._llm.collective_rpc("end_fault", args=(given_away,))
        return ended

    def _delay(self, late: Late, request_id: str, blocks: Any) -> None:
        question = self._questions.get(request_id.split("-")[0])
        chunks = [chunk for asked, chunk in late.chunks if asked == question]
        if chunks:
            groups = [list(group) for group in blocks]
            self._llm.collective_rpc("delay_load", args=(request_id, chunks, late.layers, groups))


@dataclass(frozen=True)
class Piece:
    """One chunk of a request in one layer: where it lies, and what lay or will lie there."""

    request: str
    chunk: int
    layer: int
    cache: Any
    index: Any
    content: Any

    def now(self) -> Any:
        """Copy what lies there now."""
        return self.cache.index_select(0, self.index)

    def put(self, content: Any) -> None:
        """Write something else there, in order with what the device computes."""
        self.cache.index_copy_(0, self.index, content)

    def cell(self, other: Any) -> Cell | None:
        """Name the piece with the bits by which other content differs; None where none does."""
        import numpy
        import torch

        if torch.equal(self.content, other):
            return None
        differing = (self.content ^ other).cpu().view(torch.uint8)
        return self.request, self.chunk, self.layer, int(numpy.unpackbits(differing.numpy()).sum())


@dataclass
class Held:
    """A store that was not handed to the connector yet: what tells it, and what the blocks held when it was due."""

    metadata: Any
    pieces: list[Piece] = field(default_factory=list)


class RankFaults:
    """Puts loaded KV in place too late, and stores it too late, in the memory of one rank."""

    def __init__(self, model_runner: Any, recorder: Recorder, connector: Any) -> None:
        """Hook into model runner and connector; raises AttributeError where one lacks what is hooked."""
        self._recorder = recorder
        self._connector = connector
        self._delayed: dict[str, list[Piece]] = {}
        self._holds = False
        self._held: list[Held] = []
        self._given_away: set[str] = set()
        self._cells: list[Cell] = []
        execute = model_runner.execute_model
        self._save = connector.wait_for_save
        finished = connector.get_finished

        def execute_model(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
            late = self._take_away(scheduler_output) if self._delayed else []
            result = execute(scheduler_output, *arguments, **named)
            for piece, loaded in late:
                piece.put(loaded)
            return result

        def wait_for_save() -> None:
            if self._holds:
                self._hold()
            else:
                self._save()

        def get_finished(request_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
            if self._holds:
                self._given_away |= request_ids
            stored, loaded = finished(request_ids)
            # The scheduler has forgotten these.
            return (stored - self._given_away if stored and self._given_away else stored), loaded

        model_runner.execute_model = execute_model
        connector.wait_for_save = wait_for_save
        connector.get_finished = get_finished

    def delay_load(self, request: str, chunks: list[int], layers: list[int], blocks: list[list[int]]) -> None:
        """Have these chunks of a request come, in these layers, behind the first forward pass that reads them.

        Called before anything of them is loaded: what lies in their blocks now is what the pass will read.
        """
        self._delayed[request] = [
            self._piece(request, chunk, bucket, place, taken)
            for bucket, group in enumerate(self._recorder.buckets)
            for place, layer in enumerate(group.positions)
            if layer in layers
            for chunk in chunks
            if (taken := group.of_chunk(blocks[group.group], chunk))
        ]

    def hold_stores(self) -> None:
        """Hand the connector no store from now on, until another request has written into the blocks."""
        self._holds = True

    def end_fault(self, given_away: list[str]) -> list[Cell]:
        """Hand over what is still held; return the cells that were read or stored wrongly."""
        self._holds = False
        self._given_away |= set(given_away)
        self._release(all_held=True)
        self._delayed.clear()
        cells, self._cells = self._cells, []
        return cells

    def _piece(self, request: str, chunk: int, bucket: int, place: int, blocks: list[int]) -> Piece:
        group = self._recorder.buckets[bucket]
        index = index_blocks(group, [blocks]).view(-1)
        cache = group.caches[place]
        return Piece(request, chunk, group.positions[place], cache, index, cache.index_select(0, index))

    def _take_away(self, output: Any) -> list[tuple[Piece, Any]]:
        """Put back what lay there before the load, in requests whose first forward pass is about to begin."""
        late = []
        for new in output.scheduled_new_reqs:
            for piece in self._delayed.pop(new.req_id, ()):
                loaded = piece.now()
                cell = piece.cell(loaded)
                if cell is not None:
                    self._cells.append(cell)
                    piece.put(piece.content)
                    late.append((piece, loaded))
        return late

    def _hold(self) -> None:
        pieces = [
            self._piece(wanted.chunk.request, wanted.chunk.number, bucket, place, wanted.blocks)
            for bucket, wanted in self._recorder.completed
            for place in range(len(self._recorder.buckets[bucket].names))
        ]
        self._release(all_held=False)
        self._held.append(Held(self._connector._get_connector_metadata(), pieces))

    def _release(self, *, all_held: bool) -> None:
        """Have those stored whose blocks another request has written into, or all."""
        waiting = []
        current = self._connector._connector_metadata
        for held in self._held:
            cells = [cell for piece in held.pieces if (cell := piece.cell(piece.now())) is not None]
            if not cells and not all_held:
                waiting.append(held)
                continue
            self._cells.extend(cells)
            self._connector.bind_connector_metadata(held.metadata)
            self._save()
        self._connector._connector_metadata = current
        self._held = waiting
