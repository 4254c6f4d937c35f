"""Reuse: what is restored from memory or disk goes on as if it had been computed just now, and never touches others."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from mlx_qwen35.caches.blobs import Layouts
from mlx_qwen35.caches.disk_tree import DiskTree
from mlx_qwen35.caches.prefix_store import PrefixStore
from mlx_qwen35.caches.rows import SequenceCache
from mlx_qwen35.generation.cache_format import one_token
from mlx_qwen35.generation.request import Request
from mlx_qwen35.generation.start import make_caches
from mlx_qwen35.models.model import Model
from mlx_qwen35.models.windows import Window
from mlx_qwen35.options import Sampling
from tests.caches.disk_nodes import MB, open_store
from tests.support.cranked import Cranked, OpenDisk, cranked, read
from tests.support.networks import DEMO, distance, known_tokens, network, random_ids, same_bytes
from tests.support.plain import assert_plain

# With the same windows before and after, a restored sequence runs the same products on the same numbers: not even
# rounding differs, but where MLX picks another kernel for a buffer of another capacity. Relative to the largest logit.
SAME_WINDOWS = 1e-5
FINGERPRINT = "cd" * 16


def logits_after(model: Model, cache: SequenceCache, windows: list[list[int]]) -> mx.array:
    hidden = [model.step([Window(mx.array(ids, mx.int32), cache)]) for ids in windows]
    return model.logits(mx.concatenate(hidden))


def disk(folder: Path, fingerprint: str, layouts: Layouts) -> DiskTree:
    return DiskTree(open_store(folder, byte_budget=100 * MB, fingerprint=fingerprint), layouts)


def in_folder(folder: Path | None) -> OpenDisk:
    """One below which every format of caches has its own files."""
    if folder is None:
        return lambda *_: None
    return lambda name, layouts: disk(folder, name, layouts)


@pytest.mark.parametrize("bits", [16, pytest.param(8, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("name", ["dense", DEMO, pytest.param("moe", marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", ["memory", "evicted", "next process"])
def test_restored_logits_are_the_cold_ones(name: str, bits: int, way: str, tmp_path: Path) -> None:
    """At every checkpoint of a text, and then on through other windows."""
    model, cuts = network(name), [5, 6, 38, 101]
    text, rest = random_ids(3, 101), [random_ids(4, 7), random_ids(5, 1), random_ids(6, 33)]
    layouts = Layouts.of(one_token(model, lambda: make_caches(model, bits)))

    def opened() -> PrefixStore:
        store = PrefixStore(100 * MB)
        store.root(FINGERPRINT, lambda: None if way == "memory" else disk(tmp_path, FINGERPRINT, layouts))
        return store

    store = opened()
    node, cache, spans = store.root(FINGERPRINT), make_caches(model, bits), []
    store.pin(node)
    for start, end in zip([0, *cuts], cuts):
        spans.append(text[start:end])
        logits_after(model, cache, spans[-1:])
        node = store.add(node, spans[-1], cache)
    store.unpin(node)
    logits_after(model, cache, rest)  # the live sequence goes on; what it left behind stays as it was
    if way == "evicted":
        while store.save_one():
            pass
        assert store._disks[FINGERPRINT].store.flush(60)
        assert store.shrink(0)
        assert store.nbytes == 0
    elif way == "next process":
        store.close()
        store = opened()
    for i, cut in enumerate(cuts):
        cold, restored = make_caches(model, bits), make_caches(model, bits)
        logits_after(model, cold, spans[: i + 1])
        found = store.restore(store.match(store.root(FINGERPRINT), text[:cut] + rest[0]), restored)
        assert found.end == cut
        assert distance(logits_after(model, restored, rest), logits_after(model, cold, rest)) <= SAME_WINDOWS
        store.unpin(found)
    store.close()


def asked(ids: list[int], known: int, checkpoints: list[int] | None = None, bits: int = 16, answer: int = 6) -> Request:
    return Request(ids, known, answer, checkpoints=checkpoints or [], kv_bits=bits)


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("restarted", [False, True])
def test_every_kind_of_checkpoint_is_found_again(bits: int, restarted: bool, tmp_path: Path) -> None:
    """The end of the system text, a header, a stride, the end of an answer; for each a prompt that branches there."""
    name = DEMO if bits == 16 else "dense"
    model, known, first = network(name), known_tokens(name), random_ids(1, 90)
    served = cranked(model, open_disk=in_folder(tmp_path), stride=64)
    answer, line = served.answer(asked(first, known, [20, 85], bits))
    assert line.reuse.cached == 0
    told = [first + answer + [1], [*first[:86], 119], [*first[:70], 119], [*first[:21], 119], [*first[:19], 119]]
    # The last token of an answer is drawn and not computed any more.
    expected = [len(first + answer) - 1, 85, 64, 20, 0]
    if restarted:
        served.engine.close()
        served = cranked(model, open_disk=in_folder(tmp_path), stride=64)
    for prompt, cached in zip(told, expected):
        request = asked(prompt + random_ids(2, 9), known, bits=bits)
        tokens, line = served.answer(request)
        assert line.reuse.cached == cached
        assert_plain(model, request, tokens)
    served.assert_at_rest()
    served.engine.close()


@pytest.mark.parametrize("bits", [16, 4])
def test_two_that_fork_are_two_that_never_met(bits: int) -> None:
    """Both from one prefix, at once; greedy, with numbers drawn; the prefix keeps its bytes."""
    model, known = network("moe"), known_tokens("moe")
    served = cranked(model)
    prefix = random_ids(1, 60)
    said = served.answer(asked(prefix, known, bits=bits))[0]
    trunk = [*prefix, *said[:-1]]
    node = served.store.match(served.store.root(f"{bits:016x}"), [*trunk, 1]).node
    assert node.end == len(trunk)
    held = [a for part in (node.segment, node.checkpoint) for layer in part or [] for a in layer]
    before = [mx.array(a) for a in held]
    mx.eval(before)
    hot = Sampling(temperature=1.5)
    requests = [
        Request([*trunk, *random_ids(i, 1 + 4 * i)], known, 12, sampling, seed=i, kv_bits=bits)
        for i in range(3)
        for sampling in (hot, Sampling(temperature=0.0))
    ]
    lines = [served.submit(request) for request in requests]
    served.run()
    for request, line in zip(requests, lines):
        tokens = read(line)
        assert line.reuse.cached == len(trunk)
        # Rounding that differs by a bit can move a 4-bit code by a whole step: there a near-tie may fall otherwise.
        assert bits < 16 or tokens == cranked(model).answer(request)[0]
        assert_plain(model, request, tokens)
    assert same_bytes(held, before)
    served.assert_at_rest()


def test_a_conversation_computes_each_token_once(tmp_path: Path) -> None:
    """Ten turns, with a new process after each third: from the cache comes all but what the user has just said."""
    name, folder = "dense", tmp_path / "cache"
    text, known = random_ids(1, 40), known_tokens(name)
    served: Cranked | None = None
    for turn in range(10):
        if served is None:
            served = cranked(network(name), open_disk=in_folder(folder))
        request = asked(text, known)
        tokens, line = served.answer(request)
        assert_plain(network(name), request, tokens)
        assert len(text) - line.reuse.cached == (40 if turn == 0 else 6)  # five new ones, and the answer's last
        text = [*text, *tokens, *random_ids(turn, 5)]
        if turn % 3 == 2:
            served.engine.close()
            served = None


def test_a_preempted_or_cancelled_sequence_leaves_whole_prefixes() -> None:
    """Cancelled at every turn of its life, in prefill and decode; whatever it left serves the next one right."""
    name = "dense"
    model, known, ids = network(name), known_tokens(name), random_ids(8, 50)
    for overlap in (False, True):
        for turns in range(1, 10, 2):
            served = cranked(model, stride=16, overlap=overlap)
            served.windows([11])
            line = served.submit(asked(ids, known, [20], answer=30))
            for _ in range(turns):
                served.crank.turn()
            line.cancel()
            served.run()
            drawn = read(line)
            request = asked([*ids, *drawn, 5, 6], known, answer=4)
            tokens, second = served.answer(request)
            assert second.reuse.cached > 0 or turns < 3
            assert_plain(model, request, tokens)
            served.assert_at_rest()
