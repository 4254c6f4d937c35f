"""Hundreds of clients at once, for minutes: does the server leak, mix up answers, lose anybody, or let too many in?

    python -m examples.benchmarks.soak [--seconds 300] [--steady 200] [--slow 50] [--vanish 50] [--queue 64]

`mlx-qwen35 serve demo` as a process of its own. Steady clients ask greedy questions in three protocols, streaming or
not, over connections that they keep; slow ones read long streams a few bytes at a time; vanishing ones leave in the
middle, with or without a farewell. Every answer is held against the one that was given when nobody else asked; who is
refused (429, 503) comes back when told. A minute of the same goes before, so that what is kept on purpose is there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psutil

from examples.benchmarks.measure import print_conditions
from examples.benchmarks.our_server import OurServer
from examples.benchmarks.soak_http import Connection, Lost, Pace
from examples.benchmarks.soak_questions import Question, long_texts, questions

MIB = 1 << 20
SLOW = Pace(size=512, pause=0.01, buffer=4096)
LONGEST_RETRY = 60  # seconds that anybody may be told to wait
QUIET_SECONDS = 60  # for the last answers, and for what is given back after them
PREFIX_GIB = 1 / 32  # little enough for the minute before to fill; each client that leaves leaves a cut-off text
# Threads that may still come: of asyncio's pool, those beyond the six that the time before has started in every run.
POOLED = max(0, min(32, (os.cpu_count() or 1) + 4) - 6)
GROWTH_BYTES = 24 * MIB  # that resident memory may vary by; a leak of 1 kB a request would be more


@dataclass
class Load:
    """How many clients of each kind, and for how long."""

    seconds: float = 300
    steady: int = 200
    slow: int = 50
    vanish: int = 50
    queue: int = 64
    warm_up: float = 60


@dataclass
class Level:
    """What the server holds."""

    resident: int
    mlx: float
    files: int
    threads: int
    rows: float
    open_answers: float

    def __str__(self) -> str:
        return (
            f"{self.resident / MIB:7.1f} MiB resident, {self.mlx / MIB:6.1f} MiB in MLX, {self.files} files, "
            f"{self.threads} threads, {self.rows:g} rows, {self.open_answers:g} open answers"
        )


@dataclass
class Report:
    """What happened. `counts`: answers and refusals by kind; `faults`: what should not have happened, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    most_open: float = 0
    before: Level | None = None
    after: Level | None = None

    def fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 20:
            self.faults.append(text)


class Soak:
    """One run against one server."""

    def __init__(self, server: OurServer, load: Load) -> None:
        self._server, self._load = server, load
        self._process = psutil.Process(server.process.pid)
        self._questions, self._texts = questions(36), long_texts(6)
        self._alone: dict[int, str] = {}  # by the question's identity
        self.report = Report()
        self._end = 0.0

    async def run(self) -> Report:
        """Everything in turn."""
        for question in [*self._questions, *self._texts]:
            self._alone[id(question)] = await self._ask_alone(question)
        distinct = len(set(self._alone.values()))
        print(f"{len(self._alone)} questions asked alone, {distinct} different answers", flush=True)
        await self._storm(self._load.warm_up)
        self.report.before = await self._quiet()
        print(f"before  {self.report.before}", flush=True)
        self.report.counts.clear()
        await self._storm(self._load.seconds)
        self.report.after = await self._quiet()
        print(f"after   {self.report.after}", flush=True)
        self._compare(self.report.before, self.report.after)
        return self.report

    async def _ask_alone(self, question: Question) -> str:
        connection = Connection(self._server.port)
        status, _ = await connection.post(question.path, question.body(stream=False))
        raw = await connection.body()
        connection.close()
        assert status == 200, raw
        return question.whole(raw)

    async def _storm(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        clients = [self._steady(i) for i in range(self._load.steady)]
        clients += [self._slow(i) for i in range(self._load.slow)]
        clients += [self._vanishing(i) for i in range(self._load.vanish)]
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*clients)
        watch.cancel()

    async def _watch(self) -> None:
        """The queue's limit, and the level, from outside."""
        for second in count():
            numbers = await asyncio.to_thread(self._server.metrics)
            self.report.most_open = max(self.report.most_open, numbers["open_answers"])
            if second % 30 == 29:
                print(f"during  {await self._level()}", flush=True)
            await asyncio.sleep(1)

    async def _steady(self, number: int) -> None:
        choose = random.Random(f"steady {number}")
        connection = Connection(self._server.port)
        while time.monotonic() < self._end:
            await self._ask(connection, choose.choice(self._questions), choose.random() < 0.5, choose, "steady")
        connection.close()

    async def _slow(self, number: int) -> None:
        choose = random.Random(f"slow {number}")
        while time.monotonic() < self._end:
            connection = Connection(self._server.port, SLOW)
            await self._ask(connection, choose.choice(self._texts), True, choose, "slow")
            connection.close()

    async def _ask(
        self, connection: Connection, question: Question, stream: bool, choose: random.Random, kind: str
    ) -> None:
        """One question, its answer held against the one given alone."""
        try:
            status, headers = await connection.post(question.path, question.body(stream))
            raw = await connection.body()
            if status == 200:
                said = question.streamed(raw) if stream else question.whole(raw)
                self._judge(question, said, kind)
            else:
                await self._refused(status, headers, raw, choose)
        except (OSError, Lost, ValueError, KeyError) as error:
            self.report.fault(f"{kind}, {question.protocol}: {type(error).__name__}: {error}")
            connection.close()

    def _judge(self, question: Question, said: str, kind: str) -> None:
        wanted = self._alone[id(question)]
        if said == wanted:
            self.report.counts[f"{kind} answered"] += 1
        elif said in self._alone.values():
            self.report.fault(f"{kind}: ANOTHER'S ANSWER: {said[:80]!r}, not {wanted[:80]!r}")
        else:
            self.report.fault(f"{kind}, {question.protocol}: {said[:80]!r} ({len(said)}), alone {wanted[:80]!r}")

    async def _refused(self, status: int, headers: dict[str, str], raw: bytes, choose: random.Random) -> None:
        wait = headers.get("retry-after", "")
        if status not in (429, 503) or not wait.isdecimal() or not 1 <= int(wait) <= LONGEST_RETRY:
            self.report.fault(f"refused with {status}, Retry-After {wait!r}: {raw[:120]!r}")
        json.loads(raw)
        self.report.counts[f"refused with {status}"] += 1
        left = self._end - time.monotonic()
        await asyncio.sleep(min(int(wait or 1) * choose.uniform(0.5, 1), max(left, 0)))

    async def _vanishing(self, number: int) -> None:
        choose = random.Random(f"vanish {number}")
        while time.monotonic() < self._end:
            question, stream = choose.choice([*self._questions, *self._texts]), choose.random() < 0.7
            connection = Connection(self._server.port)
            try:
                async with asyncio.timeout(choose.uniform(0.01, 3)):
                    status, headers = await connection.post(question.path, question.body(stream))
                    if status != 200:
                        await self._refused(status, headers, await connection.body(), choose)
                        continue
                    pieces = connection.pieces()
                    for _ in range(choose.randint(1, 20)):
                        await anext(pieces, None)
            except TimeoutError:
                pass
            except (OSError, Lost) as error:
                self.report.fault(f"vanishing: {type(error).__name__}: {error}")
            finally:
                connection.close(reset=choose.random() < 0.5)
            self.report.counts["vanished"] += 1

    async def _quiet(self) -> Level:
        """When nobody asks any more: wait until nothing is computed, and until what is given back is back.

        Next turns are read ahead for a while, too, by a thread that ends when there are none left.
        """
        end, last = time.monotonic() + QUIET_SECONDS, await self._level()
        while not self._is_at_rest(last, level := await self._level()):
            last = level
            if time.monotonic() > end:
                self.report.fault(f"it never came to rest: {level}")
                break
        return level

    def _is_at_rest(self, last: Level, level: Level) -> bool:
        changes = (level.files, level.threads) != (last.files, last.threads)
        held = self.report.before is not None and level.files > self.report.before.files
        return not (level.rows or level.open_answers or changes or held)

    async def _level(self) -> Level:
        numbers = self._server.metrics()
        await asyncio.sleep(2)  # until the connection that told them is closed, too
        with self._process.oneshot():
            return Level(
                self._process.memory_info().rss,
                numbers["active_memory_bytes"],
                self._process.num_fds(),
                self._process.num_threads(),
                numbers["answers_running"] + numbers["answers_waiting"],
                numbers["open_answers"],
            )

    def _compare(self, before: Level, after: Level) -> None:
        for name in ("files", "threads", "rows", "open_answers"):
            if getattr(after, name) > getattr(before, name) + (POOLED if name == "threads" else 0):
                self.report.fault(f"{name}: {getattr(before, name)} before, {getattr(after, name)} after")
        for name in ("resident", "mlx"):
            if (growth := getattr(after, name) - getattr(before, name)) > GROWTH_BYTES:
                self.report.fault(f"{name} memory grew by {growth / MIB:.1f} MiB")
        limit = self._server_limit()
        if self.report.most_open > limit:
            self.report.fault(f"{self.report.most_open:g} open answers, where {limit} is the limit")
        if self._load.steady + self._load.slow > 2 * limit and not self.report.counts["refused with 429"]:
            self.report.fault("nobody was told to come back later")

    def _server_limit(self) -> int:
        return 16 + self._load.queue


def soak(load: Load) -> Report:
    """A server, its clients, and what happened."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        OurServer(
            "demo", Path(scratch) / "log", "--queue", str(load.queue), "--prefix-memory", str(PREFIX_GIB)
        ) as server,
    ):
        return asyncio.run(Soak(server, load).run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in vars(Load()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    load = Load(**vars(parser.parse_args()))
    print_conditions(f"examples.benchmarks.soak --seconds {load.seconds:g}")
    report = soak(load)
    for kind, times in sorted(report.counts.items()):
        print(f"{times:8,}  {kind}")
    print(f"{report.most_open:8g}  open answers at most; the limit is {16 + load.queue}")
    print("\n".join(report.faults))
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
