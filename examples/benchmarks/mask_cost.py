"""What a token of constrained output costs on the CPU: masks of llguidance, and putting them on logits.

    python -m examples.benchmarks.mask_cost

At the family's vocabulary (248,320 rows) and on sound answers of each kind, token by token, so that every state of a
grammar counts that an answer goes through; the first answer warms what a grammar keeps. The random schemas are those of
random_json.py, each answered once, with any token that is allowed. CPU time. Needs no weights.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from random import Random

import mlx.core as mx
import numpy as np

from mlx_qwen35.chat.constraints import answer_form
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.generation.guides import Guide, Mask, constrain
from mlx_qwen35.guiding import Guidance, Guides
from tests.support.random_schemas import random_schema
from tests.support.real_tokenizer import FIRST_ADDED, folder
from tests.support.wide import END, ROWS

END_OF_TEXT = FIRST_ADDED
MOST = 256  # tokens of a random answer
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]+@[a-z.]+$"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "other"]}, "maxItems": 5},
    },
    "required": ["name", "age", "mail", "tags"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "write", "parameters": {
        "type": "object",
        "properties": {"path": {"type": "string"}, "content": {"type": "string"}, "mode": {"type": "integer"}},
        "required": ["path", "content"],
    }}},
    {"type": "function", "function": {"name": "search", "parameters": {
        "type": "object", "properties": {"query": {"type": "string", "maxLength": 100}}, "required": ["query"],
    }}},
]  # fmt: skip
CODE = "def greet(name: str) -> str:\n    return f'Hello, {name}!'\n\n\nif __name__ == '__main__':\n    greet('you')"
JSON = json.dumps({"name": "Ada Lovelace, of London", "age": 36, "mail": "ada@example.org", "tags": ["new", "other"]})
PRETTY = json.dumps(
    {"items": [{"id": i, "text": f"the item {i}: “über”", "ok": None} for i in range(5)]}, indent=2, ensure_ascii=False
)
CALL = (
    "I write it now.\n\n<tool_call>\n<function=write>\n<parameter=path>\nhello.py\n</parameter>\n<parameter=content>\n"
    f"{CODE}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=search>\n<parameter=query>\nhow to test"
    "\n</parameter>\n</function>\n</tool_call>"
)

REGEXES = {
    "regex: date": (r"[0-9]{4}-[0-9]{2}-[0-9]{2}", "1984-12-31"),
    "regex: address": (r"[a-z0-9._]+@[a-z0-9.]+\.[a-z]{2,4}", "ada.lovelace@example.org"),
    "regex: any line": (r"[^\n]{1,300}", "the first of them was in 1984, the second in 1985"),
    "regex: list": (r"(- [^\n]+\n)+", "- the first of them was in 1984\n- the second in 1985\n"),
    "regex: sentences": (r"([A-Z][a-z]+( [a-z]+){2,20}\. ?){1,5}", "The first of them was in the end. And so it went."),
    "regex: counted \\w": (r"(\w+ ){3,30}[0-9]{4}", "the first of them was in 1984"),
}


def cases() -> Iterable[tuple[str, Guidance, str]]:
    """Names, what is asked, and an answer to it."""
    schema = {"type": "json_schema", "json_schema": {"schema": PERSON}}
    yield "JSON schema", Guidance(form=answer_form(schema)), JSON
    yield "JSON mode", Guidance(form=answer_form({"type": "json_object"})), PRETTY
    for name, (regex, answer) in REGEXES.items():
        yield name, Guidance(form=answer_form(regex=regex)), answer
    yield "choices", Guidance(form=answer_form(choices=["certainly", "certainly not", "perhaps"])), "certainly not"
    yield "tool calls", Guidance(tools=TOOLS), CALL
    yield "thinking budget", Guidance(in_reasoning=True, budget=500), CODE + "\n</think>\n\nDone."


def timed(guide: Guide, tokens: Sequence[int]) -> list[float]:
    """CPU seconds of the masks for each token. Raises ValueError where one is not allowed."""
    seconds = []
    for token in tokens:
        start = time.thread_time()
        mask = guide.masks()[0]
        seconds.append(time.thread_time() - start)
        if mask is not None and not mask.allows(token):
            raise ValueError(f"token {token} is not allowed")
        start = time.thread_time()
        guide.accept((token,))
        seconds[-1] += time.thread_time() - start
    return seconds


def schemas(guides: Guides, count: int) -> tuple[list[float], list[float]]:
    """CPU seconds of the masks for each token of random answers to random schemas, and of compiling each schema."""
    random, seconds, compiled = Random(1), [], []
    for seed in range(count):
        form = answer_form({"type": "json_schema", "json_schema": {"schema": random_schema(10_000 + seed, 2)}})
        start = time.thread_time()
        guide = guides.guide(Guidance(form=form), MOST)
        compiled.append(time.thread_time() - start)
        assert guide is not None
        for _ in range(MOST):
            start = time.thread_time()
            mask = guide.masks()[0]
            seconds.append(time.thread_time() - start)
            assert mask is not None
            allowed = np.flatnonzero(np.unpackbits(mask.bits.view(np.uint8), bitorder="little"))
            token = int(random.choice(allowed))
            if token in (END, END_OF_TEXT):
                break
            start = time.thread_time()
            guide.accept((token,))
            seconds[-1] += time.thread_time() - start
    return seconds, compiled


def apply_cost(rows: int, repeats: int) -> list[float]:
    """CPU seconds of putting masks on `rows` rows of logits."""
    logits = mx.random.normal((rows, ROWS))
    masks = [Mask(np.full(ROWS // 32, 0x55555555, np.uint32))] * rows
    mx.eval(logits, constrain(logits, masks))
    return [_seconds(lambda: mx.eval(constrain(logits, masks))) for _ in range(repeats)]


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _row(name: str, seconds: Sequence[float], compiled: float | None = None) -> str:
    median, p99 = (1000 * float(np.percentile(seconds, q)) for q in (50, 99))
    return f"{name:<24}{len(seconds):>8}{median:>12.3f}{p99:>12.3f}" + (
        "" if compiled is None else f"{1000 * compiled:>14.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=20, metavar="N", help="of each kind (20)")
    parser.add_argument("--schemas", type=int, default=200, metavar="N", help="random ones (200)")
    args = parser.parse_args()
    tokenizer = Tokenizer.from_folder(folder())
    guides = Guides(tokenizer)
    vocabulary = _seconds(lambda: guides.guide(Guidance(form=answer_form(regex="a")), 100))
    print(f"vocabulary of {tokenizer.vocab_size} tokens read for grammars in {vocabulary:.1f} s, once a process\n")
    print(f"{'ms a token':<24}{'tokens':>8}{'median':>12}{'p99':>12}{'compiled, ms':>14}")
    everything: list[float] = []
    for name, asked, answer in cases():
        tokens = tokenizer.encode(answer + "<|im_end|>")
        compiled = _seconds(lambda asked=asked: guides.guide(asked, 1000))
        seconds: list[float] = []
        for _ in range(args.answers):
            guide = guides.guide(asked, 1000)
            assert guide is not None
            seconds += timed(guide, tokens)
        everything += seconds
        print(_row(name, seconds, compiled))
    print(_row("all of these", everything))
    seconds, compiling = schemas(guides, args.schemas)
    print(_row("random JSON schemas", seconds, float(np.median(compiling))))
    for rows in (1, 4, 16):
        print(_row(f"onto {rows} row{'s' * (rows > 1)} of logits", apply_cost(rows, 50)))


if __name__ == "__main__":
    main()
