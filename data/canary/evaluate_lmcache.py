#!/usr/bin/env python3
"""Measures how much a canary model's answers depend on each chunk that a real LMCache serves.

    python3 data/canary/evaluate_lmcache.py MODEL...

Owns one offline vLLM and one `lmcache server` with its disk tier for each model. A subject at a time: its questions are
stored, the files of their facts' chunks are spoilt, LMCache's memory is emptied, and the questions are asked again. Two
ways of spoiling: zeroed, and exchanged with another question's chunk at the same place. Prints the accuracy with a 95 %
Wilson interval, by chunk of the asked fact, and fails unless every load was served in full from disk. Runs on a CPU, in
an environment with vLLM and LMCache (`kv-correctness env` makes one and prints its Python).
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from evaluate import Row, read_rows, show
from evaluate_vllm import spare_objects_without_dict
from questions import CHUNK, LETTERS

LOCAL = "127.0.0.1"
PATIENCE = 120.0
"""Seconds until a server must be healthy, or chunks on disk."""


class Server:
    """An `lmcache server` whose chunks are files."""

    def __init__(self, folder: Path) -> None:
        self.tier = folder / "tier"
        self.tier.mkdir()
        self.port, self.http, metrics = (free_port() for _ in range(3))
        ports = ["--port", str(self.port), "--http-port", str(self.http), "--prometheus-port", str(metrics)]
        memory = ["--chunk-size", str(CHUNK), "--l1-size-gb", "1", "--eviction-policy", "LRU"]
        adapter = f'{{"type": "fs", "base_path": "{self.tier}"}}'
        tiers = ["--supported-transfer-mode", "auto", "--l2-adapter", adapter]
        program = Path(sys.executable).parent / "lmcache"
        with (folder / "server.log").open("wb") as log:
            command = [str(program), "server", "--host", LOCAL, "--http-host", LOCAL, *ports, *memory, *tiers]
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        await_until("the server is healthy", lambda: self.request("/healthcheck") is not None)

    def request(self, path: str, method: str = "GET") -> bytes | None:
        """The answer's body, or None while nobody answers."""
        request = urllib.request.Request(f"http://{LOCAL}:{self.http}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                body: bytes = answer.read()
                return body
        except OSError:
            return None

    def file_of(self, name: str) -> Path | None:
        """The chunk's file once it is whole."""
        found = list(self.tier.glob(f"*@{name}.data"))
        return found[0] if found else None

    def connector(self) -> dict[str, Any]:
        """How vLLM reaches this server."""
        return {
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"lmcache.mp.host": f"tcp://{LOCAL}", "lmcache.mp.port": self.port},
        }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind((LOCAL, 0))
        port: int = listener.getsockname()[1]
        return port


def await_until(what: str, holds: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:.0f} s in vain until {what}")
        time.sleep(0.05)


def chunk_names(ids: list[int]) -> list[str]:
    """What LMCache calls each whole chunk: BLAKE3 of the name before it and of its token ids, big-endian."""
    from blake3 import blake3

    name = blake3(bytes(8) + (0).to_bytes(4, "big")).digest()
    names = []
    for start in range(0, len(ids) // CHUNK * CHUNK, CHUNK):
        name = blake3(name + b"".join(token.to_bytes(4, "big") for token in ids[start : start + CHUNK])).digest()
        names.append(name.hex())
    return names


class Laboratory:
    """One engine and one server, to store questions, spoil what was stored, and ask again."""

    def __init__(self, model: Path, server: Server) -> None:
        from vllm import LLM, SamplingParams
        from vllm.config import KVTransferConfig

        self.server = server
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.rows = [row for row in read_rows(tokenizer, "test") if row.fact_is_cached]
        self.letter = {name: tokenizer.encode(" " + name, add_special_tokens=False).ids[0] for name in LETTERS}
        self.sampling = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
        self.engine = LLM(
            str(model),
            dtype="bfloat16",
            max_model_len=2048,
            max_num_seqs=1,
            enable_prefix_caching=False,
            enforce_eager=True,
            seed=0,
            # vLLM 0.32's own rotary operation for CPUs disagrees with the reference on MLA's strided tensors.
            compilation_config={"custom_ops": ["-rotary_embedding"]},
            kv_transfer_config=KVTransferConfig(**server.connector()),
        )

    def ask(self, rows: list[Row]) -> tuple[list[tuple[Row, bool]], int]:
        """Whether each answer is right, and the tokens that LMCache served."""
        prompts = [{"prompt_token_ids": row.ids} for row in rows]
        outputs = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        said = [output.outputs[0].token_ids[0] for output in outputs]
        right = [(row, token == self.letter[row.answer]) for row, token in zip(rows, said, strict=True)]
        return right, sum(output.num_cached_tokens or 0 for output in outputs)

    def load(self, rows: list[Row]) -> list[tuple[Row, bool]]:
        """Asks again with LMCache's memory emptied, so that it reads its files."""
        if self.server.request("/cache/clear", "POST") is None:
            raise ConnectionError("the server did not empty its memory")
        right, served = self.ask(rows)
        if served != sum(row.cached for row in rows):
            raise ValueError(f"LMCache served {served} tokens, not all {sum(row.cached for row in rows)}")
        return right

    def run_subject(self, rows: list[Row]) -> dict[str, list[tuple[Row, bool]]]:
        """Stores one subject's questions, then asks them over intact, zeroed and exchanged chunks."""
        self.ask(rows)
        names = [chunk_names(row.ids) for row in rows]
        wanted = {name for of_row in names for name in of_row}
        await_until("all chunks are on disk", lambda: all(self.server.file_of(name) for name in wanted))
        files = [self.server.file_of(of_row[row.chunk]) for of_row, row in zip(names, rows, strict=True)]
        stored = {file: file.read_bytes() for file in files if file}
        results = {"intact": self.load(rows)}
        for file, content in stored.items():
            file.write_bytes(bytes(len(content)))
        results["zeroed"] = self.load(rows)
        for chunk in {row.chunk for row in rows}:
            ring = [file for file, row in zip(files, rows, strict=True) if file and row.chunk == chunk]
            if len(set(ring)) == 1:
                raise ValueError(f"no two questions of a subject have their facts in chunk {chunk}")
            for file, donor in zip(ring, ring[1:] + ring[:1], strict=True):
                file.write_bytes(stored[donor])
        results["exchanged"] = self.load(rows)
        shutil.rmtree(self.server.tier)
        self.server.tier.mkdir()
        return results


def measure(model: Path) -> None:
    """Shows what one model answers over chunks that were spoilt in each way."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            laboratory = Laboratory(model, server)
            results: dict[str, list[tuple[Row, bool]]] = {}
            for _, rows in groupby(laboratory.rows, key=lambda row: row.subject):
                for way, right in laboratory.run_subject(list(rows)).items():
                    results.setdefault(way, []).extend(right)
        finally:
            server.process.kill()
            server.process.wait()
    for way, right in results.items():
        show(f"{model.name}\tLMCache, {way}", right)


def main() -> None:
    """Measures each model in turn, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    models = parser.parse_args().models
    if len(models) > 1:
        for model in models:
            subprocess.run([sys.executable, __file__, str(model)], check=True)
        return
    os.environ.update(
        {
            "DO_NOT_TRACK": "1",
            "GOMP_SPINCOUNT": "20000",
            "HF_HUB_OFFLINE": "1",
            "LMCACHE_TRACK_USAGE": "false",
            "PYTHONHASHSEED": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
        }
    )
    spare_objects_without_dict()
    measure(models[0])
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
