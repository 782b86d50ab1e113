#!/usr/bin/env python3
"""Makes a model folder with seeded random weights in the shape of a published model, in bfloat16.

    python3 docs/evidence/shapes/make-shape.py SHAPE OUT [--tokenizer FOLDER] [--layers N] [--narrower N]

SHAPE is `llama-3.1-8b` (16 GB) or `deepseek-v2-lite` (31 GB). Needs torch and safetensors, and a GPU for the numbers of
the published runs: torch's generators differ by device. The tokenizer is canary-mla's unless a folder holds another
(`tokenizer.json`, `tokenizer_config.json`). Weights are normal with a standard deviation of 1/sqrt(columns), norms
1 + 0.1 x normal. For a processor `--layers` takes fewer layers, and `--narrower N` an N-th of each layer's width, of
its heads, KV heads and experts and of the vocabulary; a head and a latent vector stay as large as they are.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SEED = 20261128
TOKENIZER = Path(__file__).parents[3] / "data/models/canary-mla"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GENERATOR = torch.Generator(DEVICE).manual_seed(SEED)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}
V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "pretraining_tp": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "greedy",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 102400,
}


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Weights of a linear layer."""
    normal = torch.randn((rows, columns), generator=GENERATOR, device=DEVICE)
    return (normal * columns**-0.5).bfloat16().cpu()


def norm(size: int) -> torch.Tensor:
    """Weights of a norm."""
    return (1 + 0.1 * torch.randn(size, generator=GENERATOR, device=DEVICE)).bfloat16().cpu()


def mlp(name: str, hidden: int, width: int) -> dict[str, torch.Tensor]:
    """A gated layer."""
    return {
        f"{name}.gate_proj.weight": matrix(width, hidden),
        f"{name}.up_proj.weight": matrix(width, hidden),
        f"{name}.down_proj.weight": matrix(hidden, width),
    }


def norms(name: str, hidden: int) -> dict[str, torch.Tensor]:
    """The two norms of a decoder layer."""
    return {f"{name}.{place}_layernorm.weight": norm(hidden) for place in ("input", "post_attention")}


def llama_layer(config: dict[str, Any], number: int) -> dict[str, torch.Tensor]:
    """A decoder layer of `LLAMA`."""
    name, hidden, size = f"model.layers.{number}", config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return norms(name, hidden) | {
        f"{name}.self_attn.q_proj.weight": matrix(queries, hidden),
        f"{name}.self_attn.k_proj.weight": matrix(keys, hidden),
        f"{name}.self_attn.v_proj.weight": matrix(keys, hidden),
        f"{name}.self_attn.o_proj.weight": matrix(hidden, queries),
        **mlp(f"{name}.mlp", hidden, config["intermediate_size"]),
    }


def v2_lite_layer(config: dict[str, Any], number: int) -> dict[str, torch.Tensor]:
    """A decoder layer of `V2_LITE`."""
    name, hidden, rank = f"model.layers.{number}", config["hidden_size"], config["kv_lora_rank"]
    heads, expert = config["num_attention_heads"], config["moe_intermediate_size"]
    key, rope, value = (config[f"{part}_head_dim"] for part in ("qk_nope", "qk_rope", "v"))
    weights = norms(name, hidden) | {
        f"{name}.self_attn.q_proj.weight": matrix(heads * (key + rope), hidden),
        f"{name}.self_attn.kv_a_proj_with_mqa.weight": matrix(rank + rope, hidden),
        f"{name}.self_attn.kv_a_layernorm.weight": norm(rank),
        f"{name}.self_attn.kv_b_proj.weight": matrix(heads * (key + value), rank),
        f"{name}.self_attn.o_proj.weight": matrix(hidden, heads * value),
    }
    if number < config["first_k_dense_replace"]:
        return weights | mlp(f"{name}.mlp", hidden, config["intermediate_size"])
    weights[f"{name}.mlp.gate.weight"] = matrix(config["n_routed_experts"], hidden)
    weights |= mlp(f"{name}.mlp.shared_experts", hidden, expert * config["n_shared_experts"])
    for place in range(config["n_routed_experts"]):
        weights |= mlp(f"{name}.mlp.experts.{place}", hidden, expert)
    return weights


NARROWED = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "n_routed_experts",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def narrowed(published: dict[str, Any], divisor: int) -> dict[str, Any]:
    """A configuration whose layers are an N-th as wide; SystemExit where a size cannot be divided."""
    for name in NARROWED:
        if published.get(name, 0) % divisor:
            sys.exit(f"{name} {published[name]} cannot be divided by {divisor}; take a smaller --narrower")
    narrower = {name: published[name] // divisor for name in NARROWED if name in published}
    if published["eos_token_id"] >= narrower["vocab_size"]:
        narrower |= {"bos_token_id": 0, "eos_token_id": 1}
    return published | narrower


Layer = Callable[[dict[str, Any], int], dict[str, torch.Tensor]]
SHAPES: dict[str, tuple[dict[str, Any], Layer]] = {
    "llama-3.1-8b": (LLAMA, llama_layer),
    "deepseek-v2-lite": (V2_LITE, v2_lite_layer),
}


def main() -> int:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--layers", type=int, help="fewer than the published model's")
    parser.add_argument("--narrower", type=int, default=1, help="an N-th of the published model's widths")
    options = parser.parse_args()
    published, layer = SHAPES[options.shape]
    config = narrowed(published, options.narrower) | ({"num_hidden_layers": options.layers} if options.layers else {})
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    options.out.mkdir(parents=True)
    files, total = {}, 0
    for number in range(config["num_hidden_layers"] + 1):
        if number == 0:
            weights = {
                "model.embed_tokens.weight": matrix(vocabulary, hidden),
                "lm_head.weight": matrix(vocabulary, hidden),
                "model.norm.weight": norm(hidden),
            }
        else:
            weights = layer(config, number - 1)
        file = f"model-{number:05}.safetensors"
        save_file(weights, options.out / file, {"format": "pt"})
        files.update(dict.fromkeys(weights, file))
        total += sum(tensor.nbytes for tensor in weights.values())
        print(f"{file}: {total / 1e9:.1f} GB so far", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (options.out / "model.safetensors.index.json").write_text(json.dumps(index))
    (options.out / "config.json").write_text(json.dumps(config, indent=1))
    for tokenizer in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(options.tokenizer / tokenizer, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
