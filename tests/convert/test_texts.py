"""Texts for calibration and measuring: read, tokenized, limited and batched without losing or mixing any."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen35 import demo_checkpoint
from mlx_qwen35.convert.texts import Text, Tokens, batches, bundled, limited, read_texts, tokenized
from mlx_qwen35.errors import RequestError

DEMO = Path(demo_checkpoint.__file__).parent
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=30)


def made(sizes: list[int]) -> list[Tokens]:
    return [Tokens(f"d{i % 3}", tuple(range(i * 1000, i * 1000 + n))) for i, n in enumerate(sizes)]


@given(lengths, st.integers(1, 600))
def test_batches_hold_every_text_once_and_mark_what_is_padding(sizes: list[int], size: int) -> None:
    texts, rows = made(sizes), []
    for batch in batches(texts, size):
        assert batch.ids.size <= size or len(batch.domains) == 1
        for ids, real, domain in zip(batch.ids, batch.real, batch.domains):
            n = int(real.sum())
            assert real[:n].all()
            assert not ids[n:].any()
            rows.append(Tokens(domain, tuple(int(i) for i in ids[:n])))
    assert sorted(rows, key=lambda t: t.ids) == sorted(texts, key=lambda t: t.ids)


@given(lengths, st.integers(2, 2000), st.integers(0, 5))
def test_a_limit_is_kept_and_used_up(sizes: list[int], most: int, seed: int) -> None:
    chosen = limited(made(sizes), most, seed)
    total = sum(len(t.ids) for t in chosen)
    assert total <= most
    assert total >= min(most, sum(sizes)) - 1
    assert chosen == limited(made(sizes), most, seed)


def test_another_seed_draws_other_texts() -> None:
    assert limited(made([50] * 20), 300, 0) != limited(made([50] * 20), 300, 1)


@pytest.mark.parametrize("part", ["calibration", "evaluation"])
def test_the_bundled_corpus_has_every_domain_and_goes_through_a_chat_template(part: str) -> None:
    texts = bundled(part)  # pyright: ignore[reportArgumentType]
    assert {t.domain for t in texts} == {"chat", "thinking", "tools", "code", "languages"}
    tokens = tokenized(DEMO, texts, longest=100)
    assert max(len(t.ids) for t in tokens) <= 100
    assert sum(len(t.ids) for t in tokens) > 10_000


def test_calibration_and_evaluation_share_no_text() -> None:
    seen = {repr(t.messages) + t.text for t in bundled("calibration")}
    assert not [t for t in bundled("evaluation") if repr(t.messages) + t.text in seen]


def test_a_conversation_is_rendered_with_its_thoughts_tools_and_calls() -> None:
    text = next(t for t in bundled("evaluation") if t.domain == "tools")
    ids = tokenized(DEMO, [text])[0].ids
    from mlx_qwen35.chat.tokenizer import Tokenizer

    written = Tokenizer.from_folder(DEMO).decode(ids)
    assert "<tool_call>" in written
    assert "<|im_end|>" in written
    assert text.messages[-1]["content"] in written


def test_plain_text_is_one_text_a_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("One.\nStill one.\n\n\nTwo.\n")
    assert read_texts(file) == [Text("text", "One.\nStill one."), Text("text", "Two.")]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "text or messages"),
        (json.dumps({"domain": "chat"}), "text or messages"),
        (json.dumps({"text": "x", "tols": []}), "tols is unknown"),
    ],
)
def test_a_line_that_is_no_text_is_named_with_its_number(line: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(RequestError, match=f"mine.jsonl:2.*{told}"):
        read_texts(file)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"none\.jsonl cannot be read"):
        read_texts(tmp_path / "none.jsonl")


def test_padding_ids_are_ids_every_vocabulary_has() -> None:
    batch = next(batches(made([3, 5])))
    assert batch.ids.dtype == np.int32
    assert batch.ids[0, 3:].tolist() == [0, 0]
