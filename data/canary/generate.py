#!/usr/bin/env python3
"""Writes the canary dataset, `data/canary.tar.xz`, in MMLU's layout; the same bytes on each run.

Owns the plan of each subject (which answers, lengths and places of the asked fact), the CSV files and the archive.
Leaves the form of a question to `questions.py`. Standard library only.

    python3 data/canary/generate.py          writes the archive
    python3 data/canary/generate.py --check  compares it with what would be written, without writing

The check compares the content of the archive, since another version of liblzma may compress it to other bytes.
"""

import argparse
import csv
import hashlib
import io
import lzma
import sys
import tarfile
from pathlib import Path

from questions import CHUNK, DEV_FACTS, LETTERS, Question, Stream, examples, long_question, pairs, prefix
from words import SUBJECTS, Subject

ARCHIVE = Path(__file__).resolve().parent.parent / "canary.tar.xz"
EPOCH = 946684800
"""Modification time of each file in the archive: 2000-01-01 UTC."""

SPLITS = {"test": 40, "val": 8}
"""Long questions of a subject in each split; `dev` holds its five short ones."""

PLANS = {
    "test": [(4, chunk) for chunk in range(4) for _ in range(5)]
    + [(5, chunk) for chunk in range(4) for _ in range(3)]
    + [(5, 4)] * 8,
    "val": [(4, 0), (4, 1), (4, 2), (4, 3), (5, 0), (5, 2), (5, 4), (5, 4)],
}
"""For each question its full chunks and the chunk of the asked fact: every chunk is asked for equally often."""


def label(split: str, subject: str, row: int) -> str:
    """Seed of one row; training uses seeds that begin with another word."""
    return f"canary/1/{split}/{subject}/{row}"


def compose_subject(subject: Subject) -> dict[str, list[Question]]:
    """Every question of one subject, by split."""
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
    for subject in SUBJECTS:
        for split, questions in compose_subject(subject).items():
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
