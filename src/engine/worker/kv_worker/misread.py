"""Faults of the engine's side, planted to see that they show: prompts that are served whole are misread.

A prompt of a whole number of chunks is served all but its last token. `all_served` makes this rank take all of it as
served, and compute what stands behind it; `one_position_off` makes it compute the last token at the position behind its
own. Nothing that is stored changes.
"""

from __future__ import annotations

from typing import Any


class Misreader:
    """Follows the scheduler's output into one rank's model runner; `how` is the fault, None for none."""

    def __init__(self, model_runner: Any, chunk_tokens: int) -> None:
        """Hook into the model runner."""
        self.how: str | None = None
        self._chunk_tokens = chunk_tokens
        # Of the coming forward pass: positions that are to be wrong.
        self._wrong: list[int] = []
        execute = model_runner.execute_model

        def execute_model(scheduler_output: Any, *arguments: Any, **named: Any) -> Any:
            self._begin(scheduler_output)
            return execute(scheduler_output, *arguments, **named)

        model_runner.execute_model = execute_model
        model_runner.get_model().register_forward_pre_hook(self._shift, with_kwargs=True)

    def _begin(self, output: Any) -> None:
        self._wrong.clear()
        if self.how is None:
            return
        for new in output.scheduled_new_reqs:
            tokens = len(new.prompt_token_ids or ())
            if tokens % self._chunk_tokens or new.num_computed_tokens + 1 != tokens:
                continue
            if self.how == "all_served":
                new.num_computed_tokens = tokens
            else:
                self._wrong.append(tokens - 1)

    def _shift(self, _: Any, arguments: Any, named: dict[str, Any]) -> Any:
        import torch

        if not self._wrong:
            return None
        positions = named["positions"]
        wrong = torch.isin(positions, torch.tensor(self._wrong, device=positions.device, dtype=positions.dtype))
        return arguments, named | {"positions": positions + wrong.to(positions.dtype)}
