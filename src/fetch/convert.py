"""Turns a GGUF file of a Llama or Qwen2 model into Hugging Face's layout, the same bytes every time."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

# What config.json must say; the rest is transformers' default or about the run that made it.
CONFIG_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "vocab_size",
)
FURTHER_FIELDS = {
    "llama": ("attention_bias", "head_dim", "mlp_bias"),
    "qwen2": ("use_sliding_window",),
}


def write_json(path: Path, value: dict[str, object]) -> None:
    """Writes a value so that equal values give equal bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Converts the GGUF file named first into the new folder named second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    gguf: Path = arguments.gguf
    folder: Path = arguments.folder
    folder.mkdir(parents=True)

    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    kind = loaded.config.model_type
    config = {name: getattr(loaded.config, name) for name in (*CONFIG_FIELDS, *FURTHER_FIELDS[kind])}
    # A float32 in the file: 1e-05 reads back as 9.999999747378752e-06.
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")
    # The loaded model counts as quantized and refuses to be saved; a fresh one takes its weights.
    fresh = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **config)).to(torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    weights = {
        name: weight.contiguous()
        for name, weight in sorted(fresh.state_dict().items())
        if not (config["tie_word_embeddings"] and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(
        folder / "config.json",
        {**config, "architectures": [type(fresh).__name__], "dtype": "bfloat16", "model_type": kind},
    )

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "model_max_length": config["max_position_embeddings"],
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )


if __name__ == "__main__":
    main()
