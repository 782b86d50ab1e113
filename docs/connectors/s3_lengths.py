"""What LMCache's tier `s3` makes of objects that are not as long as the KV they are loaded into.

Run with a Python that has lmcache and awscrt, and a program `rclone` (1.68 or newer, with `serve s3`):

    python s3_lengths.py /path/to/rclone
"""

import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters.s3_l2_adapter import S3L2Adapter, S3L2AdapterConfig

BYTES = 1 << 20
PORT = 19093
KEY = ObjectKey(chunk_hash=b"\1\2", model_name="model", kv_rank=0, object_group_id=0)


class Memory:
    """The part of LMCache's memory objects that the tier uses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.data_ptr = tensor.data_ptr()
        self.byte_array = memoryview((ctypes.c_uint8 * tensor.numel()).from_address(self.data_ptr))

    def get_size(self) -> int:
        return self.tensor.numel()


def adapter() -> S3L2Adapter:
    # Bucket `127` of a server whose name is `0.0.1`.
    return S3L2Adapter(
        S3L2AdapterConfig(
            s3_endpoint=f"127.0.0.1:{PORT}",
            s3_region="us-east-1",
            s3_num_io_threads=2,
            s3_prefer_http2=False,
            disable_tls=True,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
    )


def wait_for(answer):
    while not (found := answer()):
        time.sleep(0.05)
    return found


with tempfile.TemporaryDirectory() as folder:
    command = [sys.argv[1], "--config", "", "serve", "s3", f":combine,upstreams='127={folder}':"]
    command += ["--addr", f"127.0.0.1:{PORT}", "--force-path-style=false", "--auth-key", "key,secret"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    time.sleep(2)
    try:
        storing = adapter()
        storing.submit_store_task([KEY], [Memory(torch.full((BYTES,), 7, dtype=torch.uint8))])
        wait_for(storing.pop_completed_store_tasks)
        [file] = [path for path in Path(folder).rglob("*") if path.is_file()]
        for length in (BYTES, 1000, 2 * BYTES):
            file.write_bytes(b"\7" * length)
            time.sleep(1)
            loading = adapter()
            task = loading.submit_lookup_and_lock_task([KEY], {})
            found = wait_for(lambda: loading.query_lookup_and_lock_result(task)).test(0)
            memory = torch.full((3 * BYTES,), 9, dtype=torch.uint8)
            task = loading.submit_load_task([KEY], [Memory(memory[:BYTES])])
            loaded = wait_for(lambda: loading.query_load_result(task)).test(0)
            print(
                f"object of {length} bytes for {BYTES}: found {found}, loaded {loaded};"
                f" {int((memory[:BYTES] != 7).sum())} bytes of the memory are not the object's,"
                f" {int((memory[BYTES:] != 9).sum())} behind it were written over",
                flush=True,
            )
    finally:
        server.kill()
