"""A connector of one's own that does what vLLM's ExampleConnector does."""

from vllm.distributed.kv_transfer.kv_connector.v1.example_connector import ExampleConnector


class UnchangedConnector(ExampleConnector):
    """Keeps the KV of prompts in a folder."""
