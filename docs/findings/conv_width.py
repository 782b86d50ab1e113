"""Shows that vLLM's kernel for the short convolutions of prompts computes one of 5 inputs wrong, and says nothing.

    pip install vllm==0.32.0
    python conv_width.py

Needs a GPU. Convolutions of 2 to 5 inputs over 300 tokens and 256 channels, each held against torch's own.

Exit status: 1 one of 5 inputs is wrong, 0 it is right, 2 the control failed: one of 2, 3 or 4 inputs is wrong.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

CHANNELS = 256
TOKENS = 300
BOUND = 1e-3
"""Of float32 sums of at most five products near 1 in size."""


def largest_error(width: int) -> tuple[float, float]:
    """The largest difference from torch's convolution, and the largest number of that."""
    import torch
    from vllm.model_executor.layers.mamba.ops.causal_conv1d import causal_conv1d_fn

    tokens = torch.randn(TOKENS, CHANNELS, device="cuda").t()
    weight = torch.randn(CHANNELS, width, device="cuda")
    computed = causal_conv1d_fn(
        tokens,
        weight,
        None,
        torch.zeros(4, width - 1, CHANNELS, device="cuda").transpose(-1, -2),
        torch.tensor([0, TOKENS], dtype=torch.int32, device="cuda"),
        cache_indices=torch.tensor([1], dtype=torch.int32, device="cuda"),
        has_initial_state=torch.tensor([False], device="cuda"),
        activation=None,
    )
    padded = torch.nn.functional.pad(tokens[None], (width - 1, 0))
    right = torch.nn.functional.conv1d(padded, weight[:, None], groups=CHANNELS)[0]
    return (computed - right).abs().max().item(), right.abs().max().item()


def main() -> int:
    """Compare each width."""
    import torch

    torch.manual_seed(0)
    wrong = {}
    for width in (2, 3, 4, 5):
        error, largest = largest_error(width)
        wrong[width] = error > BOUND
        print(f"{width} inputs: off by up to {error:.3g}, where numbers are up to {largest:.3g}")
    status = 2 if any(wrong[width] for width in (2, 3, 4)) else int(wrong[5])
    print(f"exit status {status}")
    return status


def end_as_failed(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End with 2 where the script itself fails: 1 would say that the fault is there."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(2)


if __name__ == "__main__":
    sys.excepthook = end_as_failed
    sys.exit(main())
