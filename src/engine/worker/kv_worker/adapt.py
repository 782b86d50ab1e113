"""The few places where the worker reaches into vLLM, each small, each checked by what comes back.

Imported in every process of the engine (as its worker extension), so that what the sampler reports is the same
whatever the parallelism.
"""

from __future__ import annotations

import builtins
import multiprocessing
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from kv_worker.dumps import Dumper, Wanted
    from kv_worker.faults import Cell, RankFaults
    from kv_worker.misread import Misreader
    from kv_worker.recorder import Recorder

LETTERS_VARIABLE = "KV_WORKER_LETTERS"


class WorkerExtension:
    """Mixed into vLLM's worker; naming it also makes every rank's process import this module."""

    model_runner: Any
    rank: int
    kv_recorder: Recorder
    kv_faults: RankFaults
    kv_misreader: Misreader | None = None
    kv_dumper: Dumper

    def attention_backend(self) -> str:
        """Name the attention backend of the first layers; `unknown` where the model runner keeps it elsewhere."""
        try:
            return str(self.model_runner.attn_groups[0][0].backend.get_name())
        except (AttributeError, IndexError, TypeError):
            return "unknown"

    def start_digests(
        self, chunk_tokens: int, stored_as: str | None, answers: bool
    ) -> list[tuple[str, int | None]] | str:
        """Observe the KV of chunks of so many tokens from now on; names the layers, or says why it cannot be done.

        Each layer comes with the number of tokens that it keeps, None where it keeps all.

        `stored_as`, and `answers` for `digest_answers`: see `Start`.
        """
        from kv_worker.digests import CannotDigestError
        from kv_worker.dumps import Dumper
        from kv_worker.recorder import Recorder

        try:
            self.kv_recorder = Recorder(self.model_runner, chunk_tokens, stored_as, answers=answers)
        except (CannotDigestError, AttributeError, KeyError) as error:
            return f"{error}" if isinstance(error, CannotDigestError) else f"this vLLM lacks a hook ({error!r})"
        self.kv_dumper = Dumper(self.model_runner, self.kv_recorder, self.rank)
        return list(zip(self.kv_recorder.layers(), self.kv_recorder.windows(), strict=True))

    def keep_whole_hits(self, chunk_tokens: int) -> str | None:
        """Keep cached blocks as they are although whole prompts are served from them; else say why not."""
        from kv_worker.digests import CannotDigestError
        from kv_worker.whole_hits import WholeHits

        try:
            WholeHits(self.model_runner, chunk_tokens)
        except CannotDigestError as error:
            return f"{error}"
        return None

    def misread(self, how: str | None, chunk_tokens: int) -> None:
        """Have prompts that are served whole misread from now on, or read as they are."""
        from kv_worker.misread import Misreader

        if self.kv_misreader is None:
            self.kv_misreader = Misreader(self.model_runner, chunk_tokens)
        self.kv_misreader.how = how

    def spoil_chunk(self, chunk: int) -> None:
        """Set this chunk of every request to zero from now on where it is served and about to be read."""
        self.kv_recorder.spoil(chunk)

    def end_spoiling(self) -> int:
        """Spoil no more; return in how many layers a chunk was."""
        return self.kv_recorder.end_spoiling()

    def dump_chunks(self, folder: str, wanted: dict[int, list[Wanted]]) -> list[dict[str, Any]]:
        """Write chunks that were digested last to files: those that are wanted of this rank."""
        return self.kv_dumper.dump(folder, wanted.get(self.rank, []))

    def collect_digests(self) -> tuple[str | None, list[tuple[str, int, bool, bytes, bytes, bytes]]]:
        """Return this rank's digests since the last time, as `Recorder.collect` does."""
        return self.kv_recorder.collect()

    def install_faults(self) -> str | None:
        """Make ready for faults of timing; says why that cannot be done, if so."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        from kv_worker.faults import RankFaults

        try:
            self.kv_faults = RankFaults(self.model_runner, self.kv_recorder, get_kv_transfer_group())
        except AttributeError as error:
            return f"this vLLM lacks a hook ({error!r})"
        return None

    def delay_load(self, request: str, chunks: list[int], layers: list[int], blocks: list[list[int]]) -> None:
        """As `RankFaults.delay_load`."""
        self.kv_faults.delay_load(request, chunks, layers, blocks)

    def hold_stores(self) -> None:
        """As `RankFaults.hold_stores`."""
        self.kv_faults.hold_stores()

    def end_fault(self, given_away: list[str]) -> list[Cell]:
        """As `RankFaults.end_fault`."""
        return self.kv_faults.end_fault(given_away)


class Preemptions:
    """Counts, request by request, how often the scheduler took blocks away, and what a connector served afterwards.

    A request that is taken up again is looked up again; vLLM's own count of cached tokens is of the first time alone.
    """

    def __init__(self, llm_engine: Any) -> None:
        """Hook into the scheduler, which lives in this process; where it cannot be found, `remarks` says so."""
        self.remarks: list[str] = []
        self._times: dict[str, int] = {}
        self._served_again: dict[str, list[int]] = {}
        try:
            scheduler = llm_engine.engine_core.engine_core.scheduler
            self._hook(scheduler, scheduler.connector)
        except AttributeError as error:
            self.remarks = [f"Preempted requests cannot be counted: this vLLM lacks a hook ({error!r})."]

    def of(self, request_id: str) -> tuple[int, list[int]]:
        """Return how often this request lost its blocks, and the tokens it was served each time it came back."""
        return self._times.get(request_id, 0), self._served_again.get(request_id, [])

    def clear(self) -> None:
        """Forget all requests."""
        self._times.clear()
        self._served_again.clear()

    def _hook(self, scheduler: Any, connector: Any) -> None:
        schedule = scheduler.schedule

        def schedule_and_count(*arguments: Any, **named: Any) -> Any:
            output = schedule(*arguments, **named)
            for request_id in output.preempted_req_ids or ():
                name = given_id(request_id)
                self._times[name] = self._times.get(name, 0) + 1
            return output

        scheduler.schedule = schedule_and_count
        if connector is None:
            return
        update = connector.update_state_after_alloc

        def update_and_count(request: Any, blocks: Any, num_external_tokens: int, *arguments: Any, **named: Any) -> Any:
            if num_external_tokens > 0 and request.num_preemptions > 0:
                self._served_again.setdefault(given_id(request.request_id), []).append(num_external_tokens)
            return update(request, blocks, num_external_tokens, *arguments, **named)

        connector.update_state_after_alloc = update_and_count


def given_id(request_id: str) -> str:
    """Return the id that a request was given; vLLM adds something random to it."""
    return request_id.split("-")[0]


def report_letters(letters: tuple[int, ...]) -> None:
    """Make the sampler report the log-probabilities of `letters` besides the most likely tokens.

    vLLM offers the most likely tokens or a list of ids, not both in one request. A request that asks for k + n
    log-probabilities gets the k most likely ones and those of the n letters.
    """
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.sample.sampler import Sampler

    letter_ids = torch.tensor(letters, dtype=torch.int64)

    def append(gathered: Any, columns: Any, logprobs: Any) -> Any:
        ids = columns.to(gathered.logprob_token_ids.dtype)
        return gathered._replace(
            logprob_token_ids=torch.cat((gathered.logprob_token_ids, ids), dim=1),
            logprobs=torch.cat((gathered.logprobs, logprobs), dim=1),
        )

    _count_ranks_as_they_are()
    gather = Sampler.gather_logprobs

    def gather_with_letters(logprobs: Any, num_logprobs: int, token_ids: Any) -> Any:
        columns = letter_ids.to(logprobs.device).expand(logprobs.shape[0], -1)
        gathered = gather(logprobs, num_logprobs - len(letters), token_ids)
        return append(gathered, columns, logprobs.gather(-1, columns))

    Sampler.gather_logprobs = staticmethod(gather_with_letters)
    if not current_platform.is_cuda():
        return

    # vLLM's second model runner, for GPUs alone, has a sampler of its own.
    from vllm.v1.worker.gpu.sample import sampler
    from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

    # Its name changed between vLLM 0.24 and 0.26.
    names = ("compute_topk_logprobs", "compute_topk_scores")
    name = next((name for name in names if hasattr(sampler, name)), None)
    if name is None:
        raise RuntimeError(f"this vLLM's GPU sampler has none of {', '.join(names)}: the letters cannot be reported")
    compute = getattr(sampler, name)

    def compute_with_letters(logits: Any, num_logprobs: int, *arguments: Any, **named: Any) -> Any:
        columns = letter_ids.to(logits.device).expand(logits.shape[0], -1).contiguous()
        computed = compute(logits, num_logprobs - len(letters), *arguments, **named)
        return append(computed, columns, compute_token_logprobs(logits, columns))

    setattr(sampler, name, compute_with_letters)


def _count_ranks_as_they_are() -> None:
    """Let the sampler count how many tokens are more likely without compiling that: a count has no other bits.

    Compiling takes an engine's first answer 3 s, and 17 s where nothing is kept from an earlier one. What is there to
    save is memory with many answers at a time from a large vocabulary.
    """
    from vllm.v1.sample import sampler

    name = "batched_count_greater_than"
    count = getattr(getattr(sampler, name, None), "_torchdynamo_orig_callable", None)
    if count is not None:
        setattr(sampler, name, count)


def inspect_models_in_a_fork() -> None:
    """Let vLLM look at a model's class in a fork of this process instead of a Python that imports all of vLLM again.

    It does so in a process apart to keep CUDA from being initialised in this one; where it is, a fork could not help.
    """
    import torch
    from vllm.model_executor.models import registry

    name = "_run_in_subprocess"
    in_python = getattr(registry, name, None)
    if in_python is None:
        return

    def in_fork(look: Callable[[], Any]) -> Any:
        if torch.cuda.is_initialized():
            return in_python(look)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_result, args=(look, receiver, sender))
        process.start()
        sender.close()
        try:
            return receiver.recv()
        except EOFError:
            return in_python(look)  # which tells what is wrong
        finally:
            receiver.close()
            process.join()

    setattr(registry, name, in_fork)


def _send_result(look: Callable[[], Any], receiver: Any, sender: Any) -> None:
    receiver.close()
    sender.send(look())


def round_prefix_hits(multiple: int, *, whole: bool) -> None:
    """Let vLLM's own prefix cache serve whole chunks of `multiple` tokens as LMCache does, whatever the block size.

    With `whole`, a prompt of whole chunks is served all but its last token, which is computed again to have an answer;
    without, all but its last chunk. A hit then leaves exactly the suffix to compute that a connector's hit leaves.
    Seen as `cached_tokens`.
    """
    from vllm.v1.core import kv_cache_coordinator as coordinator
    from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator

    name = "find_longest_cache_hit"

    def rounding(find: Any) -> Any:
        def find_rounded(self: Any, block_hashes: Any, max_cache_hit_length: int) -> Any:
            tokens = max_cache_hit_length + 1
            if whole and tokens % multiple == 0:
                found = find(self, block_hashes, tokens)
                if found[1] == tokens:
                    return (found[0], max_cache_hit_length, *found[2:])
            return find(self, block_hashes, max_cache_hit_length // multiple * multiple)

        return find_rounded

    for kind in vars(coordinator).values():
        if isinstance(kind, type) and issubclass(kind, KVCacheCoordinator) and name in vars(kind):
            setattr(kind, name, rounding(getattr(kind, name)))


def tell_blocks_apart_by_chunk(chunk_tokens: int) -> None:
    """Let vLLM's own prefix caching hit a block only as a part of the whole chunk that it lies in, as LMCache does.

    Where blocks are smaller than chunks, the first blocks of a chunk would else be those of an earlier prompt that
    shares no more than them. LMCache keeps such a chunk as its own prompt computed it, and the length of a prompt can
    move the bits of all its KV.
    """
    from vllm.v1.core import kv_cache_utils

    generate = kv_cache_utils.generate_block_hash_extra_keys

    def generate_with_chunk(request: Any, start: int, end: int, first_input: int) -> Any:
        keys, next_input = generate(request, start, end, first_input)
        # The hashes of a chunk's other blocks hold that of its first one.
        if start % chunk_tokens == 0:
            keys = (*(keys or ()), hash(tuple(request.all_token_ids[start : start + chunk_tokens])))
        return keys, next_input

    kv_cache_utils.generate_block_hash_extra_keys = generate_with_chunk


def keep_ends_of_chunks(chunk_tokens: int) -> dict[str, Any]:
    """Return what makes vLLM's own prefix cache keep what a prefix that ends with any chunk goes on from.

    That is a sequence's state there, and what a window sees back from there. vLLM 0.32 keeps those at the prompt's last
    block alone unless it is told how often, of which a prefix, or a prompt whose last chunk ends before that block, is
    served nothing. It refuses to be told where layers keep neither.
    """
    import dataclasses

    from vllm.engine.arg_utils import EngineArgs

    name = "prefix_cache_retention_interval"
    known = {one.name for one in dataclasses.fields(EngineArgs)}
    return {name: chunk_tokens} if name in known else {}


def keep_prefix_caching() -> None:
    """Keep prefix caching on where the platform turns it off for MLA (CPUs without AMX).

    Its attention can continue a cached prefix, which is what an LMCache hit asks of it, too.
    """
    from vllm.platforms import current_platform

    platform = type(current_platform)
    update = platform.check_and_update_config

    def update_and_keep(config: Any) -> None:
        update(config)
        config.cache_config.enable_prefix_caching = True

    platform.check_and_update_config = staticmethod(update_and_keep)


def tolerate_objects_without_dict() -> None:
    """Let vLLM's search for Triton kernels pass over objects whose `vars()` is no dict.

    Without it a start in one process fails on a CPU with vLLM 0.32 (llvmlite's function wrappers).
    """
    try:
        from vllm.triton_utils import dispatcher
    except ImportError:
        return

    def vars_or_nothing(value: object) -> dict[str, Any]:
        try:
            found = builtins.vars(value)
        except TypeError:
            return {}
        return found if isinstance(found, dict) else {}

    dispatcher.vars = vars_or_nothing


if LETTERS_VARIABLE in os.environ:
    report_letters(tuple(int(letter) for letter in os.environ[LETTERS_VARIABLE].split(",")))
