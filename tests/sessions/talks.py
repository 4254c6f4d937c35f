"""What tests of sessions share: questions, fresh models, and a look at what the prefix store holds."""

from __future__ import annotations

import time
from typing import Any

import mlx_qwen35
from mlx_qwen35.qwen import Qwen

GREEDY: Any = {"temperature": 0, "max_tokens": 120}
ASKED = ["What is 3 + 4?", "What is 5 + 6?", "How do I convert a model?"]
PATIENCE = 30  # seconds for what another thread does at once


def fresh(**options: Any) -> Qwen:
    return mlx_qwen35.load("demo", **options)


def held_nodes(qwen: Qwen) -> int:
    """Nodes of the prefix store that some session holds."""
    return qwen.runtime.prefixes._engine.with_prefixes(
        16, lambda _, form: sum(1 for node in form.root.descendants() if node.holds)
    )


def settles_at(qwen: Qwen, held: int) -> bool:
    until = time.monotonic() + PATIENCE
    while held_nodes(qwen) != held and time.monotonic() < until:
        time.sleep(0.01)
    return held_nodes(qwen) == held
