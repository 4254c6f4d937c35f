"""Search finds what was said, ends in time, and is stopped by no broken file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35.conversations.conversation import Conversation
from mlx_qwen35.conversations.search import search
from mlx_qwen35.conversations.store import Store


def talk(question: str, answer: str, title: str = "") -> Conversation:
    conversation = Conversation(title=title)
    conversation.add(question, {"role": "assistant", "content": answer})
    return conversation


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "kept")
    store.create(talk("What is MLX?", "A library by Apple.", "First"), "demo")
    store.create(talk("Grüße an die STRASSE", "Ein Wort\nund noch eines", "Second"), "demo")
    return store


@pytest.mark.parametrize(
    ("words", "titles", "message"),
    [
        ("mlx", ["First"], 0),
        ("APPLE library", ["First"], 1),
        ("first apple", ["First"], 1),
        ("sec", ["Second"], None),
        ("GRÜSSE", ["Second"], 0),
        ("straße", ["Second"], 0),
        ("und NOCH", ["Second"], 1),
        ("mlx straße", [], None),
        ("a", ["Second", "First"], 0),
    ],
)
def test_words_in_titles_and_messages_are_found(
    store: Store, words: str, titles: list[str], message: int | None
) -> None:
    found = search(store, words)
    assert found.complete
    assert [hit.chat.title for hit in found.hits] == titles
    if titles:
        assert found.hits[0].message == message
        assert "\n" not in found.hits[0].excerpt


@given(before=st.text(), word=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8), after=st.text())
def test_any_word_is_found_in_any_surroundings(
    tmp_path_factory: pytest.TempPathFactory, before: str, word: str, after: str
) -> None:
    store = Store(tmp_path_factory.mktemp("kept"))
    store.create(talk("?", before + word + after, "-"), "demo")
    (hit,) = search(store, word.upper()).hits or search(store, word).hits
    assert len(hit.excerpt) < 200


def test_an_excerpt_is_short_and_shows_the_word(store: Store) -> None:
    store.create(talk("long", "x " * 50_000 + "needle" + " y" * 50_000, "Third"), "demo")
    (hit,) = search(store, "needle").hits
    assert "needle" in hit.excerpt
    assert hit.excerpt.startswith("…")
    assert hit.excerpt.endswith("…")
    assert len(hit.excerpt) < 100


def test_results_and_time_have_ends(store: Store) -> None:
    found = search(store, "a", max_hits=1)
    assert [hit.chat.title for hit in found.hits] == ["Second"]
    assert not found.complete
    found = search(store, "a", seconds=-1)
    assert not found.hits
    assert not found.complete


def test_a_damaged_conversation_is_named_and_the_rest_is_searched(store: Store) -> None:
    newest = store.listing().chats[0]
    path = store.folder / f"{newest.id}.json"
    content = path.read_bytes()
    path.write_bytes(content[:-3] + b"???")
    found = search(store, "mlx")
    assert [hit.chat.title for hit in found.hits] == ["First"]
    assert [broken.name for broken in found.broken] == [path.name]
