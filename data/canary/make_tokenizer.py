#!/usr/bin/env python3
"""Writes the canary's tokenizer (`tokenizer.json`, `tokenizer_config.json`) into both model folders.

Byte-level BPE, complete over any UTF-8 text, 2048 tokens: two special ones, the 256 bytes, merges learnt from general
English (Python's own documentation topics and this repository's licence text), and every word of the canary. The words
are whole tokens through BPE's `ignore_merges`: a pre-token that is in the vocabulary is taken as it is, without a chain
of merges that would fill the vocabulary with fragments. Needs the package `tokenizers`; the topics are those of the
Python that runs it (3.11.7 made the committed files).
"""

import json
from pathlib import Path
from pydoc_data.topics import topics

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import words
from questions import LETTERS, OPENING, header, options_block, pieces

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = [ROOT / "models" / "canary-dense", ROOT / "models" / "canary-mla"]
VOCABULARY = 2048
OPEN_TEXT, CLOSE_TEXT = "<|begin_of_text|>", "<|end_of_text|>"
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n|\s+(?!\S)|\s+"
"""A word with the space before it, one digit, a run of marks, one line feed, other white space."""


def canary_pieces() -> list[str]:
    """Every piece that a canary prompt can hold, in a fixed order."""
    texts = [OPENING, " what?", " Notes", *(" " + letter for letter in LETTERS), "\n"]
    texts += [" " + filler for filler in words.FILLERS] + [" " + suffix for suffix in words.SUFFIXES if suffix]
    for subject in words.SUBJECTS:
        texts += ["".join(header(subject.name)), " " + subject.verb]
        texts += [" " + word for word in [*subject.keys, *subject.values]]
    found = [piece for text in texts for piece in pieces(text)]
    found += [piece for piece in options_block(list(LETTERS))]
    return list(dict.fromkeys(found))


def pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Splits by `SPLIT`, then maps bytes to the letters of byte-level BPE."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def learn_merges(count: int) -> list[tuple[str, str]]:
    """The first `count` merges of general English text."""
    trainee = Tokenizer(models.BPE())
    trainee.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + count, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    licence = (ROOT.parent / "LICENSE").read_text()
    trainee.train_from_iterator([licence, *(topics[name] for name in sorted(topics))], trainer)
    return [(left, right) for left, right in json.loads(trainee.to_str())["model"]["merges"]]


def build() -> Tokenizer:
    """The whole tokenizer; learns as many merges as the canary's words leave room for."""
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = ["".join(part for part, _ in encode.pre_tokenize_str(piece)) for piece in canary_pieces()]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learnt = learn_merges(VOCABULARY)
    room = VOCABULARY - 2 - len(alphabet)
    count = 0
    while count + len(set(spelled) - set(alphabet) - {a + b for a, b in learnt[:count]}) < room:
        count += 1
    merges = learnt[:count]
    tokens = dict.fromkeys([OPEN_TEXT, CLOSE_TEXT, *alphabet, *(a + b for a, b in merges), *spelled])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != VOCABULARY:
        raise ValueError(f"the vocabulary has {len(vocabulary)} tokens, not {VOCABULARY}")
    print(f"{len(merges)} merges, {len(set(spelled))} canary pieces, {len(vocabulary)} tokens")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(OPEN_TEXT, special=True), AddedToken(CLOSE_TEXT, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{OPEN_TEXT} $A",
        pair=f"{OPEN_TEXT} $A {OPEN_TEXT} $B",
        special_tokens=[(OPEN_TEXT, vocabulary[OPEN_TEXT])],
    )
    return tokenizer


CONFIG = {
    "add_bos_token": True,
    "bos_token": OPEN_TEXT,
    "clean_up_tokenization_spaces": False,
    "eos_token": CLOSE_TEXT,
    "model_max_length": 8192,
    "pad_token": CLOSE_TEXT,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def main() -> None:
    """Builds the tokenizer once and writes it twice."""
    tokenizer = build()
    for folder in FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    main()
