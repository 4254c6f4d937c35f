"""One lane: every feature with every other, on the demo model in float32. tests/test_one_lane.py runs it.

A feature that promises to be invisible must leave the tokens of the other alone as they are; a feature that cuts an
answer short must leave its beginning; any other must still do what it promises.

    python -m tests.support.one_lane     writes the table into README.md
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx_qwen35
import mlx_qwen35.demo_checkpoint
from mlx_qwen35.asking import chat_request
from mlx_qwen35.chat.events import Finished
from mlx_qwen35.chat.reply import Gathering, Reply
from mlx_qwen35.folded import Answering
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.runtime import ChatRequest

DEMO = Path(mlx_qwen35.demo_checkpoint.__path__[0])
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- one lane -->", "<!-- one lane ends -->"

SYSTEM = {"role": "system", "content": "You answer questions about this project, and repeat what you are asked to."}
EARLIER = [
    {"role": "user", "content": "How do I convert a model?"},
    {"role": "assistant", "content": "mlx-qwen35 convert MODEL writes an MLX checkpoint."},
]
QUESTION = {
    "role": "user",
    "content": 'Which Macs can run it? mlx-qwen35 convert MODEL writes what? How do I convert? {"name":"Mac","size":7}',
}
OTHERS = ("What is MLX?", "Count from one to ten.", "What can you do?")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Oslo", "Lima"]}, "days": {"type": "integer"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["MLX", "Mac"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
BUDGET = 6  # tokens of thinking
CUT_AFTER = 5  # tokens


@dataclass(frozen=True)
class Outcome:
    """What came of one answer, and what was seen while it ran."""

    tokens: tuple[int, ...]
    reply: Reply
    company: int  # others that were given tokens meanwhile


def _thought_little(outcome: Outcome, alone: Outcome) -> bool:
    return 0 < outcome.reply.usage.reasoning_tokens <= BUDGET + CLOSING and bool(
        outcome.reply.content or outcome.reply.tool_calls
    )


CLOSING = 60  # tokens of the text that closes a block, in the small vocabulary of the demo


def _called(outcome: Outcome, alone: Outcome) -> bool:
    calls = [call["function"] for call in outcome.reply.tool_calls]
    return bool(calls) and all(c["name"] == "weather" and c["arguments"]["city"] in ("Oslo", "Lima") for c in calls)


def _fits_schema(outcome: Outcome, alone: Outcome) -> bool:
    if outcome.reply.tool_calls:  # a call that had to be made comes in place of the content
        return True
    found = json.loads(outcome.reply.content)
    return set(found) == {"name", "size"} and found["name"] in ("MLX", "Mac") and 0 <= found["size"] <= 99


def _drafted(outcome: Outcome, alone: Outcome) -> bool:
    """From what repeats; an answer that is cancelled may not have come to that."""
    return outcome.reply.usage.drafted_tokens > 0 or outcome.reply.reason == "cancelled"


@dataclass(frozen=True)
class Feature:
    """load, options: what turns it on   kind: "invisible", "cuts" or "shapes"   holds: whether it did what it promises,
    seen beside the answer without it
    """

    name: str
    kind: str
    holds: Callable[[Outcome, Outcome], bool]
    load: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


FEATURES = (
    Feature("thinking budget", "shapes", _thought_little, options={"think": True, "thinking_budget": BUDGET}),
    Feature("tools", "shapes", _called, options={"tools": TOOLS, "tool_choice": "required"}),
    Feature("JSON schema", "shapes", _fits_schema, options={"schema": SCHEMA}),
    Feature("MTP", "invisible", lambda o, _: o.reply.usage.drafted_tokens > 0, options={"draft": 3}),
    Feature("n-gram drafts", "invisible", _drafted, {"mtp": False}, {"draft": 3}),
    Feature("prefix reuse", "invisible", lambda o, _: o.reply.usage.cached_tokens > 0, {"prefix_bytes": 1 << 28}),
    Feature(
        "read ahead",
        "invisible",
        lambda o, _: o.reply.usage.cached_tokens > 0,
        {"prefix_bytes": 1 << 27, "ahead": True},
    ),
    Feature("restored from disk", "invisible", lambda o, _: o.reply.usage.cached_tokens > 0, {"disk": True}),
    Feature("batch of 4", "invisible", lambda o, _: o.company == len(OTHERS)),
    Feature("KV 8-bit", "shapes", lambda o, _: len(o.tokens) > 0, {"kv_bits": 8}),
    Feature("YaRN", "shapes", lambda o, _: len(o.tokens) > 0, {"context": 65_536}),
    Feature(
        "penalties, seed",
        "shapes",
        lambda o, _: len(o.tokens) > 0,
        options={"temperature": 0.8, "presence_penalty": 0.7, "repetition_penalty": 1.1, "seed": 2},
    ),
    Feature("stop strings", "cuts", lambda o, alone: _stopped(o, alone)),
    Feature("cancel", "cuts", lambda o, alone: _cancelled(o, alone)),
)
NAMES = tuple(feature.name for feature in FEATURES)
BY_NAME = {feature.name: feature for feature in FEATURES}


def stop_string(alone: Outcome) -> str:
    """Two letters from the middle of an answer; where there is no answer in words, some that are none."""
    text = alone.reply.content
    return text[len(text) // 2 :][:2] if len(text) > 3 else "\x00"


def _stopped(outcome: Outcome, alone: Outcome) -> bool:
    whole = alone.reply.content.partition(stop_string(alone))[0]
    found = outcome.reply.content
    return whole.startswith(found) if outcome.reply.reason == "cancelled" else found == whole


def _cancelled(outcome: Outcome, alone: Outcome) -> bool:
    """Or it had ended by then, of itself or at a stop string: whoever cancels reads some tokens behind."""
    at_stop = any(isinstance(event, Finished) and event.stop_string for event in outcome.reply.events)
    return outcome.reply.reason == "cancelled" or at_stop or outcome.tokens == alone.tokens


class Lane:
    """Loaded models, one for each way of loading, and what was answered already."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp())
        self._loaded: dict[str, Qwen] = {}
        self._known: dict[frozenset[str], Outcome] = {}

    def close(self) -> None:
        for qwen in self._loaded.values():
            qwen.close()
        shutil.rmtree(self._folder)

    def outcome(self, *names: str) -> Outcome:
        """The answer to the one question with these features on."""
        key = frozenset(names)
        if key not in self._known:
            features = [BY_NAME[name] for name in names]
            cuts = [f.name for f in features if f.kind == "cuts"]
            alone = self.outcome(*(n for n in names if n not in cuts)) if cuts else None
            self._known[key] = self._answer(features, cuts, alone)
        return self._known[key]

    def check(self, *names: str) -> None:
        """Each promise of a combination. Raises AssertionError."""
        found = self.outcome(*names)
        features = [BY_NAME[name] for name in names]
        cut = [f for f in features if f.kind == "cuts"]
        shown = [f for f in features if f.kind == "shapes"]
        plain = self.outcome(*(f.name for f in shown))
        told = f"{' + '.join(names)}: {found.tokens} beside {plain.tokens}"
        assert found.tokens == plain.tokens[: len(found.tokens)] if cut else found.tokens == plain.tokens, told
        for feature in features:
            if not cut or feature.kind != "shapes":  # an answer that is cut need not be whole
                assert feature.holds(found, plain), f"{feature.name} does not hold with {told}"

    def _answer(self, features: Sequence[Feature], cuts: Sequence[str], alone: Outcome | None) -> Outcome:
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 160, "think": False, "draft": "off"}
        for feature in features:
            options |= feature.options
        if alone is not None and "stop strings" in cuts:
            options["stop"] = stop_string(alone)
        request = chat_request([SYSTEM, *EARLIER, QUESTION], **options)
        qwen = self._qwen(features, request)
        company = [f for f in features if f.name == "batch of 4"]
        with _running(qwen, OTHERS if company else ()) as others:
            before = [len(other.sampled) for other in others]
            running = qwen.runtime.submit(qwen.runtime.prepare(request))
            reply = _read(running, CUT_AFTER if "cancel" in cuts else None)
            served = sum(len(other.sampled) > count for other, count in zip(others, before))
            return Outcome(tuple(running.sampled), reply, served)

    def _qwen(self, features: Sequence[Feature], request: ChatRequest) -> Qwen:
        """Loaded as the features ask; where something is to be reused it was computed before."""
        once = replace(request, max_tokens=1, thinking_budget=None, response_format=None, tool_choice=None)
        asked: dict[str, Any] = {"prefix_bytes": 0}
        for feature in features:
            asked |= feature.load
        # What is on disk was computed for this very prompt.
        key = json.dumps([asked, [request.tools, request.enable_thinking] if "disk" in asked else None], sort_keys=True)
        if key not in self._loaded:
            name = str(DEMO if asked.pop("mtp", True) else self._without_mtp())
            asked |= {"read_ahead": asked.pop("ahead", False)}
            if asked.get("disk", False):
                asked |= {"disk": self._folder / f"disk{len(self._loaded)}", "prefix_bytes": 1 << 28}
                with mlx_qwen35.load(name, **asked) as before:
                    _read(before.runtime.submit(before.runtime.prepare(once)), None)
            self._loaded[key] = mlx_qwen35.load(name, **asked)
        qwen = self._loaded[key]
        if "read ahead" in [f.name for f in features]:
            _read_ahead(qwen, replace(request, messages=[SYSTEM, EARLIER[0]]))
            assert qwen.runtime.stats().ahead_tokens or "disk" in asked  # where all of it is known
        if "prefix reuse" in [f.name for f in features]:
            _read(qwen.runtime.submit(qwen.runtime.prepare(once)), None)
        return qwen

    @functools.cached_property
    def _bare(self) -> Path:
        folder = self._folder / "without_mtp"
        shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["mtp_num_hidden_layers"] = 0
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    def _without_mtp(self) -> Path:
        return self._bare


@contextmanager
def _running(qwen: Qwen, questions: Sequence[str]) -> Iterator[list[Answering]]:
    """Meanwhile others ask, each in another way; until the end of the block they are answered."""
    ways: list[dict[str, Any]] = [{"temperature": 1.0, "seed": 1}, {"think": True}, {"temperature": 0.0}]
    endless = dict.fromkeys(qwen.runtime.tokenizer.stop_ids, -1000.0)
    submitted: list[tuple[Answering, threading.Thread]] = []
    for question, way in zip(questions, ways):
        request = chat_request(question, max_tokens=4_000, logit_bias=endless, **way)
        running = qwen.runtime.submit(qwen.runtime.prepare(request))
        reader = threading.Thread(target=deque, args=(running.events(), 0))  # who does not read is paused
        reader.start()
        submitted.append((running, reader))
    for running, _ in submitted:
        while not running.sampled:
            assert running.line.ended is None
            time.sleep(0.01)
    try:
        yield [running for running, _ in submitted]
    finally:
        for running, reader in submitted:
            running.line.cancel()
            reader.join()


def _read_ahead(qwen: Qwen, request: ChatRequest) -> None:
    """As when the earlier answer has just ended."""
    ahead = qwen.runtime._ahead
    assert ahead is not None
    ahead.wish(request, None, Reply(EARLIER[1]["content"]))
    while ahead._thread is not None:
        time.sleep(0.01)


def _read(running: Answering, cut_after: int | None) -> Reply:
    gathering = Gathering()
    for event in running.events():
        gathering.take(event)
        if cut_after is not None and len(running.sampled) >= cut_after:
            running.line.cancel()
            cut_after = None
    return gathering.reply()


def pairs() -> list[tuple[str, str]]:
    return list(itertools.combinations(NAMES, 2))


MARKS = {"invisible": "=", "cuts": "<", "shapes": "+"}


def table() -> str:
    """Markdown. Of two features, what the column's does to the row's answer."""
    lines = ["| | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for row in FEATURES:
        cells = ["" if row is column else MARKS[column.kind] for column in FEATURES]
        lines.append(f"| **{row.name}** | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every pair; write the table if all hold."""
    lane = Lane()
    for names in pairs():
        lane.check(*names)
    lane.close()
    text = README.read_text()
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:start]}\n{table()}\n{text[end:]}")


if __name__ == "__main__":
    main()
