"""As whom an engine is asked: salts, LoRA adapters, and embeddings instead of tokens."""

from __future__ import annotations

from typing import Any

from kv_worker.protocol import Asker, Connector


def prompt(token_ids: list[int], asker: Asker | None, connector: Connector | None, engine: Any) -> dict[str, Any]:
    """Return a prompt as vLLM takes it; a salt of the asker's goes before the connector's."""
    asked: dict[str, Any]
    if asker is not None and asker.embeddings is not None:
        asked = {"prompt_embeds": _embeddings(token_ids, asker.embeddings, engine.vllm_config.model_config)}
    else:
        asked = {"prompt_token_ids": token_ids}
    salt = asker.cache_salt if asker is not None else None
    if salt is None and connector is not None:
        salt = connector.cache_salt
    if salt is not None:
        asked["cache_salt"] = salt
    return asked


def transfer(asker: Asker | None) -> dict[str, Any] | None:
    """Return what a request tells LMCache in this process of the asker, if it tells anything."""
    return {"lmcache.tag.identity": asker.tag} if asker is not None and asker.tag is not None else None


def adapter(asker: Asker | None) -> dict[str, Any]:
    """Return the argument of `add_request` that names the asker's adapter, if it has one."""
    if asker is None or asker.adapter is None:
        return {}
    from vllm.lora.request import LoRARequest

    return {"lora_request": LoRARequest(asker.adapter.name, asker.adapter.number, asker.adapter.folder)}


def _embeddings(token_ids: list[int], seed: int, model: Any) -> Any:
    """Return an embedding for each token, (tokens, hidden size): random, by the seed and the tokens alone."""
    import torch

    generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(token_ids))
    return torch.randn(len(token_ids), model.get_hidden_size(), generator=generator).to(model.dtype)
