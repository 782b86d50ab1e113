"""Requests and replies, one JSON object a line. The Rust counterpart is `src/engine/protocol.rs`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, TextIO

PROTOCOL = 5
# Stands for a log-probability that is no number: JSON has none, and every comparison sees it.
NO_NUMBER = -10_000.0


class ProtocolError(Exception):
    """A request that this worker does not understand."""


@dataclass(frozen=True)
class Connector:
    """A KV connector as vLLM's `KVTransferConfig` takes it.

    `settings` are further arguments of it. `python_path` are folders that Python looks into before all others.
    `cache_salt` sets requests apart in a cache that others use, too. With `model_by_name` vLLM is told the model by the
    name of its folder instead of by its path, since keys may hold it. `prefix_caching` is `off` or `unread`: whether
    vLLM's own prefix caching is on beside it, and then is emptied before each `Score` and serves nothing.
    """

    name: str
    module_path: str | None
    role: str
    extra: dict[str, Any]
    settings: dict[str, Any]
    python_path: list[str]
    cache_salt: str | None
    model_by_name: bool
    prefix_caching: str


@dataclass(frozen=True)
class Start:
    """Start the engine.

    `hit_multiple` is None where vLLM's own prefix caching serves nothing; otherwise it is on, and serves whole
    chunks of so many tokens; with `whole_hits` it serves a prompt of whole chunks all but its last token.
    `digest_chunk_tokens` is None where the KV itself is not observed; otherwise each whole chunk of so many tokens is
    digested, and with `digest_blocks` each whole block of vLLM's cache instead; with `digest_answers` those, too, that
    generated tokens complete. `stored_as` is torch's name of the data type that a lossy form of storage puts each
    element through, where there is one that is known; what that makes of computed chunks is then digested, too.
    `layers_keep` is `tokens` or `states`. Where some keep a state of each sequence, vLLM's own prefix caching is on in
    every engine, as with it alone states are kept at blocks' ends; it serves nothing where `hit_multiple` is None.
    """

    protocol: int
    model: str
    arguments: dict[str, Any]
    layers_keep: str
    connector: Connector | None
    hit_multiple: int | None
    whole_hits: bool
    digest_chunk_tokens: int | None
    digest_answers: bool
    digest_blocks: bool
    stored_as: str | None
    letters: tuple[int, int, int, int]
    top: int
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Prompt:
    """One prompt: the caller's number for it, its token ids, and where another engine has left its KV, if one has."""

    question: int
    token_ids: list[int]
    transfer: dict[str, Any] | None = None


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: its name for people, its number for vLLM (from 1), and its folder in PEFT's layout."""

    name: str
    number: int
    folder: str


@dataclass(frozen=True)
class Asker:
    """As whom prompts are asked: with a salt instead of the connector's, with a tag, with an adapter.

    A `tag` is what an LMCache in this process takes into its keys; its server does not.
    `embeddings` is the seed of random embeddings that take the place of the tokens, as many as these.
    """

    cache_salt: str | None
    tag: str | None
    adapter: Adapter | None
    embeddings: int | None


@dataclass(frozen=True)
class Score:
    """Answer these prompts in this order.

    `read_cache` False empties vLLM's own prefix cache and keeps it from being read while it is filled. With `hand_over`
    one token is generated, and the KV is left to another engine. `misreading` is a fault of the engine's side,
    `all_served` or `one_position_off`, and None for none. `asker` is None where they are asked as the connector says.
    """

    read_cache: bool
    hand_over: bool
    misreading: str | None
    prompts: list[Prompt]
    asker: Asker | None = None


@dataclass(frozen=True)
class Late:
    """Served chunks come late: in these layers behind the first forward pass that reads them.

    `chunks` are pairs of a question and the number of a chunk; layers are counted as in `Digests.layers`.
    """

    chunks: list[tuple[int, int]]
    layers: list[int]


@dataclass(frozen=True)
class Reused:
    """Blocks are given away at a request's end, and stored only once another request has written into them."""


@dataclass(frozen=True)
class Plant:
    """Plant a fault in the prompts of the `Score` that follows; None ends the one that is planted."""

    fault: Late | Reused | None


@dataclass(frozen=True)
class Spoil:
    """Answer a prompt, which the cache serves, three times by itself; the third time this chunk of it is at zero.

    `prompts` holds it three times: where another engine leaves its KV, it was left as often.
    """

    prompts: list[Prompt]
    chunk: int


@dataclass(frozen=True)
class CellsOfChunk:
    """One chunk of a prompt of the last `Score`, in some layers on one rank."""

    question: int
    chunk: int
    rank: int
    layers: list[str]


@dataclass(frozen=True)
class Look:
    """Write what these chunks hold into files in this folder."""

    folder: str
    chunks: list[CellsOfChunk]


@dataclass(frozen=True)
class PressedPrompt:
    """One prompt of a schedule: asked once so many others have ended, for so many tokens.

    `abort` is `storing`, `loading` or None: when it is broken off, if such a time comes.
    """

    question: int
    token_ids: list[int]
    after: int
    answer_tokens: int
    abort: str | None


@dataclass(frozen=True)
class Press:
    """Ask prompts by a schedule. `unit` is what the connector stores as a whole, in tokens.

    With `own_cache` vLLM's own prefix cache serves, too, in an engine that was started with one that is not read.
    """

    own_cache: bool
    unit: int
    prompts: list[PressedPrompt]


@dataclass(frozen=True)
class Finish:
    """Shut the engine down and leave."""


@dataclass(frozen=True)
class Digests:
    """What is digested: the names of each rank's layers, or why nothing is.

    `windows` has for each layer how many tokens it keeps, None where it keeps all, and nothing where all do.
    """

    layers: list[list[str]]
    problem: str | None
    windows: list[list[int | None]]


@dataclass(frozen=True)
class Ready:
    """The engine takes prompts.

    `digests` is None where none were asked for. `remarks` are whole sentences on what is not as it should be, though
    the engine runs.
    """

    protocol: int
    versions: dict[str, str]
    device: str
    attention_backend: str
    block_size: int
    kv_cache_tokens: int
    digests: Digests | None
    remarks: list[str]


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its natural-log probability."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Step:
    """One generated token and the most likely ones, most likely first."""

    chosen: TokenLogprob
    top: list[TokenLogprob]


@dataclass(frozen=True)
class Scored:
    """What one prompt showed; `transfer` says where its KV was left, if it was left to another engine.

    `preemptions` is how often it lost its blocks; `served_again` are the tokens that a connector served each time it
    was taken up again. `no_numbers` says that log-probabilities were none, for which `NO_NUMBER` stands.
    """

    question: int
    cached_tokens: int
    letters: list[float]
    steps: list[Step]
    transfer: dict[str, Any] | None
    preemptions: int = 0
    served_again: list[int] = field(default_factory=list)
    no_numbers: bool = False


@dataclass(frozen=True)
class ChunkDigests:
    """One whole chunk of a prompt on one rank: 16 bytes a layer in the order of `Digests.layers`, in hexadecimal.

    `first` was taken where a served chunk was about to be read, or a computed one was complete; `last` before the
    blocks could be given away, and is None where it is equal to `first`. `stored` is of what a lossy form of storage
    makes of a computed chunk, and None elsewhere. A digest that was not taken is all zeros. A served chunk whose last
    token is computed again has a first digest alone, of what was loaded.
    """

    rank: int
    chunk: int
    served: bool
    first: str
    last: str | None
    stored: str | None


@dataclass(frozen=True)
class Digested:
    """The KV of one prompt. Comes behind the `Scored` of all prompts, for those that have a whole chunk."""

    question: int
    chunks: list[ChunkDigests]


@dataclass(frozen=True)
class Counted:
    """All prompts of a `Score` are done; vLLM's counters, cumulative.

    That of tokens by the source that served them has the source's name behind its own, as in `name:disk`.

    `digest_problem` is what kept digests from being taken, if anything did.
    """

    counters: dict[str, float]
    digest_problem: str | None


@dataclass(frozen=True)
class Admission:
    """One time that a request was taken up, or taken up again.

    When its lookup was answered and when its first tokens were scheduled, in steps; tokens whose KV it was served, and
    those of them that its connector loaded.
    """

    looked_up: int
    step: int
    served: int
    external: int


@dataclass(frozen=True)
class Pressed:
    """What one request of a schedule showed; `complete` are steps with the tokens whose KV was there behind each.

    `aborted` is as in `PressedPrompt` where it was broken off. `answer` are the tokens that it got.
    """

    question: int
    admissions: list[Admission]
    complete: list[tuple[int, int]]
    preemptions: int
    aborted: str | None
    answer: list[int]


@dataclass
class Events:
    """What happened while a schedule was asked.

    `overlaps` are steps in which a unit of one request was completed, and so stored, while another one's KV was loaded.
    `asynchronous_loads` says whether loads go on between steps, so that a request can be broken off within one.
    """

    steps: int = 0
    preemptions: int = 0
    loads: int = 0
    resumed_loads: int = 0
    failed_loads: int = 0
    aborted_storing: int = 0
    aborted_loading: int = 0
    overlaps: int = 0
    asynchronous_loads: bool = False


@dataclass(frozen=True)
class Endured:
    """All prompts of a `Press` have ended; counters and problem as in `Counted`."""

    events: Events
    counters: dict[str, float]
    digest_problem: str | None


@dataclass(frozen=True)
class ChangedCell:
    """One chunk of a prompt in a layer on a rank that a fault had read or stored wrongly, by so many bits."""

    question: int
    chunk: int
    layer: int
    rank: int
    bits: int


@dataclass(frozen=True)
class Planted:
    """A fault begins, or has ended: what it did, and why it could not begin, if so.

    Of several `Score` since it began only the first one's questions are meant.
    """

    cells: list[ChangedCell]
    problem: str | None


@dataclass(frozen=True)
class Spoilt:
    """What a `Spoil` showed; `cells` counts how often the chunk was set to zero: once in each layer on each rank."""

    alone: Scored
    again: Scored
    spoilt: Scored
    cells: int
    counters: dict[str, float]


@dataclass(frozen=True)
class PartOfCell:
    """Keys, values, or a piece of a latent vector: in a file (tokens, heads, elements)."""

    name: str
    heads: int
    elements: int


@dataclass(frozen=True)
class SeenCell:
    """What one chunk holds in one layer on one rank now, and its digest, which shows whether it is still what was seen.

    `file` has the parts one behind the other. Without parts the layout is not understood, for the reason that `problem`
    gives, and it has `blocks` pieces of the same size, as they lie.
    """

    question: int
    chunk: int
    layer: str
    rank: int
    served: bool
    digest: str
    file: str
    blocks: int
    dtype: str
    parts: list[PartOfCell]
    problem: str | None


@dataclass(frozen=True)
class Looked:
    """What was wanted, as far as it is there, and what kept it from being looked at, if anything did."""

    cells: list[SeenCell]
    problem: str | None


@dataclass(frozen=True)
class Finished:
    """The engine is shut down."""


@dataclass(frozen=True)
class Failed:
    """No more replies follow. `kind` is one of `request`, `start`, `engine` and `observation`."""

    kind: str
    message: str
    question: int | None = None


Request = Start | Score | Plant | Look | Spoil | Press | Finish
Reply = Ready | Scored | Digested | Counted | Planted | Looked | Spoilt | Pressed | Endured | Finished | Failed


def parse_request(line: str) -> Request:
    """Read one request; raises ProtocolError that names what is wrong."""
    try:
        fields = json.loads(line)
        kind = fields.pop("type")
        if kind == "start":
            if fields.get("protocol") != PROTOCOL:
                raise ProtocolError(f"protocol {fields.get('protocol')} is asked for, {PROTOCOL} is spoken here")
            connector = fields.pop("connector")
            letters = tuple(fields.pop("letters"))
            return Start(connector=Connector(**connector) if connector else None, letters=letters, **fields)
        if kind in ("score", "spoil"):
            return _parse_asking(kind, fields)
        if kind == "plant":
            return Plant(fault=_parse_fault(**(fields.pop("fault") or {"kind": None})), **fields)
        if kind == "look":
            chunks = [CellsOfChunk(**chunk) for chunk in fields.pop("chunks")]
            return Look(chunks=chunks, **fields)
        if kind == "press":
            return Press(prompts=[PressedPrompt(**prompt) for prompt in fields.pop("prompts")], **fields)
        if kind == "finish":
            return Finish(**fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"ill-formed request: {error!r}") from error
    raise ProtocolError(f"unknown request {kind!r}")


def _parse_asking(kind: str, fields: dict[str, Any]) -> Score | Spoil:
    prompts = [Prompt(**prompt) for prompt in fields.pop("prompts")]
    if kind == "spoil":
        return Spoil(prompts=prompts, **fields)
    asker = _parse_asker(**fields.pop("asker")) if "asker" in fields else None
    return Score(prompts=prompts, asker=asker, **fields)


def _parse_asker(adapter: dict[str, Any] | None, **fields: Any) -> Asker:
    return Asker(adapter=Adapter(**adapter) if adapter else None, **fields)


def _parse_fault(kind: str | None, **fields: Any) -> Late | Reused | None:
    kinds: dict[str | None, Any] = {"late": Late, "reused": Reused, None: lambda: None}
    fault: Late | Reused | None = kinds[kind](**fields)
    return fault


def write_reply(stream: TextIO, reply: Reply) -> None:
    """Write one reply as a line; numbers survive exactly, and a non-finite one is a ValueError."""
    fields = {"type": type(reply).__name__.lower()} | vars(reply)
    stream.write(json.dumps(fields, allow_nan=False, separators=(",", ":"), default=vars) + "\n")
    stream.flush()
