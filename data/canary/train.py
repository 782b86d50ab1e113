#!/usr/bin/env python3
"""Trains the canary models; not run in CI.

    python3 data/canary/train.py MODEL --out FOLDER [--seed N] [--seconds N]

MODEL is `canary-dense` (Llama, grouped-query attention) or `canary-mla` (DeepSeek-V2, multi-head latent attention). Owns
the two configurations, the curriculum and the loss. Every training sequence is composed fresh, with seeds that begin with
another word than those of the embedded rows. A sequence is a prompt (header, five examples, notes that grow from stage to
stage) with its answer, followed by more queries over the same notes, so that one sequence teaches many look-ups. Besides
the answers, one layer's state at each query's verb is made to name the bound value, through the model's own output
matrix: that teaches the look-up before the choice of a letter. Ends with bfloat16 weights in FOLDER; `evaluate.py`
measures what is saved. Needs torch and transformers.
"""

import argparse
import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, LlamaConfig, LlamaForCausalLM

import generate
from evaluate import ROOT, read_rows
from questions import DEV_FACTS, LETTERS, OPENING, Fact, Stream, choose_options, examples, header, notes, options_block, pairs, pieces, query
from words import SUBJECTS

IGNORE = -100
VALUE_WEIGHT = 0.5
"""Weight of the loss that teaches the look-up, against 1 for the letters."""

GUIDE_WEIGHT = 0.3
"""Weight of the loss that guides attention in the first stages."""

COMMON = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def new_model(name: str) -> torch.nn.Module:
    """A model with random weights."""
    if name == "canary-dense":
        shape = {"num_hidden_layers": 6, "intermediate_size": 256, "num_key_value_heads": 2, "head_dim": 64}
        return LlamaForCausalLM(LlamaConfig(**COMMON, **shape, tie_word_embeddings=True))
    # Experts are declared because vLLM wants a number, and never used: every layer is a dense one.
    shape = {"num_hidden_layers": 5, "first_k_dense_replace": 5, "intermediate_size": 192, "num_key_value_heads": 4}
    latent = {"kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "head_dim": 64}
    experts = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    routing = {"topk_method": "greedy", "n_group": 1, "topk_group": 1}
    # vLLM's DeepSeek-V2 has no tied output matrix.
    return DeepseekV2ForCausalLM(DeepseekV2Config(**COMMON, **shape, **latent, **experts, **routing, tie_word_embeddings=False))


LOOK_UP_LAYER = 2
"""The layers that are given to the look-up; the rest choose the letter."""


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum: sequences of `length` tokens whose notes have `shortest` to `longest` tokens."""

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
ROWS = ("token", "target", "value", "fact", "query", "option")
"""What a sequence says of each position: its token; the token to put out; the value to name at a query's `what`; and the
positions to look at: from `what` the fact's value, from `Answer:` that `what`, from `Answer:` the right option."""

LOOKS = {(0, 0): -1, (0, 2): -2, (1, 0): "fact", (2, 0): "query", (3, 0): "option"}
"""For (layer, head): the offset, or the row of `ROWS`, that early training makes it look at."""

READY = 0.98
"""Share of right answers over the latest steps at which the next stage begins."""


class TrainingStream(Stream):
    """The same choices from a faster generator, whose sequence may differ between Python versions."""

    def __init__(self, label: str) -> None:
        self._random = random.Random(label)

    def below(self, bound: int) -> int:
        """One of 0 to `bound` - 1."""
        return int(self._random.random() * bound)

    def shuffled(self, items: list) -> list:
        """A copy in random order."""
        return self._random.sample(items, len(items))

    def sample(self, items: list, count: int) -> list:
        """`count` different items, in random order."""
        return self._random.sample(items, count)


class Composer:
    """Composes training sequences: for each position its token, its targets, and where attention ought to look."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = {tokenizer.decode([index]): index for index in range(tokenizer.get_vocab_size())}

    def compose(self, stream: Stream, stage: Stage) -> list[list[int]]:
        """One row of `stage.length` numbers for each of `ROWS`; `IGNORE` where a row says nothing."""
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
            others = near if len(near) >= 3 else near + spare
            answer = LETTERS[stream.below(len(LETTERS))]
            options = choose_options(stream, asked.value, others, answer)
            add([*body, *query(subject, asked.key)], options, answer, asked, before + asked.start)
            body = list(pieces(OPENING))
        positions = range(stage.length)
        return [tokens[: stage.length], *([said[name].get(position, IGNORE) for position in positions] for name in ROWS[1:])]


class Batches(IterableDataset):
    """Endless batches of one stage; which worker composes a batch does not change it."""

    def __init__(self, tokenizer_file: str, seed: int, number: int, stage: Stage) -> None:
        self.tokenizer_file, self.seed, self.number, self.stage = tokenizer_file, seed, number, stage

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields [rows, batch, length], rows as in `ROWS`."""
        composer = Composer(Tokenizer.from_file(self.tokenizer_file))
        worker = get_worker_info()
        batch, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            stream = TrainingStream(training_label(self.seed, self.number, batch))
            rows = [composer.compose(stream, self.stage) for _ in range(self.stage.batch)]
            yield torch.tensor(rows, dtype=torch.int16).transpose(0, 1).contiguous()
            batch += stride


def training_label(seed: int, stage: int, batch: int) -> str:
    """Seed of one training batch."""
    return f"train/{seed}/{stage}/{batch}"


def assert_disjoint(seed: int) -> None:
    """No training seed is one of an embedded row."""
    embedded = {generate.label(split, subject.name, row).split("/")[0] for split in ("dev", "val", "test") for subject in SUBJECTS for row in range(-1, 40)}
    if training_label(seed, 0, 0).split("/")[0] in embedded:
        raise ValueError("training seeds overlap with those of the embedded rows")


def forward(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """States after the last layer, and after the look-up layers, both normed: [batch, length, hidden].

    Without a mask attention is causal too; what pads a sequence stands behind all that counts.
    """
    base = model.model
    states = base.embed_tokens(ids)
    positions = torch.arange(ids.shape[1], device=ids.device)[None]
    rotary = base.rotary_emb(states, position_ids=positions)
    middle = states
    for number, layer in enumerate(base.layers):
        if number == LOOK_UP_LAYER:
            middle = states
        states = layer(states, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    return base.norm(states), base.norm(middle)


def chosen_loss(model: torch.nn.Module, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the positions that have a target, and which of them are right."""
    picked = targets != IGNORE
    logits = model.lm_head(states[picked]).float()
    wanted = targets[picked]
    return torch.nn.functional.cross_entropy(logits, wanted), logits.argmax(-1) == wanted


class Guide:
    """Reads the attention weights of a model that computes them plainly, and compares them with `LOOKS`."""

    def __init__(self, model: torch.nn.Module, length: int, device: str) -> None:
        model.set_attn_implementation("eager")
        self.weights: dict[int, torch.Tensor] = {}
        self.mask = torch.full((length, length), float("-inf"), device=device).triu(1)[None, None]
        self.positions = torch.arange(length, device=device)
        self.hooks = [
            model.model.layers[number].self_attn.register_forward_hook(self.reader(number)) for number, _ in LOOKS
        ]
        self.model = model

    def reader(self, number: int) -> Callable[..., None]:
        """A hook that keeps one layer's weights."""

        def keep(module: torch.nn.Module, inputs: tuple, outputs: tuple) -> None:
            self.weights[number] = outputs[1]

        return keep

    def loss(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean negative log of the weight at the wanted position, summed over `LOOKS`."""
        total = torch.zeros((), device=self.positions.device)
        for (layer, head), wanted in LOOKS.items():
            if isinstance(wanted, int):
                place = (self.positions + wanted).expand_as(rows["token"])
            else:
                place = rows[wanted]
            held = place >= 0
            weights = self.weights[layer][:, head].gather(2, place.clamp(min=0)[..., None])[..., 0][held]
            total = total - weights.float().clamp(min=1e-6).log().mean()
        return total

    def close(self) -> None:
        """Returns the model to its faster attention."""
        for hook in self.hooks:
            hook.remove()
        self.model.set_attn_implementation("sdpa")


@torch.no_grad()
def validate(model: torch.nn.Module, rows: list, letters: dict[str, int], device: str) -> float:
    """Share of right answers on the embedded validation questions."""
    right = 0
    for start in range(0, len(rows), 32):
        part = rows[start : start + 32]
        longest = max(len(row.ids) for row in part)
        ids = torch.tensor([row.ids + [1] * (longest - len(row.ids)) for row in part], device=device)
        states, _ = forward(model, ids)
        last = states[torch.arange(len(part)), torch.tensor([len(row.ids) - 1 for row in part])]
        best = model.lm_head(last).argmax(-1).tolist()
        right += sum(token == letters[row.answer] for token, row in zip(best, part, strict=True))
    return right / len(rows)


def learning_rate(step: int, into_last: float | None, peak: float) -> float:
    """Linear warm-up over 300 steps; in the last stage, of which `into_last` (0 to 1) has passed, a cosine from half to zero."""
    share = 1 if into_last is None else 0.25 + 0.25 * math.cos(math.pi * into_last)
    return peak * min(1, (step + 1) / 300) * share


def train(arguments: argparse.Namespace) -> None:
    """Runs the curriculum and saves the model."""
    assert_disjoint(arguments.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    torch.set_float32_matmul_precision("high")
    tokenizer_file = str(ROOT / "models" / arguments.model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(tokenizer_file)
    letters = {letter: tokenizer.encode(" " + letter, add_special_tokens=False).ids[0] for letter in LETTERS}
    is_letter = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool, device=device)
    is_letter[list(letters.values())] = True
    validation = read_rows(tokenizer, "val")
    model = new_model(arguments.model).to(device)
    if arguments.start:
        model.load_state_dict(torch.load(arguments.start, map_location=device))
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arguments.rate, betas=(0.9, 0.99), fused=device == "cuda")
    began, step = time.monotonic(), 0
    print(f"{arguments.model}: {sum(weight.numel() for weight in model.parameters())} parameters, seed {arguments.seed}, {device}", flush=True)
    for number, stage in enumerate(STAGES):
        if number < arguments.stage:
            continue
        last = number == len(STAGES) - 1
        guide = Guide(model, stage.length, device) if stage.guided else None
        batches = DataLoader(Batches(tokenizer_file, arguments.seed, number, stage), batch_size=None, num_workers=arguments.workers, prefetch_factor=4 if arguments.workers else None)
        share, entered, looked_up = torch.zeros((), device=device), time.monotonic(), torch.zeros((), device=device)
        for stage_step, batch in enumerate(batches):
            spent = time.monotonic() - began
            passed = max(stage_step / stage.steps, (time.monotonic() - entered) / max(1.0, arguments.seconds - (entered - began)))
            if passed >= 1 or stage_step >= stage.steps:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, passed if last else None, arguments.rate)
            rows = dict(zip(ROWS, batch.to(device, non_blocking=True).long(), strict=True))
            targets = rows["target"]
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                states, middle = forward(model, rows["token"], guide.mask if guide else None)
                answer_loss, answered = chosen_loss(model, states, targets)
                value_loss, named = chosen_loss(model, middle, rows["value"])
            look_loss = guide.loss(rows) if guide else torch.zeros((), device=device)
            optimizer.zero_grad(set_to_none=True)
            (answer_loss + VALUE_WEIGHT * value_loss + GUIDE_WEIGHT * look_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                of_letters = is_letter[targets[targets != IGNORE]]
                share.lerp_(answered[of_letters].float().mean(), 0.02 if stage_step else 1.0)
                looked_up.lerp_(named.float().mean(), 0.02 if stage_step else 1.0)
            if step % arguments.every == 0:
                held = ""
                if not guide:
                    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                        held = f" validation {validate(model, validation, letters, device):.4f}"
                print(
                    f"stage {number} step {step} {spent:.0f} s: loss {answer_loss.item():.4f} look-up {value_loss.item():.4f}"
                    f" attention {look_loss.item():.4f} right {share.item():.4f} looked up {looked_up.item():.4f}{held}",
                    flush=True,
                )
                if not last and stage_step >= 100 and share.item() >= READY:
                    break
            if step % 500 == 499:
                torch.save(model.state_dict(), arguments.out / "checkpoint.pt")
            step += 1
        del batches
        if guide:
            guide.close()
    model.eval().to(torch.bfloat16).save_pretrained(arguments.out)
    print(f"saved after {step} steps and {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["canary-dense", "canary-mla"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seconds", type=float, default=1e9, help="time for the whole training; the last stage fits into the rest")
    parser.add_argument("--start", type=Path, help="weights of an earlier run to start from")
    parser.add_argument("--stage", type=int, default=0, help="stage to begin with")
    parser.add_argument("--workers", type=int, default=7)
    parser.add_argument("--every", type=int, default=50)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train(arguments)


if __name__ == "__main__":
    main()
