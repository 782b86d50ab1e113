#!/usr/bin/env python3
"""Trains the canary models; not run in CI.

    python3 data/canary/train.py MODEL --out FOLDER [--seed N] [--rate R] [--seconds N] [--start FOLDER --stage N]

MODEL is `canary-dense` (Llama, grouped-query attention), `canary-mla` (DeepSeek-V2, multi-head latent attention),
`canary-swa` (Gemma 3, two layers with a sliding window before each one that sees all), `canary-hybrid` (LFM2, a short
convolution before each layer with attention) or `canary-sinks` (gpt-oss, attention sinks, each second layer with a
window, experts).
Owns the five configurations and the loss; leaves the sequences to `curriculum.py`. Besides the answers, the state after
the look-up layers is made to name the bound value at each query, and in the first stages a few heads are told where to
look: the look-up then emerges within a minute on one GPU. Ends with bfloat16 weights in FOLDER; `evaluate.py` measures
what is saved. Needs torch and transformers. Weights differ a little between devices and versions; those committed have
their digests in `data/README.md` and the log of their run in `train.log`.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

import sinks
from curriculum import IGNORE, ROWS, STAGES, Batches, assert_seeds_are_disjoint
from evaluate import ROOT, Row, read_rows
from questions import LETTERS
from words import WHOLE_CHUNKS

PEAK_RATE = 2e-3
"""Highest learning rate where none is given."""

WARM_UP = 300
LATEST = 0.02
"""Weight of the newest step in the running shares of right answers."""

READY = 0.98
"""Running share of right answers at which the next stage begins."""

NEWS = 50
"""Steps from one line of the log to the next."""

VALUE_WEIGHT = 0.5
"""Weight of the loss that teaches the look-up, against 1 for the answers."""

GUIDE_WEIGHT = 0.3
"""Weight of the loss that guides attention."""

TURNING = 5
"""Pairs of numbers in a head of `canary-hybrid`, the first ones, that its rotary embedding turns within a prompt."""

WINDOW = 512
"""Tokens that a layer of `canary-swa` with a sliding window sees: fewer than a prompt has, and whole blocks."""


@dataclass(frozen=True)
class LookUp:
    """Where a model is taught to look a value up."""

    layers: int
    """Layers that are given to the look-up; the rest choose the letter."""

    looks: dict[tuple[int, int], int | str]
    """For (layer, head): the offset, or the row of `ROWS`, that a guided stage makes it look at."""


def look_up(config: Any) -> LookUp:
    """The look-up of a model; a value may lie anywhere, so it is read in a layer that sees all."""
    attending = [layer for layer in range(config.num_hidden_layers) if kind_of(config, layer) != "conv"]
    # A convolution sees the tokens before its own by itself.
    before = {(0, 0): -1, (0, config.num_attention_heads // 2): -2} if 0 in attending else {}
    reading = next(place for place, layer in enumerate(attending) if layer and has_no_window(config, layer))
    rest = {(layer, 0): row for layer, row in zip(attending[reading:], ("fact", "query", "option"), strict=False)}
    return LookUp(attending[reading] + 1, before | rest)


def kind_of(config: Any, layer: int) -> str:
    """What kind of layer this is: `full_attention`, `sliding_attention` or `conv`."""
    kinds = getattr(config, "layer_types", None)
    return "full_attention" if kinds is None else str(kinds[layer])


def has_no_window(config: Any, layer: int) -> bool:
    """Whether a layer sees all tokens."""
    return kind_of(config, layer) == "full_attention"


COMMON = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.05,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def new_model(name: str) -> Any:
    """A model with random weights."""
    if name == "canary-dense":
        shape = {"num_hidden_layers": 6, "intermediate_size": 256, "head_dim": 64}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**COMMON, **shape, **heads, tie_word_embeddings=True))
    if name == "canary-swa":
        kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
        shape = {
            "num_hidden_layers": len(kinds),
            "layer_types": kinds,
            "sliding_window": WINDOW,
            "intermediate_size": 256,
        }
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "query_pre_attn_scalar": 64}
        return Gemma3ForCausalLM(Gemma3TextConfig(**COMMON, **shape, **heads, tie_word_embeddings=True))
    if name == "canary-hybrid":
        return new_hybrid()
    if name == "canary-sinks":
        return new_sinks()
    shape = {"num_hidden_layers": 4, "intermediate_size": 256, "head_dim": 64}
    latent = {"kv_lora_rank": 512, "q_lora_rank": None, "qk_rope_head_dim": 64}
    # With 64 turned and 64 other numbers a head, values of 128 are what each of vLLM's backends for prefill takes.
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 64, "v_head_dim": 128}
    # Experts are declared because vLLM wants a number, and never used: every layer is a dense one.
    experts = {"first_k_dense_replace": 4, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    routing = {"moe_intermediate_size": 64, "topk_method": "greedy", "n_group": 1, "topk_group": 1}
    # vLLM's DeepSeek-V2 has no tied output matrix.
    return DeepseekV2ForCausalLM(
        DeepseekV2Config(**COMMON, **shape, **latent, **heads, **experts, **routing, tie_word_embeddings=False)
    )


def new_hybrid() -> Lfm2ForCausalLM:
    """LFM2: short convolutions and attention in turn.

    A convolution keeps 256 times 2 numbers, in 32 bits as many bytes as a layer with attention of 16 tokens in 16 bits
    (2 times 32 numbers each), vLLM's smallest block for GPUs: both fill a page. Of more than 4 inputs none is computed
    on a GPU by vLLM 0.32: of 5 its kernel for prompts takes the first one five times.
    """
    kinds = ["conv", "full_attention"] * 3
    shape = {"num_hidden_layers": len(kinds), "layer_types": kinds, "hidden_size": 256, "intermediate_size": 192}
    convolution = {"conv_L_cache": 3, "block_auto_adjust_ff_dim": False}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 1}
    # So slow that half of a head's 32 elements hardly turn in a prompt: those can say what a token is.
    rotary = {"rope_type": "default", "rope_theta": 1e10}
    common = {name: value for name, value in COMMON.items() if name != "rms_norm_eps"} | {"norm_eps": 1e-6}
    sizes = common | shape | convolution | heads
    config = Lfm2Config(**sizes, rope_parameters=rotary, tie_word_embeddings=True)
    # transformers knows one width; vLLM's LFM2 asks for each by its name.
    config.conv_dim = config.block_dim = config.hidden_size
    model = Lfm2ForCausalLM(config)
    begin_with_copies(model)
    return model


@torch.no_grad()
def begin_with_copies(model: Lfm2ForCausalLM) -> None:
    """Makes the first convolution copy the token two back, and the first look-up match what it copied.

    A convolution multiplies what it copies by two gates, which are nothing in particular at first: from random weights
    the look-up never began to see a key two tokens back (seven trainings). An embedding lies in the first half of a
    state, its first number the same in all, so that gates of 1 can be had of it; copies lie in the second half.
    """
    width, head = model.config.hidden_size, model.config.hidden_size // model.config.num_attention_heads
    half, constant, scale = width // 2, 0.3, COMMON["initializer_range"]
    copied = torch.arange(half - 1)
    embedding = model.model.embed_tokens.weight
    embedding[:, half:], embedding[:, 0] = 0, constant
    for layer in model.model.layers:
        # Else what layers add at random is several times what an embedding says.
        (layer.conv if hasattr(layer, "conv") else layer.self_attn).out_proj.weight.mul_(0.2)
        layer.feed_forward.w2.weight.mul_(0.2)
    convolution, look = model.model.layers[0].conv, model.model.layers[1].self_attn
    normed = constant / math.sqrt((constant**2 + (half - 1) * scale**2) / width)
    for gate in (copied, width + copied):
        convolution.in_proj.weight[gate] *= 0.1
        convolution.in_proj.weight[gate, 0] = 1 / normed
    convolution.in_proj.weight[2 * width + copied] = torch.eye(width)[1:half]
    convolution.conv.weight[copied] = torch.tensor([1.0, 0.0, 0.0])
    convolution.out_proj.weight[:, copied] = scale * torch.eye(width)[:, half + copied]
    # The first head: queries and keys are the copies, in pairs of numbers that the rotary embedding hardly turns.
    still = torch.arange(head) % (head // 2) >= TURNING
    matched = still[:, None] * torch.randn(head, half) / math.sqrt(half)
    for projection in (look.q_proj, look.k_proj):
        projection.weight[:head] *= 0.1
        projection.weight[:head, half:] += matched
    look.q_layernorm.weight.fill_(2)
    named = torch.linalg.qr(torch.randn(half, head))[0]
    named[0] = 0
    look.v_proj.weight[:, :half], look.v_proj.weight[:, half:] = named.T, 0
    look.out_proj.weight[:half, :head] = 0.1 * named


def new_sinks() -> GptOssForCausalLM:
    """gpt-oss: a window of 128 tokens and full attention in turn, sinks, four experts."""
    kinds = ["sliding_attention", "full_attention"] * 3
    shape = {"num_hidden_layers": len(kinds), "layer_types": kinds, "sliding_window": 128, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    # Others than YaRN's positions vLLM's gpt-oss does not take.
    lengths = {"factor": 2.0, "original_max_position_embeddings": 4096}
    yarn = {"rope_type": "yarn", "rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
    config = GptOssConfig(**COMMON, **shape, **heads, **experts, rope_parameters=yarn | lengths)
    sinks.register()
    model = GptOssForCausalLM(config)
    model.set_experts_implementation(sinks.EXPERTS)
    model.set_attn_implementation(sinks.ATTENTION)
    return model


def forward(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """States after the last layer, and after the look-up layers, both normed: [batch, length, hidden].

    What pads a sequence stands behind all that counts.
    """
    base = model.model
    output = base(ids, output_hidden_states=True, use_cache=False)
    norm = base.embedding_norm if hasattr(base, "embedding_norm") else base.norm
    return output.last_hidden_state, norm(output.hidden_states[look_up(model.config).layers])


def chosen_loss(model: Any, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy over the positions that have a target, and which of them are right."""
    picked = targets != IGNORE
    logits = model.lm_head(states[picked]).float()
    wanted = targets[picked]
    return torch.nn.functional.cross_entropy(logits, wanted), logits.argmax(-1) == wanted


class Guide:
    """Reads the attention weights of a model that computes them plainly, and compares them with where it is to look."""

    def __init__(self, model: Any, length: int, device: str) -> None:
        self.faster = model.config._attn_implementation
        model.set_attn_implementation("eager")
        self.model = model
        self.looks = look_up(model.config).looks
        self.weights: dict[int, torch.Tensor] = {}
        self.positions = torch.arange(length, device=device)
        self.hooks = [
            model.model.layers[number].self_attn.register_forward_hook(self.reader(number)) for number, _ in self.looks
        ]

    def reader(self, number: int) -> Callable[..., None]:
        """A hook that keeps one layer's weights."""

        def keep(module: torch.nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
            self.weights[number] = outputs[1]

        return keep

    def loss(self, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean negative log of the weight at the wanted position, summed over `looks`."""
        total = torch.zeros((), device=self.positions.device)
        for (layer, head), wanted in self.looks.items():
            if isinstance(wanted, int):
                place = (self.positions + wanted).expand_as(rows["token"])
            else:
                place = rows[wanted]
            weights = self.weights[layer][:, head].gather(2, place.clamp(min=0)[..., None])[..., 0]
            total = total - weights[place >= 0].float().clamp(min=1e-6).log().mean()
        return total

    def close(self) -> None:
        """Returns the model to its faster attention."""
        for hook in self.hooks:
            hook.remove()
        self.model.set_attn_implementation(self.faster)


class Trainer:
    """One model on its way through the curriculum."""

    def __init__(self, name: str, seed: int, workers: int, seconds: float, rate: float) -> None:
        assert_seeds_are_disjoint(seed)
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.seed, self.workers, self.seconds, self.rate = seed, workers, seconds, rate
        self.tokenizer_file = ROOT / "models" / "canary-dense" / "tokenizer.json"  # the same for each
        tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        self.letters = {letter: tokenizer.token_to_id("Ġ" + letter) for letter in LETTERS}
        self.is_letter = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.bool, device=self.device)
        self.is_letter[list(self.letters.values())] = True
        self.validation = [row for row in read_rows(tokenizer, "val") if row.subject != WHOLE_CHUNKS.name]
        self.model = new_model(name).to(self.device)
        decayed = [weight for weight in self.model.parameters() if weight.dim() > 1]
        plain = [weight for weight in self.model.parameters() if weight.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=self.device == "cuda")
        self.step, self.began = 0, time.monotonic()
        count = sum(weight.numel() for weight in self.model.parameters())
        print(f"{name}: {count} parameters, seed {seed}, rate {rate}, {self.device}", flush=True)

    def go_on_from(self, folder: Path) -> None:
        """Takes the weights that an earlier training saved; its optimiser's memory is not kept."""
        saved = type(self.model).from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def spent(self) -> float:
        """Seconds since the model was there."""
        return time.monotonic() - self.began

    def autocast(self) -> torch.autocast:
        """bfloat16 where it is fast."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def run_stage(self, number: int) -> None:
        """Trains until the stage's steps or its seconds are over or, before the last stage, its answers are right.

        Each stage that comes leaves those behind it their equal share of the seconds, so that the last has some.
        """
        stage, last = STAGES[number], number == len(STAGES) - 1
        entered = self.spent()
        seconds = (self.seconds - entered) / (len(STAGES) - number)
        guide = Guide(self.model, stage.length, self.device) if stage.guided else None
        batches = DataLoader(Batches(self.tokenizer_file, self.seed, number), batch_size=None, num_workers=self.workers)
        right = looked_up = torch.zeros((), device=self.device)
        for stage_step, batch in zip(range(stage.steps), batches, strict=False):
            over = (self.spent() - entered) / max(seconds, 1e-9)
            if over >= 1:
                break
            self.set_rate(max(stage_step / stage.steps, over) if last else None)
            rows = dict(zip(ROWS, batch.to(self.device).long(), strict=True))
            losses, answered, named = self.take_step(rows, guide)
            right = right.lerp(answered, LATEST if stage_step else 1.0)
            looked_up = looked_up.lerp(named, LATEST if stage_step else 1.0)
            if self.step % NEWS == 0:
                shares = [f"right {right.item():.4f}", f"looked up {looked_up.item():.4f}"]
                if not guide:
                    shares.append(f"validation {self.validate():.4f}")
                print(f"stage {number} step {self.step} {self.spent():.0f} s:", *losses, *shares, flush=True)
                if not last and stage_step >= 2 * NEWS and right.item() >= READY:
                    break
            self.step += 1
        if guide:
            guide.close()

    def set_rate(self, into_last: float | None) -> None:
        """Linear warm-up; in the last stage, of which `into_last` (0 to 1) has passed, a cosine from half to zero."""
        share = 1 if into_last is None else 0.25 + 0.25 * math.cos(math.pi * into_last)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / WARM_UP) * share

    def take_step(
        self, rows: dict[str, torch.Tensor], guide: Guide | None
    ) -> tuple[list[str], torch.Tensor, torch.Tensor]:
        """One update; the losses in words, the share of right letters and that of values looked up."""
        with self.autocast():
            states, middle = forward(self.model, rows["token"])
            answer_loss, answered = chosen_loss(self.model, states, rows["target"])
            value_loss, named = chosen_loss(self.model, middle, rows["value"])
        look_loss = guide.loss(rows) if guide else torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        (answer_loss + VALUE_WEIGHT * value_loss + GUIDE_WEIGHT * look_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        letters = self.is_letter[rows["target"][rows["target"] != IGNORE]]
        losses = {"loss": answer_loss, "look-up": value_loss, "attention": look_loss}
        words = [f"{name} {loss.item():.4f}" for name, loss in losses.items()]
        return words, answered[letters].float().mean(), named.float().mean()

    @torch.no_grad()
    def validate(self) -> float:
        """Share of right answers on the embedded validation questions."""
        right = 0
        for start in range(0, len(self.validation), 32):
            part: list[Row] = self.validation[start : start + 32]
            longest = max(len(row.ids) for row in part)
            ids = torch.tensor([row.ids + [1] * (longest - len(row.ids)) for row in part], device=self.device)
            with self.autocast():
                states, _ = forward(self.model, ids)
                last = states[torch.arange(len(part)), torch.tensor([len(row.ids) - 1 for row in part])]
                best = self.model.lm_head(last).argmax(-1).tolist()
            right += sum(token == self.letters[row.answer] for token, row in zip(best, part, strict=True))
        return right / len(self.validation)


def main() -> None:
    """Runs the curriculum and saves the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["canary-dense", "canary-mla", "canary-swa", "canary-hybrid", "canary-sinks"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=7, help="processes that compose sequences")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="the highest learning rate")
    parser.add_argument("--seconds", type=float, default=math.inf, help="train no longer; the last rates fall faster")
    parser.add_argument("--start", type=Path, help="a folder that an earlier training saved, to go on from")
    parser.add_argument("--stage", type=int, default=0, choices=range(len(STAGES)), help="the first stage, from 0")
    arguments = parser.parse_args()
    trainer = Trainer(arguments.model, arguments.seed, arguments.workers, arguments.seconds, arguments.rate)
    if arguments.start:
        trainer.go_on_from(arguments.start)
    for number in range(arguments.stage, len(STAGES)):
        trainer.run_stage(number)
    trainer.model.eval().to(torch.bfloat16).save_pretrained(arguments.out)
    print(f"saved after {trainer.step} steps and {trainer.spent():.0f} s", flush=True)


if __name__ == "__main__":
    main()
