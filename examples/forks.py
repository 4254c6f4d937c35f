"""Forks of a session: several questions about one long beginning, which is read once and asked at the same time.

python -m examples.forks README.md "What is it for?" "How do I test it?"  [...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx_qwen35
from mlx_qwen35 import Reply, Session


def ask_all(session: Session, questions: Sequence[str]) -> list[Reply]:
    """The answers, none of which knows of the others. The session itself stays as it is."""

    def ask(question: str) -> Reply:
        with session.fork() as fork:
            return fork.chat(question, temperature=0)

    with ThreadPoolExecutor(len(questions)) as pool:
        return list(pool.map(ask, questions))


if __name__ == "__main__":
    with mlx_qwen35.load() as qwen, qwen.session() as reader:
        reader.chat(Path(sys.argv[1]).read_text(), max_tokens=1)
        for answer in ask_all(reader, sys.argv[2:]):
            print(f"{answer.content}   ({answer.usage.cached_tokens} of {answer.usage.prompt_tokens} tokens reused)")
