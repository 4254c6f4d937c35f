"""The longest known prefix, against a model that tries every node; on texts over three letters."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlx_qwen35.caches.prefix_tree import Node, as_ids, common_prefix, match

letters = st.integers(0, 2)
texts = st.lists(letters, min_size=1, max_size=9)
cuts = st.lists(st.integers(1, 4), min_size=1, max_size=5)
# Where each node's segment and checkpoint are: 0 nowhere, 1 in memory, 2 on disk. Nothing is known of most to be lost.
places = st.tuples(st.sampled_from([1, 1, 1, 2, 0]), st.sampled_from([1, 1, 2, 0]))


def grown(root: Node, ids: list[int], spans: list[int]) -> None:
    """A text's nodes: spans of these lengths as far as the text goes."""
    node, at = root, 0
    for span in itertools.chain(spans, itertools.repeat(len(ids))):
        if at >= len(ids):
            return
        node = node.adopt(as_ids(ids[at : at + span]))
        at += span


def put(node: Node, place: tuple[int, int]) -> None:
    segment, checkpoint = place
    node.segment, node.segment_on_disk = ([] if segment == 1 else None), segment == 2
    node.checkpoint, node.checkpoint_on_disk = ([] if checkpoint == 1 else None), checkpoint == 2


def shared(a: list[int], b: list[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b)))


@settings(max_examples=300)
@given(known=st.lists(st.tuples(texts, cuts), max_size=6), where=st.lists(places, min_size=30, max_size=30), ids=texts)
@example(known=[([0, 1, 2], [3]), ([0, 1], [1])], where=[(1, 1)] * 30, ids=[0, 1, 2])
@example(known=[([0, 1, 2, 0], [1, 1, 1])], where=[(1, 1), (0, 1), (1, 1), (1, 1)] * 8, ids=[0, 1, 2, 0, 1])
def test_the_match_is_the_longest_that_can_be_restored(
    known: list[tuple[list[int], list[int]]], where: list[tuple[int, int]], ids: list[int]
) -> None:
    root = Node("root", None, as_ids([]), 0)
    for text, spans in known:
        grown(root, text, spans)
    nodes = list(root.descendants())
    for node, place in zip(nodes, itertools.cycle(where)):
        put(node, place)
    limit = len(ids) - 1
    found = match(root, as_ids(ids), limit)

    fits = [n for n in nodes if n.end <= limit and n.all_ids() == ids[: n.end]]
    usable = [n for n in fits if n.restorable and all(step.reachable for step in n.path())]
    assert found.length == found.node.end == max((n.end for n in usable), default=0)
    assert found.node in [root, *usable]
    assert found.common == max((shared(n.all_ids(), ids) for n in nodes), default=0)
    assert shared(found.nearest.all_ids(), ids) == found.common
    assert found.lost == (max((n.end for n in fits if n not in usable), default=0) > found.length)


@given(a=texts, start=st.integers(0, 5), b=texts)
def test_common_prefix_counts_equal_ids(a: list[int], start: int, b: list[int]) -> None:
    start = min(start, len(a))
    assert common_prefix(as_ids(a), start, as_ids(b)) == shared(a[start:], b)


@given(known=st.lists(st.tuples(texts, cuts), max_size=6))
def test_equal_texts_are_equal_nodes_and_leaving_undoes_coming(known: list[tuple[list[int], list[int]]]) -> None:
    root = Node("root", None, as_ids([]), 0)
    for text, spans in known + known:
        grown(root, text, spans)
    nodes = list(root.descendants())
    keys = {(tuple(n.all_ids()), tuple(step.end for step in n.path())): n.key for n in nodes}
    assert len(keys) == len(set(keys.values())) == len(nodes)
    for node in sorted(nodes, key=lambda n: -len(n.path())):
        node.leave()
    assert not root.children
