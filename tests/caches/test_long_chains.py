"""A long agent's run is a chain of thousands of nodes: nothing may depend on Python's stack, or take its square."""

from __future__ import annotations

import mlx.core as mx

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.prefix_tree import Node

TURNS = 2_000


def chain(store: PrefixStore) -> Node:
    """One node a token."""
    cache = [KVCache(), DeltaState()]
    kv, state = cache
    assert isinstance(kv, KVCache)
    assert isinstance(state, DeltaState)
    node = store.root("0" * 16)
    store.pin(node)
    for token in range(TURNS):
        kv.extend(mx.zeros((1, 1, 1, 2)), mx.zeros((1, 1, 1, 2)))
        state.advance(mx.zeros((1, 1, 2)), mx.zeros((1, 1, 2, 2)), 1)
        node = store.add(node, [token], [kv, state])
    store.unpin(node)
    return node


def test_a_chain_of_thousands_of_nodes_is_evicted_to_the_last() -> None:
    store = PrefixStore(1 << 30)
    chain(store)
    assert store.shrink(0)
    assert store.nbytes == 0
    assert store.match(store.root("0" * 16), range(TURNS)).lost


def test_held_nodes_of_a_chain_keep_what_leads_to_them() -> None:
    store, hold = PrefixStore(1 << 30), Hold()
    end = chain(store)
    hold.move([end])
    assert not store.shrink(0)
    assert store.match(store.root("0" * 16), range(TURNS + 1)).node is end
    assert all(node.segment is not None for node in end.path())
    assert all(node.checkpoint is None for node in end.path()[:-1])
    hold.close()
    hold.move([end])
    assert store.shrink(0)
