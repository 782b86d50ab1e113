"""Composes the canary models' training sequences; every one is fresh.

Owns the curriculum (`STAGES`), what a sequence teaches at each position (`ROWS`) and the seeds of training. A sequence
is a prompt (header, five examples, notes that grow from stage to stage) with its answer, followed by more queries over
the same notes, so that one sequence teaches many look-ups. Leaves the form of a question to `questions.py` and the loss
to `train.py`. Main types: `Stage`, `Batches`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tokenizers import Tokenizer
from torch.utils.data import IterableDataset, get_worker_info

import generate
from questions import (
    DEV_FACTS,
    LETTERS,
    OPENING,
    Fact,
    Stream,
    choose_options,
    examples,
    header,
    notes,
    options_block,
    pairs,
    pieces,
    query,
)
from words import SUBJECTS

T = TypeVar("T")

IGNORE = -100
"""Stands where a row of a sequence says nothing."""

ROWS = ("token", "target", "value", "fact", "query", "option")
"""What a sequence says of each position: its token; the token to put out; the value to name at a query's `what`; and
the positions to look at: from `what` the fact's value, from `Answer:` that `what`, from `Answer:` the right option."""


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum: sequences of `length` tokens whose notes have `shortest` to `longest` tokens.

    It ends after `steps`, or earlier when the answers are right. In a guided stage the loss also says where to look.
    """

    length: int
    batch: int
    shortest: int
    longest: int
    steps: int
    guided: bool = False


STAGES = [
    Stage(length=384, batch=64, shortest=14, longest=60, steps=3000, guided=True),
    Stage(length=640, batch=48, shortest=40, longest=260, steps=1000, guided=True),
    Stage(length=1088, batch=32, shortest=100, longest=640, steps=1000),
    Stage(length=1728, batch=32, shortest=300, longest=1260, steps=1200),
]


class TrainingStream(Stream):
    """The same choices from a faster generator, whose sequence may differ between Python versions."""

    def __init__(self, label: str) -> None:
        self._random = random.Random(label)

    def below(self, bound: int) -> int:
        """One of 0 to `bound` - 1."""
        return int(self._random.random() * bound)

    def shuffled(self, items: list[T]) -> list[T]:
        """A copy in random order."""
        return self._random.sample(items, len(items))

    def sample(self, items: list[T], count: int) -> list[T]:
        """`count` different items, in random order."""
        return self._random.sample(items, count)


class Composer:
    """Turns questions into token ids, targets and positions to look at."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = {tokenizer.decode([index]): index for index in range(tokenizer.get_vocab_size())}

    def compose(self, stream: Stream, stage: Stage) -> list[list[int]]:
        """One row of `stage.length` numbers for each of `ROWS`."""
        ids = self.ids
        subject = SUBJECTS[stream.below(len(SUBJECTS))]
        facts = pairs(stream, subject)
        spare = [value for _, value in facts[:DEV_FACTS]]
        tokens = [0, *(ids[piece] for piece in header(subject.name))]
        said: dict[str, dict[int, int]] = {name: {} for name in ROWS[1:]}

        def add(body: list[str], options: list[str], answer: str, asked: Fact, start: int) -> None:
            """Appends an answered question; the asked fact's sentence stands at `start`."""
            tokens.extend(ids[piece] for piece in body)
            what = len(tokens) - 2
            said["value"][what] = ids[" " + asked.value]
            said["fact"][what] = start + 2
            option = len(tokens) + 4 * LETTERS.index(answer) + 3
            tokens.extend(ids[piece] for piece in options_block(options))
            colon = len(tokens) - 1
            tokens.extend((ids[" " + answer], ids["\n"], ids["\n"]))
            said["query"][colon] = what
            said["option"][colon] = option
            for position in range(colon, colon + 3):
                said["target"][position] = tokens[position + 1]

        for shown in examples(stream, subject, facts):
            add(shown.body, shown.options, shown.answer, shown.asked, len(tokens) + shown.asked.start)
        budget = stage.shortest + stream.below(stage.longest - stage.shortest + 1)
        body, placed = notes(stream, subject, facts[DEV_FACTS:], budget)
        before = len(tokens)
        while len(tokens) < stage.length:
            asked = placed[stream.below(len(placed))]
            near = [fact.value for fact in placed if fact is not asked]
            others = near if len(near) >= len(LETTERS) - 1 else near + spare
            answer = LETTERS[stream.below(len(LETTERS))]
            options = choose_options(stream, asked.value, others, answer)
            add([*body, *query(subject, asked.key)], options, answer, asked, before + asked.start)
            body = list(pieces(OPENING))
        positions = range(stage.length)
        return [
            tokens[: stage.length],
            *([said[name].get(position, IGNORE) for position in positions] for name in ROWS[1:]),
        ]


def training_label(seed: int, stage: int, batch: int) -> str:
    """Seed of one training batch."""
    return f"train/{seed}/{stage}/{batch}"


def assert_seeds_are_disjoint(seed: int) -> None:
    """No training batch has the seed of an embedded row: the two kinds of label begin with different words."""
    training = training_label(seed, 0, 0).split("/")[0]
    for split in ("dev", *generate.SPLITS):
        if generate.label(split, SUBJECTS[0].name, 0).split("/")[0] == training:
            raise ValueError(f"training seeds overlap with those of the {split} rows")


class Batches(IterableDataset[torch.Tensor]):
    """Endless batches of one stage; which worker composes a batch does not change it."""

    def __init__(self, tokenizer_file: Path, seed: int, number: int) -> None:
        self.tokenizer_file, self.seed, self.number = tokenizer_file, seed, number

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields [rows, batch, length], rows as in `ROWS`."""
        composer = Composer(Tokenizer.from_file(str(self.tokenizer_file)))
        stage = STAGES[self.number]
        worker = get_worker_info()
        batch, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            stream = TrainingStream(training_label(self.seed, self.number, batch))
            rows = [composer.compose(stream, stage) for _ in range(stage.batch)]
            yield torch.tensor(rows, dtype=torch.int16).transpose(0, 1).contiguous()
            batch += stride
