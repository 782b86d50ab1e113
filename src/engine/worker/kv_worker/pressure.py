"""Asks requests by a schedule that leaves neither engine nor connector in peace, and notes what happened to each.

Requests arrive while others finish, lose their blocks, come back, and are broken off while their KV is stored or
loaded. `Pressure` adds and breaks off requests; `Observer` sits beside the scheduler, in this process, and counts. Both
tell time in steps: calls of `Scheduler.schedule` since the engine's start. What a step computes is complete behind it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kv_worker.adapt import given_id
from kv_worker.protocol import Admission, Events, Pressed, PressedPrompt

LOADING = "WAITING_FOR_REMOTE_KVS"
# How long stores and loads may go on behind the last answer, seconds, and between two looks at them.
_LONGEST_STORE = 30.0
_LOOK_AGAIN = 0.002
# How long whoever stores and loads has the processor behind a step that computed nothing, seconds: as vLLM's own loop.
_GIVE_WAY = 0.001


class CannotPressError(Exception):
    """This engine's scheduler cannot be observed, in words that say why."""


@dataclass
class Seen:
    """What happened to one request so far."""

    admissions: list[Admission] = field(default_factory=list)
    complete: list[tuple[int, int]] = field(default_factory=list)
    preemptions: int = 0
    # Of the lookup whose answer comes next to be used: when, what vLLM had itself, what of the rest a connector is to
    # load, and whether the request had lost its blocks.
    looked_up: int = 0
    own: int = 0
    external: int = 0
    is_back: bool = False
    # The last step that completed a unit of its prompt, which is stored from there on.
    stored: int = 0


class Observer:
    """Follows each request through the scheduler; `unit` is what the connector stores as a whole, in tokens."""

    def __init__(self, llm_engine: Any) -> None:
        """Hook into scheduler and connector; raises CannotPressError where one lacks what is hooked."""
        self.unit = 1
        self.step = 0
        # Whether the last step computed nothing, as all that there is waits for loads or stores.
        self.is_idle = False
        self.events = Events()
        self._seen: dict[str, Seen] = {}
        # Requests whose loads were under way behind the last step.
        self._loading: set[str] = set()
        try:
            self.scheduler = llm_engine.engine_core.engine_core.scheduler
            self._hook(self.scheduler, self.scheduler.connector)
        except AttributeError as error:
            raise CannotPressError(f"this vLLM lacks a hook ({error!r})") from error

    def begin(self, unit: int) -> None:
        """Forget all requests and events."""
        self.unit, self.events, self._seen = unit, Events(), {}

    def of(self, name: str) -> Seen:
        """Return what happened to the request that was given this id."""
        return self._seen.setdefault(name, Seen())

    def stores(self, name: str) -> bool:
        """Whether the last step completed a unit of the request's prompt."""
        return self.of(name).stored == self.step

    def _hook(self, scheduler: Any, connector: Any) -> None:
        schedule = scheduler.schedule
        look_up = connector.get_num_new_matched_tokens
        allocate = connector.update_state_after_alloc

        def schedule_and_note(*arguments: Any, **named: Any) -> Any:
            self.step += 1
            output = schedule(*arguments, **named)
            self.is_idle = output.total_num_scheduled_tokens == 0
            self._note(output)
            return output

        def look_up_and_note(request: Any, computed: int) -> Any:
            found, is_asynchronous = look_up(request, computed)
            if found is not None:
                seen = self.of(given_id(request.request_id))
                seen.looked_up, seen.own = self.step, computed
            return found, is_asynchronous

        def allocate_and_note(request: Any, blocks: Any, external: int, *arguments: Any, **named: Any) -> Any:
            if external > 0:
                seen = self.of(given_id(request.request_id))
                # One that was promised before, and was looked up again without having been read, had failed.
                self.events.failed_loads += seen.external > 0
                seen.external, seen.is_back = external, request.num_preemptions > 0
                self.events.loads += 1
            return allocate(request, blocks, external, *arguments, **named)

        scheduler.schedule = schedule_and_note
        connector.get_num_new_matched_tokens = look_up_and_note
        connector.update_state_after_alloc = allocate_and_note

    def _note(self, output: Any) -> None:
        self.events.steps += 1
        for request_id in output.preempted_req_ids or ():
            self.of(given_id(request_id)).preemptions += 1
            self.events.preemptions += 1
        loading = {given_id(name) for name, one in self.scheduler.requests.items() if one.status.name == LOADING}
        self.events.asynchronous_loads |= bool(loading)
        # Those that load within this step.
        within: set[str] = set()
        admitted = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        cached = output.scheduled_cached_reqs
        for request_id, computed in zip(cached.req_ids, cached.num_computed_tokens, strict=True):
            if request_id in cached.resumed_req_ids:
                admitted[request_id] = computed
        for request_id, computed in admitted.items():
            name, request = given_id(request_id), self.scheduler.requests[request_id]
            seen = self.of(name)
            if seen.external > 0 and name not in self._loading:
                within.add(name)
            loaded = max(min(seen.external, computed - seen.own), 0) if seen.external > 0 else 0
            seen.admissions.append(Admission(seen.looked_up, self.step, computed, loaded))
            # The last token is computed in any case.
            promised = min(seen.own + seen.external, request.num_tokens - 1)
            self.events.failed_loads += seen.external > 0 and computed < promised
            self.events.resumed_loads += loaded > 0 and seen.is_back
            seen.external = 0
            seen.complete.append((self.step, computed))
        storing = set()
        for request_id in output.num_scheduled_tokens:
            name, request = given_id(request_id), self.scheduler.requests[request_id]
            seen = self.of(name)
            before = seen.complete[-1][1] if seen.complete else 0
            seen.complete.append((self.step, request.num_computed_tokens))
            if min(request.num_computed_tokens, request.num_prompt_tokens) // self.unit > before // self.unit:
                storing.add(name)
                seen.stored = self.step
        self.events.overlaps += any(one != other for one in storing for other in loading | within)
        self._loading = loading


class Pressure:
    """Asks the requests of one schedule."""

    def __init__(self, llm_engine: Any, observer: Observer, names: dict[str, PressedPrompt], salt: str | None) -> None:
        """`names` are the ids that the prompts are given, in the order of the schedule; `salt` is the connector's."""
        self._engine = llm_engine
        self._observer = observer
        self._salt = salt
        self._waiting = dict(names)
        self._names = names
        self._active: dict[str, list[int]] = {}
        self._ended = 0

    def run(self, parameters: Any) -> Iterator[Pressed]:
        """Ask all of them, and yield what each showed once it has ended.

        `parameters` makes vLLM's sampling parameters for so many tokens.
        """
        while self._waiting or self._active:
            self._add(parameters)
            for output in self._engine.step():
                name = given_id(output.request_id)
                if name in self._active:
                    self._active[name] = list(output.outputs[0].token_ids)
                    if output.finished:
                        yield self._end(name, None)
            for name, why in self._abort():
                yield self._end(name, why)
            if self._observer.is_idle:
                time.sleep(_GIVE_WAY)
        self._finish_transfers()

    def _end(self, name: str, aborted: str | None) -> Pressed:
        seen, answer = self._observer.of(name), self._active.pop(name)
        self._ended += 1
        # vLLM ends requests whose load failed, unless it is told to compute them.
        self._observer.events.failed_loads += aborted is None and seen.external > 0
        return Pressed(
            question=self._names[name].question,
            admissions=seen.admissions,
            complete=_growth(seen.complete),
            preemptions=seen.preemptions,
            aborted=aborted,
            answer=answer,
        )

    def _add(self, parameters: Any) -> None:
        for name, prompt in list(self._waiting.items()):
            # Should fewer be left than the schedule waits for, the next one comes at once.
            if prompt.after > self._ended and self._active:
                continue
            del self._waiting[name]
            self._active[name] = []
            asked: dict[str, Any] = {"prompt_token_ids": prompt.token_ids}
            if self._salt is not None:
                asked["cache_salt"] = self._salt
            self._engine.add_request(name, asked, parameters(prompt.answer_tokens))

    def _abort(self) -> list[tuple[str, str]]:
        """Break off those whose time has come; their ids, and what they were at."""
        events, aborted = self._observer.events, []
        for request_id, request in list(self._observer.scheduler.requests.items()):
            name = given_id(request_id)
            wanted = self._names[name].abort if name in self._active else None
            if wanted == "loading" and request.status.name == LOADING:
                events.aborted_loading += 1
            elif wanted == "storing" and self._observer.stores(name):
                events.aborted_storing += 1
            else:
                continue
            self._engine.abort_request([name])
            aborted.append((name, str(wanted)))
        return aborted

    def _finish_transfers(self) -> None:
        """Step on until nothing holds blocks any more: connectors learn in steps that transfers are done."""
        deadline = time.monotonic() + _LONGEST_STORE
        scheduler = self._observer.scheduler
        while scheduler.requests or scheduler.has_requests():
            if time.monotonic() > deadline:
                held = ", ".join(given_id(name) for name in scheduler.requests)
                raise RuntimeError(f"requests {held} hold blocks {_LONGEST_STORE:.0f} s behind the last answer")
            self._engine.step()
            time.sleep(_LOOK_AGAIN)


def _growth(complete: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out steps that end where the one before did."""
    return [one for place, one in enumerate(complete) if place == 0 or one[1] != complete[place - 1][1]]
