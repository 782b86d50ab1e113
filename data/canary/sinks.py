"""Attention sinks and experts in forms that train fast; weights and what they come to are those of transformers.

transformers has attention sinks in plain attention alone, which keeps every weight; and visits its experts one by one.
Here a sink is one key more ahead of all others, with a value of zeros, so that torch's own attention takes it; and
every expert sees every token, which costs little where experts are few and small. Main function: `register`.
"""

from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.moe import ExpertsInterface

ATTENTION = "with_sinks"
EXPERTS = "every_token"

EXTRA = 8
"""Elements that queries and keys get more, the first of which is used: fast attention takes widths in eights."""


def register() -> None:
    """Makes both known to transformers, by the names above."""
    AttentionInterface.register(ATTENTION, attend)
    ExpertsInterface.register(EXPERTS, ask_every_expert)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within the layer's window, of [batch, heads, length, width] without cache or padding before.

    The product of a query and the sink's key, scaled, is the sink; a first query of zeros keeps the mask causal.
    """
    if attention_mask is not None:
        raise ValueError("a mask besides the causal one is not known here")
    key, value = (states.repeat_interleave(module.num_key_value_groups, dim=1) for states in (key, value))
    sinks = torch.zeros(*key.shape[:2], 1, key.shape[-1] + EXTRA, dtype=key.dtype, device=key.device)
    sinks[..., key.shape[-1]] = (module.sinks / scaling).to(key.dtype)[None, :, None]
    ones = torch.ones(*query.shape[:3], 1, dtype=query.dtype, device=query.device)
    query = pad(torch.cat([query, ones], dim=-1), (0, EXTRA - 1, 1, 0))
    key = torch.cat([sinks, pad(key, (0, EXTRA))], dim=2)
    value = pad(value, (0, EXTRA, 1, 0))
    if module.sliding_window is None:
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    else:
        mask = window_mask(key.shape[2], module.sliding_window, key.device)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return attended[:, :, 1:, :-EXTRA].transpose(1, 2).contiguous(), None


def window_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Which of `length` keys a query sees: itself, those before it in its window, and the sink, which is the first."""
    places = torch.arange(length, device=device)
    ago = places[:, None] - places
    return (ago >= 0) & ((ago < window) | (places == 0))


def ask_every_expert(
    experts: Any, hidden_states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """What the chosen experts of [tokens, hidden] come to, weighted; `chosen` and `weights` are [tokens, choices]."""
    shares = torch.zeros(len(hidden_states), experts.num_experts, dtype=weights.dtype, device=weights.device)
    shares = shares.scatter(1, chosen, weights)
    total = torch.zeros_like(hidden_states)
    for number in range(experts.num_experts):
        gate_up = hidden_states @ experts.gate_up_proj[number] + experts.gate_up_proj_bias[number]
        out = experts._apply_gate(gate_up) @ experts.down_proj[number] + experts.down_proj_bias[number]
        total = total + out * shares[:, number, None]
    return total.to(hidden_states.dtype)
