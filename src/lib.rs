//! kv-correctness: a reproducible differential test of LMCache under vLLM.
