"""Serves one engine over standard input and output until `finish`, the end of input, or a failure."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TextIO

from kv_worker.protocol import (
    Counted,
    Failed,
    Finish,
    Finished,
    ProtocolError,
    Score,
    Start,
    parse_request,
    write_reply,
)


def take_stdout() -> TextIO:
    """Keep file descriptor 1 for replies alone and send what others print there to stderr."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


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
            elif isinstance(request, Score):
                kind = "engine"
                for scored in engine.score(request):
                    write_reply(replies, scored)
                problem, digested = engine.digested()
                for one in digested:
                    write_reply(replies, one)
                write_reply(replies, Counted(engine.counters(), problem))
            else:
                kind = "engine"
                write_reply(replies, engine.plant(request))
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
