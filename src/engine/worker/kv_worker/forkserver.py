"""Imports what programs need once, and forks one for each guard that asks for it over a Unix socket.

    python -m kv_worker.forkserver SOCKET engine|lmcache

Imports are most of the start of an engine, and of an LMCache server. A program is forked from a process that has done
nothing but import, which is where vLLM forks its own engine core, too. Each of the two has a process of its own:
engines without LMCache stay without it.

A guard sends the number of its process group and how many words its command has, with its standard streams as file
descriptors, then the command's words and the variables of its environment. It is told that it will have a process, and
in the end that one's exit status, negative for a signal. The Rust counterpart is `src/engine/fork_server.rs`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

STREAMS = 3
HEAD_BYTES = 1 << 16


def serve_forks(path: str, prepare: Callable[[], None], work: Callable[[], int]) -> NoReturn:
    """Listen at `path`, prepare, then fork processes that do `work` and exit with its result, until killed.

    Guards can connect before all is prepared. Where preparing fails, this process ends, and they have no worker of it.
    """
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen()
    os.rename(f"{path}.new", path)  # whoever sees the path can connect
    prepare()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for attendants
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _or_leave(functools.partial(_attend, connection, work))
        connection.close()


def import_engine() -> None:
    """Import what an engine without a connector imports.

    Raises RuntimeError if that has initialised CUDA, which a forked process could not use.
    """
    import torch
    import vllm.entrypoints.llm
    import vllm.v1.engine.core
    from vllm.platforms import current_platform

    # Where another vLLM has them elsewhere, each engine imports its own.
    with contextlib.suppress(ImportError):
        if current_platform.is_cuda():
            import vllm.v1.worker.gpu_worker
        else:
            import vllm.v1.worker.cpu_worker  # noqa: F401
    if torch.cuda.is_initialized():
        raise RuntimeError("importing vLLM has initialised CUDA, so no engine can be forked")


def import_lmcache() -> None:
    """Import what LMCache's server imports, on a machine without a GPU.

    Raises RuntimeError if that has started a thread, which a forked process would not have.
    """
    import lmcache.cli.main

    # Where another LMCache has them elsewhere, each server imports its own.
    with contextlib.suppress(ImportError):
        import lmcache.cli.commands.server
        import lmcache.v1.multiprocess.http_server

        # Each server looks through all second tiers, one of which imports this, and it transformers: 2 s on slow cores.
        import lmcache.v1.storage_backend  # noqa: F401
    if threading.active_count() > 1:
        raise RuntimeError("importing LMCache has started a thread, so no server can be forked")


def run_program() -> int:
    """Run the Python program that the command names, as Python would have run it."""
    runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def _or_leave(work: Callable[[], int]) -> NoReturn:
    """End a forked process with the result of `work`, and without its parent's handlers."""
    status = 1
    try:
        status = work()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _attend(connection: socket.socket, work: Callable[[], int]) -> int:
    """Fork one process and report its end. The attendant is a process of its own, so this module keeps no state.

    It outlives a SIGTERM to the group: the process may take its time to end, and counts as there as long as this one.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    order, streams, _, _ = socket.recv_fds(connection, HEAD_BYTES, STREAMS)
    while more := connection.recv(HEAD_BYTES):
        order += more
    head, _, rest = order.partition(b"\n")
    group, words = map(int, head.split())
    texts = rest.split(b"\0")
    os.setpgid(0, group)
    connection.sendall(b"forking\n")
    forked = os.fork()
    if forked == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environb.clear()
        pairs = (variable.partition(b"=") for variable in texts[words:])
        os.environb.update({name: value for name, _, value in pairs})
        sys.argv = [os.fsdecode(word) for word in texts[:words]]
        _or_leave(work)
    for stream in streams:
        os.close(stream)
    _, status = os.waitpid(forked, 0)
    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    return 0


if __name__ == "__main__":
    if sys.argv[2] == "lmcache":
        serve_forks(sys.argv[1], import_lmcache, run_program)
    from kv_worker.__main__ import main

    serve_forks(sys.argv[1], import_engine, main)
