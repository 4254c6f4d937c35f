"""A wrong preset changes every answer and shows in none."""

from __future__ import annotations

import pytest

from mlx_qwen35.chat.presets import FAMILY, Sampling, choose
from mlx_qwen35.errors import RequestError


@pytest.mark.parametrize(
    ("preset", "thinking", "size", "expected"),
    [
        (None, True, "27b", (1.0, 0.95, 20, 1.5)),
        (None, False, "27b", (0.7, 0.8, 20, 1.5)),
        (None, True, None, (1.0, 0.95, 20, 1.5)),
        ("thinking-coding", False, "9b", (0.6, 0.95, 20, 0.0)),
        ("non-thinking-reasoning", False, "35b-a3b", (1.0, 1.0, 40, 2.0)),
        ("non-thinking-reasoning", False, "0.8B", (1.0, 1.0, 20, 2.0)),
        ("thinking", True, "3.6-27b", (1.0, 0.95, 20, 0.0)),
        (None, True, "some-finetune", (1.0, 0.95, 20, 1.5)),
    ],
)
def test_values_are_those_of_the_cards(
    preset: str | None, thinking: bool, size: str | None, expected: tuple[float, float, int, float]
) -> None:
    temperature, top_p, top_k, presence = expected
    assert choose(preset, thinking, size) == Sampling(temperature, top_p, top_k, presence_penalty=presence)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(RequestError) as refusal:
        choose("creative", thinking=True)
    assert all(name in str(refusal.value) for name in FAMILY)
