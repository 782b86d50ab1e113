"""Composes the canary's questions and their prompts, piece by piece.

Owns the form of a question (notes that hold many facts, then one of them asked for), the prompt template
`single-letter/1` and the seeded stream of choices. Leaves the archive to `generate.py` and token ids to the tokenizer.
Main types: `Stream`, `Question`.

A piece is what the canary's tokenizer makes one token of: a word with the space before it, a mark, or a line feed. So
a prompt's length in tokens is known here without the tokenizer: its pieces, and one for the token that opens a text.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import TypeVar

from words import FILLERS, SUFFIXES, Subject

CHUNK = 256
"""Tokens in one chunk of the cache."""

LETTERS = "ABCD"
OPENING = "Notes:"
DEV_FACTS = 12
"""Facts in the five examples of a subject, whose keys and values no other question of that subject uses."""

FACT_SHARE = 50
"""Facts in a hundred sentences of long notes, as long as facts are left."""

Pieces = tuple[str, ...]
T = TypeVar("T")


def pieces(text: str) -> Pieces:
    """Splits a text into what are single tokens for the canary's tokenizer."""
    return tuple(re.findall(r" ?[A-Za-z]+|\n|[^\sA-Za-z]", text))


class Stream:
    """A reproducible stream of choices: SplitMix64 from the SHA-256 of a label, the same in every Python version."""

    _MASK = (1 << 64) - 1

    def __init__(self, label: str) -> None:
        self._state = int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little")

    def below(self, bound: int) -> int:
        """One of 0 to `bound` - 1 (bounds here are far under 2^32, so the bias of scaling is below 2^-32)."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & self._MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & self._MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & self._MASK
        return ((z ^ (z >> 31)) * bound) >> 64

    def shuffled(self, items: list[T]) -> list[T]:
        """A copy in random order."""
        result = list(items)
        for i in range(len(result) - 1, 0, -1):
            j = self.below(i + 1)
            result[i], result[j] = result[j], result[i]
        return result

    def sample(self, items: list[T], count: int) -> list[T]:
        """`count` different items, in random order."""
        result = list(items)
        for i in range(count):
            j = i + self.below(len(result) - i)
            result[i], result[j] = result[j], result[i]
        return result[:count]


@dataclass(frozen=True)
class Fact:
    """A key bound to a value, and where its sentence lies among the pieces before it."""

    key: str
    value: str
    start: int
    end: int


@dataclass(frozen=True)
class Question:
    """One row: `body` holds the pieces from the notes to the question mark."""

    body: list[str]
    options: list[str]
    answer: str
    asked: Fact

    def text(self) -> str:
        """The question as it stands in the CSV file."""
        return "".join(self.body)


_FILLER_PIECES = [pieces(" " + filler) for filler in FILLERS]
_SUFFIX_PIECES = [pieces(" " + suffix) if suffix else () for suffix in SUFFIXES]


def pairs(stream: Stream, subject: Subject) -> list[tuple[str, str]]:
    """Random bindings of the subject's keys to its values; no key and no value occurs twice."""
    return list(zip(stream.sample(subject.keys, len(subject.values)), stream.shuffled(subject.values), strict=True))


def header(subject: str) -> Pieces:
    """The prompt's first lines."""
    name = subject.replace("_", " ")
    return pieces(f"Each question below is about {name}. Reply with one letter: A, B, C or D.\n\n")


def options_block(options: list[str]) -> list[str]:
    """What stands between a question and its answer."""
    block = []
    for letter, option in zip(LETTERS, options, strict=True):
        block += ["\n", letter, ".", " " + option]
    return [*block, "\n", "Answer", ":"]


def example(question: Question) -> list[str]:
    """A question with its answer, as it stands before the question that is to be answered."""
    return [*question.body, *options_block(question.options), " " + question.answer, "\n", "\n"]


def prefix(subject: str, shown: list[Question]) -> list[str]:
    """The pieces of a prompt before its question: header and examples, without the token that opens a text."""
    return [*header(subject), *(piece for question in shown for piece in example(question))]


def query(subject: Subject, key: str) -> list[str]:
    """The closing words that ask for one fact; they begin as its sentence does."""
    return [" " + key, " " + subject.verb, " what", "?"]


CLOSING = len(query(Subject("", [], "", []), "")) + len(options_block(["", "", "", ""]))
"""Pieces after the notes: the query, the options and `Answer:`."""


def choose_options(stream: Stream, value: str, others: list[str], answer: str) -> list[str]:
    """Three of the other values and the right one, which stands at the answer's letter."""
    options = stream.sample(others, 3)
    options.insert(LETTERS.index(answer), value)
    return options


def short_question(
    stream: Stream, subject: Subject, facts: list[tuple[str, str]], others: list[str], answer: str
) -> Question:
    """A question whose notes hold only `facts`; options come from them and, where they are few, from `others`."""
    body = list(pieces(OPENING))
    placed = []
    for key, value in facts:
        placed.append(Fact(key, value, len(body), len(body) + 4))
        body += [" " + key, " " + subject.verb, " " + value, "."]
    asked = placed[stream.below(len(placed))]
    near = [fact.value for fact in placed if fact is not asked]
    near += stream.sample(others, max(0, 3 - len(near)))
    options = choose_options(stream, asked.value, near, answer)
    return Question(body + query(subject, asked.key), options, answer, asked)


def notes(stream: Stream, subject: Subject, facts: list[tuple[str, str]], budget: int) -> tuple[list[str], list[Fact]]:
    """Facts and other sentences in random order, at most `budget` pieces, and where each fact stands."""
    body = list(pieces(OPENING))
    placed: list[Fact] = []
    while True:
        if len(placed) < len(facts) and (not placed or stream.below(100) < FACT_SHARE):
            key, value = facts[len(placed)]
            suffix = _SUFFIX_PIECES[stream.below(len(_SUFFIX_PIECES))]
            sentence: Pieces = (" " + key, " " + subject.verb, " " + value, *suffix, ".")
            fact = Fact(key, value, len(body), len(body) + len(sentence))
        else:
            sentence = _FILLER_PIECES[stream.below(len(_FILLER_PIECES))]
            fact = None
        if len(body) + len(sentence) > budget:
            return body, placed
        if fact:
            placed.append(fact)
        body += sentence


def long_question(
    stream: Stream,
    subject: Subject,
    facts: list[tuple[str, str]],
    before: int,
    total: int,
    chunk: int,
    answer: str,
    *,
    exactly: bool = False,
) -> Question:
    """A question whose prompt has at most `total` tokens, `before` of them ahead of it, and asks for a fact in `chunk`.

    The fact's sentence lies in that chunk as a whole. Options are values that stand in the same notes. `exactly` makes
    the prompt as long as it may be.
    """
    budget = total - before - CLOSING
    while True:
        body, placed = notes(stream, subject, facts, budget)
        if exactly and len(body) < budget:
            continue
        first, last = chunk * CHUNK - before, (chunk + 1) * CHUNK - before
        inside = [fact for fact in placed if first <= fact.start and fact.end <= last]
        if inside:
            break
    asked = inside[stream.below(len(inside))]
    others = [fact.value for fact in placed if fact is not asked]
    options = choose_options(stream, asked.value, others, answer)
    return Question(body + query(subject, asked.key), options, answer, asked)


def examples(stream: Stream, subject: Subject, facts: list[tuple[str, str]]) -> list[Question]:
    """Five short questions over the first `DEV_FACTS` facts."""
    letters = stream.shuffled([*LETTERS, LETTERS[stream.below(4)]])
    sizes = stream.shuffled([2, 2, 2, 3, 3])
    shown, used = [], 0
    for size, letter in zip(sizes, letters, strict=True):
        own = facts[used : used + size]
        others = [value for fact, (_, value) in enumerate(facts[:DEV_FACTS]) if not used <= fact < used + size]
        shown.append(short_question(stream, subject, own, others, letter))
        used += size
    return shown
