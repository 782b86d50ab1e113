"""Serves one engine over standard input and output until `finish`, the end of input, or a failure."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from kv_worker.protocol import (
    Counted,
    Endured,
    Failed,
    Finish,
    Finished,
    Look,
    Plant,
    Press,
    ProtocolError,
    Reply,
    Score,
    Spoil,
    Start,
    parse_request,
    write_reply,
)

if TYPE_CHECKING:
    from kv_worker.engine import Engine


def take_stdout() -> TextIO:
    """Keep file descriptor 1 for replies alone and send what others print there to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def answer(engine: Engine, request: Score | Look | Plant | Spoil | Press) -> Iterator[Reply]:
    """Do what an engine is asked for that runs."""
    if isinstance(request, Spoil):
        yield engine.spoil(request)
        return
    if isinstance(request, Look):
        yield engine.look(request)
        return
    if isinstance(request, Plant):
        yield engine.plant(request)
        return
    if isinstance(request, Press):
        yield from engine.press(request)
        problem, digested = engine.digested()
        yield from digested
        yield Endured(engine.events(), engine.counters(), problem)
        return
    yield from engine.score(request)
    problem, digested = engine.digested()
    yield from digested
    yield Counted(engine.counters(), problem)


def serve(replies: TextIO) -> int:
    """Answer requests in order; returns the exit status."""
    engine = None
    kind = "request"
    try:
        for line in sys.stdin:
            kind = "request"
            request = parse_request(line)
            if isinstance(request, Start):
                if engine is not None:
                    raise ProtocolError("the engine was started before")
                kind = "start"
                from kv_worker.engine import Engine

                engine = Engine(request)
                write_reply(replies, engine.ready())
            elif isinstance(request, Finish):
                break
            elif engine is None:
                raise ProtocolError("no engine was started")
            else:
                kind = "engine"
                for reply in answer(engine, request):
                    write_reply(replies, reply)
        if engine is not None:
            kind = "engine"
            engine.shut_down()
        write_reply(replies, Finished())
    except BrokenPipeError:
        return 1
    except BaseException as error:
        traceback.print_exc()
        question = getattr(error, "question", None)
        text = " ".join(str(error).split()) or type(error).__name__
        write_reply(replies, Failed("observation" if question is not None else kind, text, question))
        return 1
    return 0


def main() -> int:
    """Serve one engine on this process's standard streams; returns the exit status."""
    return serve(take_stdout())


if __name__ == "__main__":
    # An in-process LMCache leaves threads behind that keep a plain exit waiting for ever.
    status = main()
    sys.stderr.flush()
    os._exit(status)
