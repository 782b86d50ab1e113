#!/usr/bin/env python3
"""The yardstick for `kv-correctness run` on a GPU: a plain script over the same questions.

    python3 benches/plain-script.py without DATA MODEL SETTINGS     one generate call a subject
    python3 benches/plain-script.py with DATA MODEL SETTINGS        LMCache in vLLM's process, two calls a subject

DATA is an MMLU archive, MODEL a folder, SETTINGS a JSON object: `subjects` and `max_tokens`, else keyword arguments for
`vllm.LLM`. One subject after another, each with one call of `LLM.generate` for all its prompts; with LMCache the same
call again, whose answers are scored. Prints a line of JSON a subject (accuracy and number of questions), then `total`
with seconds of the engine's start and of the calls, and prompt tokens. Proves nothing: that is what it is here for.
"""

import csv
import io
import json
import multiprocessing
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

LETTERS = "ABCD"
EXAMPLE_TOKENS = 4000


def read_tables(archive: Path) -> dict[tuple[str, str], list[list[str]]]:
    """The archive's `dev` and `test` tables by split and subject."""
    tables = {}
    with tarfile.open(archive) as files:
        for entry in files:
            folder, _, name = entry.name.rpartition("/")
            split = folder.rpartition("/")[2]
            content = files.extractfile(entry) if split in ("dev", "test") and name.endswith(".csv") else None
            if content is not None:
                tables[split, name.removesuffix(f"_{split}.csv")] = list(
                    csv.reader(io.StringIO(content.read().decode()))
                )
    return tables


def block(row: list[str]) -> str:
    """A question with its options."""
    options = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=True))
    return f"{row[0]}{options}\nAnswer:"


def prompts_of(subject: str, examples: list[list[str]], rows: list[list[str]], tokenizer: Any) -> list[str]:
    """The subject's prompts: header, examples until they pass the limit, the question."""
    text = f"Each question below is about {subject.replace('_', ' ')}. Reply with one letter: A, B, C or D.\n\n"
    for row in examples:
        text += f"{block(row)} {row[5]}\n\n"
        if len(tokenizer.encode(text)) > EXAMPLE_TOKENS:
            break
    return [text + block(row) for row in rows]


def end_engines() -> None:
    """Ends vLLM's engine, which outlives this process otherwise, and holds its GPU memory."""
    for engine in multiprocessing.active_children():
        engine.terminate()
        engine.join(10)
        engine.kill()
        engine.join()


def main() -> int:
    """Runs one arm."""
    try:
        arm, archive, model, text = sys.argv[1:]
        cached, data, settings = {"with": True, "without": False}[arm], Path(archive), json.loads(text)
    except (ValueError, KeyError):
        print(__doc__, file=sys.stderr)
        return 2
    subjects_wanted, max_tokens = settings.pop("subjects", None), settings.pop("max_tokens", 2)
    started = time.monotonic()
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig

    if cached:
        settings["kv_transfer_config"] = KVTransferConfig(kv_connector="LMCacheConnectorV1", kv_role="kv_both")
    llm = LLM(model=model, enable_prefix_caching=False, enforce_eager=True, **settings)
    start_seconds = time.monotonic() - started
    tables, tokenizer = read_tables(data), llm.get_tokenizer()
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, seed=42)
    seconds, tokens, shares = [0.0, 0.0], 0, []
    for subject in sorted(subject for split, subject in tables if split == "test")[:subjects_wanted]:
        rows = tables["test", subject]
        prompts = prompts_of(subject, tables["dev", subject], rows, tokenizer)
        for call in range(2 if cached else 1):
            begun = time.monotonic()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            seconds[call] += time.monotonic() - begun
        tokens += sum(len(output.prompt_token_ids) for output in outputs)
        right = sum(output.outputs[0].text.strip()[:1] == row[5] for output, row in zip(outputs, rows, strict=True))
        shares.append(right / len(rows))
        print(json.dumps({subject: {"accuracy": shares[-1], "num_questions": len(rows)}}), flush=True)
    total = {"accuracy": sum(shares) / len(shares), "prompt_tokens": tokens, "start_seconds": start_seconds}
    total |= {"seconds": seconds, "all_seconds": time.monotonic() - started}
    print(json.dumps({"total": total}), flush=True)
    end_engines()
    os._exit(0)  # LMCache in this process may never let it end


if __name__ == "__main__":
    sys.exit(main())
