"""The formats in which keys and values are kept: how to make an empty cache of each, and what a token takes in it."""

from __future__ import annotations

from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.quantized_kv import QuantizedKVCache, vector_bytes


def kv_cache(bits: int | None) -> KVCache | QuantizedKVCache:
    """An empty cache for one attention layer. bits: 8, 4, or None for plain. Raises RequestError for other bits."""
    return KVCache() if bits is None else QuantizedKVCache(bits)


def kv_token_bytes(bits: int | None, kv_heads: int, head_dim: int, plain_bytes: int = 2) -> int:
    """What a token takes in one attention layer. plain_bytes: of one number in the plain format."""
    vector = plain_bytes * head_dim if bits is None else vector_bytes(bits, head_dim)
    return 2 * kv_heads * vector


def kv_format(bits: int | None) -> str:
    """A name for fingerprints: segments of one format mean nothing in another."""
    return "plain" if bits is None else QuantizedKVCache(bits).format
