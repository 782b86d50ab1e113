#!/usr/bin/env python3
"""Writes the canary dataset, `data/canary.tar.xz`, in MMLU's layout; the same bytes on each run.

Owns the plan of each subject (which answers, lengths and places of the asked fact), the CSV files and the archive.
Leaves the form of a question to `questions.py`. Standard library only. The prompts of the subject `whole_chunks` are a
whole number of chunks long, a token less or a token more, counted in tokens of the committed tokenizer.

    python3 data/canary/generate.py          writes the archive
    python3 data/canary/generate.py --check  compares it with what would be written, without writing

The check compares the content of the archive, since another version of liblzma may compress it to other bytes.
"""

import argparse
import csv
import hashlib
import io
import json
import lzma
import sys
import tarfile
from itertools import pairwise
from pathlib import Path

from questions import CHUNK, DEV_FACTS, LETTERS, Question, Stream, examples, long_question, pairs, prefix
from words import SUBJECTS, WHOLE_CHUNKS, Subject

ARCHIVE = Path(__file__).resolve().parent.parent / "canary.tar.xz"
EPOCH = 946684800
"""Modification time of each file in the archive: 2000-01-01 UTC."""

SPLITS = {"test": 40, "val": 8}
"""Long questions of a subject of common lengths in each split; `dev` holds its five short ones."""

PLANS = {
    "test": [(4, chunk) for chunk in range(4) for _ in range(5)]
    + [(5, chunk) for chunk in range(4) for _ in range(3)]
    + [(5, 4)] * 8,
    "val": [(4, 0), (4, 1), (4, 2), (4, 3), (5, 0), (5, 2), (5, 4), (5, 4)],
}
"""For each question its full chunks and the chunk of the asked fact: every chunk is asked for equally often."""


WHOLE = {
    "test": [(chunks, beside) for chunks in (4, 5) for beside in (-1, 0, 1) for _ in range(8)],
    "val": [(chunks, beside) for chunks in (4, 5) for beside in (-1, 0, 1) for _ in range(2)],
}
"""For each question of `whole_chunks` its prompt's length: so many chunks, and so many tokens more."""

TOKENIZER = Path(__file__).resolve().parent.parent / "models" / "canary-dense" / "tokenizer.json"


def label(split: str, subject: str, row: int) -> str:
    """Seed of one row; training uses seeds that begin with another word."""
    return f"canary/1/{split}/{subject}/{row}"


def shown_and_rest(subject: Subject) -> tuple[list[Question], Subject]:
    """A subject's five examples, and the words that are left for its other questions."""
    shown_pairs = pairs(Stream(label("dev", subject.name, 0)), subject)[:DEV_FACTS]
    shown = examples(Stream(label("dev", subject.name, 1)), subject, shown_pairs)
    keys = {key for key, _ in shown_pairs}
    values = {value for _, value in shown_pairs}
    rest = Subject(
        subject.name,
        [key for key in subject.keys if key not in keys],
        subject.verb,
        [value for value in subject.values if value not in values],
    )
    return shown, rest


def compose_subject(subject: Subject) -> dict[str, list[Question]]:
    """Every question of one subject, by split."""
    shown, rest = shown_and_rest(subject)
    # One token opens the text.
    before = 1 + len(prefix(subject.name, shown))
    rows = {"dev": shown}
    for split, count in SPLITS.items():
        order = Stream(label(split, subject.name, -1))
        plan = order.shuffled(PLANS[split])
        answers = order.shuffled(list(LETTERS) * (count // len(LETTERS)))
        rows[split] = []
        for row, ((chunks, chunk), answer) in enumerate(zip(plan, answers, strict=True)):
            stream = Stream(label(split, subject.name, row))
            # The query and the options stay behind the last full chunk, so no cached chunk holds the answer twice.
            total = chunks * CHUNK + 100 + stream.below(111)
            facts = pairs(stream, rest)
            rows[split].append(long_question(stream, rest, facts, before, total, chunk, answer))
    return rows


def compose_whole_chunks() -> dict[str, list[Question]]:
    """Every question of the subject whose prompts are planned to the token, by split."""
    subject = WHOLE_CHUNKS
    shown, rest = shown_and_rest(subject)
    spelled = sum(tokens_of(" " + word) - 1 for word in subject.name.split("_"))
    before = 1 + spelled + len(prefix(subject.name, shown))
    rows = {"dev": shown}
    for split, lengths in WHOLE.items():
        order = Stream(label(split, subject.name, -1))
        plan = order.shuffled(lengths)
        answers = order.shuffled(list(LETTERS) * (len(lengths) // len(LETTERS)))
        rows[split] = []
        for row, ((chunks, beside), answer) in enumerate(zip(plan, answers, strict=True)):
            stream = Stream(label(split, subject.name, row))
            facts = pairs(stream, rest)
            total, chunk = chunks * CHUNK + beside, stream.below(chunks)
            rows[split].append(long_question(stream, rest, facts, before, total, chunk, answer, exactly=True))
    return rows


def tokens_of(word: str) -> int:
    """How many tokens the committed tokenizer makes of a word of plain letters, with the space before it."""
    model = json.loads(TOKENIZER.read_text())["model"]
    parts = list(word.replace(" ", "Ġ"))
    if "".join(parts) in model["vocab"]:
        return 1
    ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    while True:
        pairs_at = [(ranks[pair], at) for at, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not pairs_at:
            return len(parts)
        _, at = min(pairs_at)
        parts[at : at + 2] = ["".join(parts[at : at + 2])]


def csv_file(questions: list[Question]) -> bytes:
    """RFC 4180 with line feeds and no header: question, four options, answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for question in questions:
        writer.writerow([question.text(), *question.options, question.answer])
    return text.getvalue().encode()


def tar_file() -> bytes:
    """The uncompressed archive: fixed order, owner, mode and time."""
    files = {}
    composed = [(subject, compose_subject(subject)) for subject in SUBJECTS] + [(WHOLE_CHUNKS, compose_whole_chunks())]
    for subject, rows in composed:
        for split, questions in rows.items():
            files[f"data/{split}/{subject.name}_{split}.csv"] = csv_file(questions)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime, entry.mode = len(files[name]), EPOCH, 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return content.getvalue()


def main() -> int:
    """Writes or checks the archive; prints its digests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the archive instead of writing it")
    arguments = parser.parse_args()
    content = tar_file()
    if not arguments.check:
        ARCHIVE.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    elif lzma.decompress(ARCHIVE.read_bytes()) != content:
        hint = "hint: run generate.py and commit its output"
        print(f"{ARCHIVE.name} differs from what is generated\n\n{hint}", file=sys.stderr)
        return 1
    print(hashlib.sha256(content).hexdigest(), "content (tar)")
    print(hashlib.sha256(ARCHIVE.read_bytes()).hexdigest(), ARCHIVE.name, ARCHIVE.stat().st_size, "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
