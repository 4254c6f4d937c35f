"""Random JSON schemas, answered by a network that says noise: how many answers end, and how many are what was asked.

    python -m examples.benchmarks.random_json --schemas 2000

The network is tiny and random, its vocabulary the real one (248,320 rows), the temperature 1.5: what holds here holds
for any model. jsonschema judges. Half of the answers are drafted ahead by the checkpoint's MTP layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from mlx_qwen35.chat.events import Content, Event, Finished
from mlx_qwen35.errors import UserError
from mlx_qwen35.options import CacheOptions, Draft
from mlx_qwen35.runtime import Runtime, TextRequest
from tests.support.random_schemas import random_schema
from tests.support.wide import write_wide

MAX_TOKENS = 256
TOGETHER = 64  # requests handed in at a time


@dataclass(frozen=True)
class Judged:
    """What came of one schema.   wrong: what jsonschema says of a finished answer, "" if nothing"""

    seed: int
    finished: bool
    wrong: str
    tokens: int
    drafted: int
    text: str


def judge(runtime: Runtime, schemas: Mapping[int, Mapping[str, Any]]) -> Iterator[Judged]:
    """Answer the schemas, by seed, at temperature 1.5 and without a filter."""
    sampling = {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "presence_penalty": 0.0}
    seeds = list(schemas)
    for start in range(0, len(seeds), TOGETHER):
        running = []
        for seed in seeds[start : start + TOGETHER]:
            form = {"type": "json_schema", "json_schema": {"schema": schemas[seed]}}
            request = TextRequest("{", sampling=sampling, max_tokens=MAX_TOKENS, seed=seed, response_format=form)
            running.append((seed, runtime.submit(runtime.prepare_text(request))))
        for seed, answer in running:
            events: list[Event] = []
            try:
                events += answer.events()
            except UserError as error:
                print(f"seed {seed}: {error}", flush=True)
            text = "".join(event.text for event in events if isinstance(event, Content))
            finished = any(isinstance(event, Finished) and event.reason == "stop" for event in events)
            wrong = _wrong(text, schemas[seed]) if finished else ""
            yield Judged(seed, finished, wrong, len(answer.sampled), answer.line.decoded.drafted, text)


def _wrong(text: str, schema: Mapping[str, Any]) -> str:
    try:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).partition("\n")[0] or "not valid"
    return ""


def _run(runtime: Runtime, seeds: Sequence[int], depth: int) -> Iterator[Judged]:
    for judged in judge(runtime, {seed: random_schema(seed, depth) for seed in seeds}):
        if judged.wrong or not judged.finished:
            print(f"seed {judged.seed}: {judged.wrong or 'not finished'}: {judged.text[:300]!r}", flush=True)
        yield judged


def _told(name: str, found: Sequence[Judged], cpu_seconds: float) -> str:
    ended = [judged for judged in found if judged.finished]
    sound = sum(not judged.wrong for judged in ended)
    tokens, drafted = sum(j.tokens for j in found), sum(j.drafted for j in found)
    return (
        f"{name}: {len(found)} schemas, {100 * len(ended) / len(found):.1f} % finished within {MAX_TOKENS} tokens, "
        f"{100 * sound / max(1, len(ended)):.1f} % of them valid; {tokens} tokens, {drafted} drafted, "
        f"{cpu_seconds:.0f} CPU seconds"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schemas", type=int, default=2000, metavar="N")
    parser.add_argument("--depth", type=int, default=2, metavar="N", help="objects within objects (2)")
    parser.add_argument("--first", type=int, default=10_000, metavar="SEED")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.schemas)
    found: dict[Draft, list[Judged]] = {"off": [], 1: []}
    seconds: dict[Draft, float] = dict.fromkeys(found, 0.0)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        folder = str(write_wide(Path(scratch) / "wide"))
        runtimes = {draft: Runtime.load(folder, caches=CacheOptions(draft=draft)) for draft in found}
        for runtime in runtimes.values():
            stack.callback(runtime.close)
        for start in range(0, len(seeds), 2 * TOGETHER):  # in turn, so that a run that is stopped has said something
            for (draft, runtime), first in zip(runtimes.items(), (start, start + 1)):
                began = time.process_time()
                found[draft] += _run(runtime, seeds[first : start + 2 * TOGETHER : 2], args.depth)
                seconds[draft] += time.process_time() - began
                print(_told("plain" if draft == "off" else "1 draft by MTP", found[draft], seconds[draft]), flush=True)


if __name__ == "__main__":
    main()
