#!/usr/bin/env python3
"""Makes a model folder with seeded random weights in the shape of DeepSeek-V2-Lite, 31 GB in bfloat16.

    python3 docs/evidence/two-gpus/make-v2-lite-random.py OUT [LAYERS]

Needs torch and safetensors, and a GPU for the numbers of the published run: torch's generators differ by device. The
tokenizer is canary-mla's. Weights are normal with a standard deviation of 1/sqrt(columns), norms 1 + 0.1 x normal.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

SEED = 20261128
TOKENIZER = Path(__file__).parents[3] / "data/models/canary-mla"
CONFIG: dict[str, Any] = {
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
HIDDEN, HEADS, RANK = CONFIG["hidden_size"], CONFIG["num_attention_heads"], CONFIG["kv_lora_rank"]
KEY, ROPE, VALUE = CONFIG["qk_nope_head_dim"], CONFIG["qk_rope_head_dim"], CONFIG["v_head_dim"]
EXPERT = CONFIG["moe_intermediate_size"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GENERATOR = torch.Generator(DEVICE).manual_seed(SEED)


def matrix(rows: int, columns: int) -> torch.Tensor:
    """Weights of a linear layer."""
    normal = torch.randn((rows, columns), generator=GENERATOR, device=DEVICE)
    return (normal * columns**-0.5).bfloat16().cpu()


def norm(size: int) -> torch.Tensor:
    """Weights of a norm."""
    return (1 + 0.1 * torch.randn(size, generator=GENERATOR, device=DEVICE)).bfloat16().cpu()


def mlp(name: str, width: int) -> dict[str, torch.Tensor]:
    """A gated layer."""
    return {
        f"{name}.gate_proj.weight": matrix(width, HIDDEN),
        f"{name}.up_proj.weight": matrix(width, HIDDEN),
        f"{name}.down_proj.weight": matrix(HIDDEN, width),
    }


def layer(number: int) -> dict[str, torch.Tensor]:
    """A decoder layer."""
    name = f"model.layers.{number}"
    weights = {
        f"{name}.input_layernorm.weight": norm(HIDDEN),
        f"{name}.post_attention_layernorm.weight": norm(HIDDEN),
        f"{name}.self_attn.q_proj.weight": matrix(HEADS * (KEY + ROPE), HIDDEN),
        f"{name}.self_attn.kv_a_proj_with_mqa.weight": matrix(RANK + ROPE, HIDDEN),
        f"{name}.self_attn.kv_a_layernorm.weight": norm(RANK),
        f"{name}.self_attn.kv_b_proj.weight": matrix(HEADS * (KEY + VALUE), RANK),
        f"{name}.self_attn.o_proj.weight": matrix(HIDDEN, HEADS * VALUE),
    }
    if number < CONFIG["first_k_dense_replace"]:
        return weights | mlp(f"{name}.mlp", CONFIG["intermediate_size"])
    weights[f"{name}.mlp.gate.weight"] = matrix(CONFIG["n_routed_experts"], HIDDEN)
    weights |= mlp(f"{name}.mlp.shared_experts", EXPERT * CONFIG["n_shared_experts"])
    for expert in range(CONFIG["n_routed_experts"]):
        weights |= mlp(f"{name}.mlp.experts.{expert}", EXPERT)
    return weights


def main() -> int:
    """Writes the folder."""
    try:
        folder, *wanted = sys.argv[1:]
        layers = int(wanted[0]) if wanted else CONFIG["num_hidden_layers"]
    except ValueError:
        print(__doc__, file=sys.stderr)
        return 2
    CONFIG["num_hidden_layers"] = layers
    out = Path(folder)
    out.mkdir(parents=True)
    files, total = {}, 0
    for number in range(layers + 1):
        if number == 0:
            vocabulary = CONFIG["vocab_size"]
            weights = {
                "model.embed_tokens.weight": matrix(vocabulary, HIDDEN),
                "lm_head.weight": matrix(vocabulary, HIDDEN),
                "model.norm.weight": norm(HIDDEN),
            }
        else:
            weights = layer(number - 1)
        file = f"model-{number:05}.safetensors"
        save_file(weights, out / file, {"format": "pt"})
        files.update(dict.fromkeys(weights, file))
        total += sum(tensor.nbytes for tensor in weights.values())
        print(f"{file}: {total / 1e9:.1f} GB so far", flush=True)
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1))
    for tokenizer in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / tokenizer, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
