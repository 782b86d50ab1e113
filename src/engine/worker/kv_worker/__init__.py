"""The Python side of the worker protocol: one vLLM engine behind JSON lines.

It observes (token ids, log-probabilities, cached tokens, counters) and never judges. Nothing outside the standard
library is imported before a `start` request has arrived.
"""
