#!/usr/bin/env python3
"""Measures a canary model with offline vLLM, in bfloat16, on the embedded test questions.

    python3 data/canary/evaluate_vllm.py MODEL [--questions N]

Owns one engine run with vLLM's prefix caching off and no LMCache. Prints the accuracy with a 95 % Wilson interval, by
chunk of the asked fact, and how often the second generated token is the line feed that it was taught.
"""

import argparse
import os
import sys
from pathlib import Path

from evaluate import read_rows, show
from questions import LETTERS


def main() -> None:
    """Runs the engine once and shows what it answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--questions", type=int, default=368, help="how many of the test questions, spread evenly")
    arguments = parser.parse_args()
    os.environ.update(
        {
            "HF_HUB_OFFLINE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_USE_FLASHINFER_SAMPLER": "0",
        }
    )

    import torch
    from tokenizers import Tokenizer
    from vllm import LLM, SamplingParams

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        spare_objects_without_dict()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    rows = read_rows(tokenizer, "test")
    rows = [rows[number * len(rows) // arguments.questions] for number in range(arguments.questions)]
    # On a CPU, vLLM 0.32's own rotary operation disagrees with the reference on MLA's strided tensors.
    rotary = {"compilation_config": {"custom_ops": ["-rotary_embedding"]}} if on_cpu else {}
    engine = LLM(
        str(arguments.model),
        dtype="bfloat16",
        max_model_len=2048,
        max_num_seqs=8,
        enable_prefix_caching=False,
        enforce_eager=True,
        gpu_memory_utilization=0.3,
        seed=0,
        **rotary,
    )
    sampling = SamplingParams(max_tokens=2, temperature=0, detokenize=False)
    outputs = engine.generate([{"prompt_token_ids": row.ids} for row in rows], sampling, use_tqdm=False)
    tokens = [list(output.outputs[0].token_ids) for output in outputs]
    letter = {name: tokenizer.encode(" " + name, add_special_tokens=False).ids[0] for name in LETTERS}
    line_feed = tokenizer.encode("\n", add_special_tokens=False).ids[0]
    right = [(row, said[0] == letter[row.answer]) for row, said in zip(rows, tokens, strict=True)]
    show(f"{arguments.model.name}\tvllm", right)
    print(f"second token a line feed: {sum(said[1:] == [line_feed] for said in tokens)}/{len(tokens)}", flush=True)
    sys.stderr.flush()
    os._exit(0)


def spare_objects_without_dict() -> None:
    """Keeps vLLM 0.32's scan of loaded modules from failing on objects whose `__dict__` is no dictionary."""
    from vllm.triton_utils import dispatcher

    dispatcher.vars = lambda value: value.__dict__ if isinstance(value.__dict__, dict) else {}


if __name__ == "__main__":
    main()
