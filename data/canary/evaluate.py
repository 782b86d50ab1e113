#!/usr/bin/env python3
"""Measures the canary models with transformers, in bfloat16, on the embedded questions.

    python3 data/canary/evaluate.py places                  chunk of the asked fact, for each test question (TSV)
    python3 data/canary/evaluate.py accuracy MODEL...       accuracy with a 95 % Wilson interval, by chunk
    python3 data/canary/evaluate.py sensitivity MODEL...    the same with the asked fact's chunk of the cache spoilt

Owns reading the archive, the prompts and these measurements. The keys and values of the first full chunks are computed
once, as a cache that serves them would hold them, and the rest of the prompt continues from them. `sensitivity` spoils
one chunk in between, as far as layers keep it: zeroed, or taken from another question. Leaves vLLM and LMCache to the
program itself.
Main type: `Row`.
"""

import argparse
import copy
import csv
import io
import math
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from questions import CHUNK, LETTERS, header, options_block

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "canary.tar.xz"
MODELS = [ROOT / "models" / name for name in ("canary-dense", "canary-mla", "canary-swa")]


@dataclass(frozen=True)
class Row:
    """One question with its whole prompt: token ids, and the chunk in which the asked fact lies."""

    subject: str
    split: str
    row: int
    answer: str
    ids: list[int]
    chunk: int

    @property
    def cached(self) -> int:
        """Tokens in full chunks: what a cache can serve. The last token is computed in any case, to have an answer."""
        return min(len(self.ids) // CHUNK * CHUNK, len(self.ids) - 1)

    @property
    def fact_is_cached(self) -> bool:
        """Whether the asked fact lies in a full chunk, which can be spoilt."""
        return (self.chunk + 1) * CHUNK <= len(self.ids)


def read_archive(archive: Path = ARCHIVE) -> dict[tuple[str, str], list[list[str]]]:
    """Rows of each file, by split and subject."""
    tables = {}
    with tarfile.open(archive) as files:
        for entry in files:
            _, split, name = entry.name.split("/")
            content = files.extractfile(entry)
            if content is None:
                raise ValueError(f"{entry.name} is no file")
            tables[split, name.removesuffix(f"_{split}.csv")] = list(csv.reader(io.StringIO(content.read().decode())))
    return tables


def block(row: list[str]) -> str:
    """A question with its options, up to `Answer:`."""
    return row[0] + "".join(options_block(row[1:5]))


def read_rows(tokenizer: Tokenizer, split: str) -> list[Row]:
    """Every question of a split with its prompt, in the order of subjects and rows."""
    tables = read_archive()
    rows = []
    for subject in sorted(subject for name, subject in tables if name == split):
        shown = "".join(f"{block(row)} {row[5]}\n\n" for row in tables["dev", subject])
        before = "".join(header(subject)) + shown
        for number, row in enumerate(tables[split, subject]):
            encoding = tokenizer.encode(before + block(row))
            start, end = asked_sentence(row[0])
            ends = (encoding.char_to_token(len(before) + place) for place in (start, end - 1))
            chunks = {token // CHUNK for token in ends if token is not None}
            if len(chunks) != 1:
                raise ValueError(f"the asked fact of {subject} {split} {number} lies in more than one chunk")
            rows.append(Row(subject, split, number, row[5], encoding.ids, chunks.pop()))
    return rows


def asked_sentence(question: str) -> tuple[int, int]:
    """Where the sentence with the asked fact stands in the question's text."""
    asked = re.search(r"[.:]( [A-Z][a-z]+ [a-z]+) what\?$", question)
    if asked is None:
        raise ValueError(f"no query ends the question {question!r}")
    start = question.index(asked[1] + " ")
    return start, question.index(".", start) + 1


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927)."""
    z = 1.959963984540054
    share, weight = right / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = z * math.sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return middle - reach, middle + reach


def show(title: str, right: list[tuple[Row, bool]]) -> None:
    """One line for all questions and one for each chunk."""
    groups: dict[str, list[bool]] = {"all": [hit for _, hit in right]}
    for row, hit in sorted(right, key=lambda pair: pair[0].chunk):
        groups.setdefault(f"chunk {row.chunk}", []).append(hit)
    for name, hits in groups.items():
        low, high = wilson(sum(hits), len(hits))
        share = f"{sum(hits)}/{len(hits)}\t{sum(hits) / len(hits):.4f}\t{low:.4f} to {high:.4f}"
        print(title, name, share, sep="\t", flush=True)


class Reader:
    """A model that fills a cache with full chunks, and answers from a cache that may have been changed since."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.model = model.to(self.device).eval()
        self.letters = [self.tokenizer.encode(" " + letter, add_special_tokens=False).ids[0] for letter in LETTERS]

    def fill(self, row: Row) -> Any:
        """A cache of the full chunks: by layer keys and values (for MLA: latent and rotary part), or a state."""
        ids = self.torch.tensor([row.ids[: row.cached]], device=self.device)
        with self.torch.no_grad():
            return self.model.model(ids, use_cache=True).past_key_values

    def answer(self, row: Row, filled: Any) -> str:
        """The first token after the prompt, continued from a copy of the given cache."""
        cache = copy.deepcopy(filled)
        ids = self.torch.tensor([row.ids[row.cached :]], device=self.device)
        with self.torch.no_grad():
            hidden = self.model.model(ids, past_key_values=cache, use_cache=True).last_hidden_state
            best = int(self.model.lm_head(hidden[0, -1]).argmax())
        return LETTERS[self.letters.index(best)] if best in self.letters else "none"


def kept(cache: Any, chunk: int) -> list[tuple[Any, Any]]:
    """Views of a chunk's keys and values in layers that keep tokens, as far as they do: [1, heads, tokens, width]."""
    tokens = cache.get_seq_length()
    views = []
    for layer in cache.layers:
        if not hasattr(layer, "keys"):
            continue
        # A layer with a window keeps the last tokens alone.
        before = tokens - layer.keys.shape[2]
        place = slice(max(chunk * CHUNK - before, 0), max((chunk + 1) * CHUNK - before, 0))
        views.append((layer.keys[:, :, place], layer.values[:, :, place]))
    return views


def zeroed(cache: Any, chunk: int) -> Any:
    """A copy with one chunk's keys and values set to zero."""
    spoilt = copy.deepcopy(cache)
    for keys, values in kept(spoilt, chunk):
        keys.zero_()
        values.zero_()
    return spoilt


def swapped(cache: Any, other: Any, chunk: int) -> Any:
    """A copy with one chunk's keys and values taken from another question's cache, where both keep them."""
    spoilt = copy.deepcopy(cache)
    for (keys, values), (other_keys, other_values) in zip(kept(spoilt, chunk), kept(other, chunk), strict=True):
        if keys.shape == other_keys.shape:
            keys.copy_(other_keys)
            values.copy_(other_values)
    return spoilt


def places(rows: list[Row]) -> None:
    """Lists the chunk of each asked fact."""
    print("subject", "row", "tokens", "chunks", "chunk_of_fact", sep="\t")
    for row in rows:
        print(row.subject, row.row, len(row.ids), len(row.ids) // CHUNK, row.chunk, sep="\t")


def accuracy(reader: Reader, rows: list[Row], title: str) -> None:
    """Shows how many answers are right with an unspoilt cache."""
    show(title, [(row, reader.answer(row, reader.fill(row)) == row.answer) for row in rows])


def sensitivity(reader: Reader, rows: list[Row], title: str) -> None:
    """Shows how many answers are right with the asked fact's chunk spoilt, in each of two ways."""
    results: dict[str, list[tuple[Row, bool]]] = {"intact": [], "zeroed": [], "swapped": []}
    for number, row in enumerate(rows):
        following = rows[number + 1 :] + rows[:number]
        donor = next(other for other in following if row.chunk * CHUNK < other.cached)
        filled = reader.fill(row)
        spoilt = {
            "intact": filled,
            "zeroed": zeroed(filled, row.chunk),
            "swapped": swapped(filled, reader.fill(donor), row.chunk),
        }
        for name, cache in spoilt.items():
            results[name].append((row, reader.answer(row, cache) == row.answer))
    for name, right in results.items():
        show(f"{title}\t{name}", right)


def main() -> None:
    """Runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["places", "accuracy", "sensitivity"])
    parser.add_argument("models", type=Path, nargs="*", default=MODELS)
    parser.add_argument("--split", default="test", choices=["val", "test"])
    arguments = parser.parse_args()
    if arguments.what == "places":
        tokenizer = Tokenizer.from_file(str(arguments.models[0] / "tokenizer.json"))
        places(read_rows(tokenizer, arguments.split))
        return
    measure = accuracy if arguments.what == "accuracy" else sensitivity
    for folder in arguments.models:
        reader = Reader(folder)
        rows = read_rows(reader.tokenizer, arguments.split)
        measure(reader, [row for row in rows if measure is accuracy or row.fact_is_cached], folder.name)


if __name__ == "__main__":
    main()
