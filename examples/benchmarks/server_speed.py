"""Our server beside mlx_lm.server, over HTTP, in one run: tokens/s of 1, 4 and 8 clients, and the wait in turn 10.

    python -m examples.benchmarks.server_speed clients [--rounds 5]
    python -m examples.benchmarks.server_speed turns [--rounds 3]

The demo checkpoint in float32 on both sides, A B A B, medians. Beside seconds on the clock stand CPU seconds of the
server's process: they say the same on a quiet machine, and stay meaningful on a busy one. Turns: an append-only
conversation, one that thinks in every turn, with 4,000 tokens of system message and tools, and that one once more with
the time in its system message, as agent programs have it; each side gets its own answers back, and who is asked first
changes every turn.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from zlib import crc32

from examples.benchmarks.chat_server import ChatServer, PeerAnswer
from examples.benchmarks.measure import print_conditions, print_table
from examples.benchmarks.mlx_lm_server import MlxLmServer
from examples.benchmarks.our_server import OurServer
from examples.demo_model.mixture import evaluation_set
from tests.support.float32 import write_float32_demo

Body = dict[str, Any]
Answers = dict[str, PeerAnswer]  # by side
SKILLS = ("project", "json", "arithmetic, thinking", "multi-turn")
ANSWERS = 6  # of each client and round
STOPS = {"991": -100, "993": -100}  # of the demo's tokenizer: a text without them goes on to its limit
DRAWN_TOKENS = 150
TURNS = 10
# No calls: a demo that meets 22 tools makes some that end in the middle, and both sides would remember them otherwise.
TURN: Body = {"temperature": 0.0, "max_tokens": 60, "logit_bias": {"1005": -100}}
CLOCK = "(clock)"
TOOLS = 22  # of such as a coding agent has: with their descriptions some 3,500 tokens of the demo's tokenizer


@dataclass(frozen=True)
class Cost:
    """tokens: generated   wall, cpu: seconds; cpu of the server's process"""

    tokens: int
    wall: float
    cpu: float


@contextmanager
def servers() -> Iterator[dict[str, ChatServer]]:
    """Both, on one folder with the demo in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "demo-float32"
        write_float32_demo(folder)
        logs = Path(scratch)
        ours, peer = OurServer(str(folder), logs / "ours.log"), MlxLmServer(folder, logs / "peer.log")
        with ours, peer:
            yield {"ours": ours, "mlx_lm.server": peer}


def spent(server: ChatServer, work: Callable[[], int]) -> Cost:
    """What `work`, which returns tokens, takes."""
    before, started = server.cpu_seconds(), time.perf_counter()
    tokens = work()
    return Cost(tokens, time.perf_counter() - started, server.cpu_seconds() - before)


# Clients


def answers(clients: int, round_number: int) -> list[list[Body]]:
    """For each client its questions, greedy, none of which comes twice in the run."""
    sets = [evaluation_set(skill, 2 * ANSWERS * clients, seed=1000 + round_number) for skill in SKILLS]
    samples = [sample for four in zip(*sets) for sample in four][: ANSWERS * clients]
    bodies = [
        {"messages": s.messages, "temperature": 0.0, "max_tokens": 160}
        | {"chat_template_kwargs": {"enable_thinking": s.thinking}}
        for s in samples
    ]
    return [bodies[i::clients] for i in range(clients)]


def drawn(clients: int, round_number: int) -> list[list[Body]]:
    """For each client one text of a given length, drawn at temperature 1."""
    said = [[{"role": "user", "content": f"Story {round_number}.{clients}.{i}"}] for i in range(clients)]
    shared = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": DRAWN_TOKENS, "logit_bias": STOPS}
    return [[{"messages": messages, **shared}] for messages in said]


def at_once(server: ChatServer, clients: Sequence[Sequence[Body]]) -> int:
    """Each client asks one question after the other; all clients at the same time. -> tokens generated"""

    def ask(bodies: Sequence[Body]) -> int:
        return sum(server.chat(body).completion_tokens for body in bodies)

    with ThreadPoolExecutor(len(clients)) as pool:
        return sum(pool.map(ask, clients))


def compare_clients(rounds: int) -> None:
    rows: list[tuple[str, ...]] = []
    with servers() as both:
        for server in both.values():
            at_once(server, answers(2, 99))
        for kind, make in (("answers, greedy", answers), ("texts, drawn", drawn)):
            for clients in (1, 4, 8):
                costs: dict[str, list[Cost]] = {name: [] for name in both}
                for number in range(rounds):
                    bodies = make(clients, number)
                    for name, server in both.items() if number % 2 == 0 else reversed(both.items()):
                        costs[name].append(spent(server, lambda server=server, bodies=bodies: at_once(server, bodies)))
                rows.append((kind, str(clients), *speeds(costs)))
                print("  ".join(rows[-1]), flush=True)
    print()
    print_table(("what", "clients", "ours, tokens/s", "peer", "ratio", "ours, tokens/CPU s", "peer", "ratio"), rows)


def speeds(costs: dict[str, list[Cost]]) -> Iterator[str]:
    """Tokens a second, by the clock and of the process's time: both sides, and the median of each round's ratio."""
    for seconds in ("wall", "cpu"):
        ours, peer = ([c.tokens / getattr(c, seconds) for c in side] for side in costs.values())
        yield f"{median(ours):.0f}"
        yield f"{median(peer):.0f}"
        yield f"{median(a / b for a, b in zip(ours, peer)):.2f}"


# Turns


@dataclass
class Talk:
    """A conversation with one side."""

    server: ChatServer
    messages: list[Body]
    shared: Body

    def turn(self, question: str) -> PeerAnswer:
        self.messages.append({"role": "user", "content": question})
        told = f"Current time: 2026-11-22 10:{len(self.messages):02}:00"
        system = {**self.messages[0], "content": self.messages[0]["content"].replace(CLOCK, told)}
        answer = self.server.chat({**self.shared, "messages": [system, *self.messages[1:]]})
        reply: Body = {"role": "assistant", "content": answer.content, "reasoning_content": answer.reasoning}
        self.messages.append(reply)
        return answer


def questions(name: str) -> list[str]:
    """Ten of them, one for each turn; different in each conversation."""
    sets = [evaluation_set(skill, 5, seed=crc32(name.encode())) for skill in ("arithmetic, thinking", "json")]
    return [sample.messages[-1]["content"] for pair in zip(*sets) for sample in pair][:TURNS]


def append_only(name: str) -> tuple[list[Body], Body]:
    return [{"role": "system", "content": f"You help {name}."}], {"chat_template_kwargs": {"enable_thinking": False}}


def thinking(name: str) -> tuple[list[Body], Body]:
    """4,000 tokens of system message and tools, which each conversation has for itself."""
    words = "The agent works in a checkout, reads before it writes, and says what it did and what it left out. "
    system = f"You help {name}. " + words * 12
    tools = [tool(name, i) for i in range(TOOLS)]
    return [{"role": "system", "content": system}], {"tools": tools, "chat_template_kwargs": {"enable_thinking": True}}


def telling_the_time(name: str) -> tuple[list[Body], Body]:
    """The same of an agent program that writes date and time to the front of its system message, anew in every turn."""
    opening, shared = thinking(name)
    return [{"role": "system", "content": f"{CLOCK}\n{opening[0]['content']}"}], shared


def tool(name: str, i: int) -> Body:
    about = f"Tool {i} of {name}: looks at a path, compares it with what was asked for, and returns lines that differ."
    properties = {key: {"type": "string", "description": f"The {key} to use"} for key in ("path", "pattern", "mode")}
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    return {"type": "function", "function": {"name": f"tool_{i}", "description": about, "parameters": parameters}}


SCRIPTS = {
    "append-only": append_only,
    "thinking, 4,000 tokens of system and tools": thinking,
    "the same, telling the time": telling_the_time,
}


def compare_turns(rounds: int) -> None:
    rows: list[tuple[str, ...]] = []
    with servers() as both:
        for kind, make in SCRIPTS.items():
            last: dict[str, list[PeerAnswer]] = {side: [] for side in both}
            for number in range(-1, rounds):  # the first warms both up
                for side, answer in last_turns(both, make, f"client {number}").items():
                    if number >= 0:
                        last[side].append(answer)
            rows.append((kind, *waits(last)))
            print("  ".join(rows[-1]), flush=True)
    print()
    seconds = ("ours, s", "peer", "ratio", "ours, CPU s", "peer", "ratio")
    print_table(("first token in turn 10", "prompt", "ours new", "peer new", *seconds), rows)


def last_turns(both: dict[str, ChatServer], make: Callable[[str], tuple[list[Body], Body]], name: str) -> Answers:
    """The same conversation with both, turn by turn; each side's answer in the last turn."""
    opened = {side: make(name) for side in both}
    talks = {side: Talk(both[side], opening, shared | TURN) for side, (opening, shared) in opened.items()}
    answers: Answers = {}
    for i, question in enumerate(questions(name)):
        for side in both if i % 2 else reversed(both):
            answers[side] = talks[side].turn(question)
    return answers


def waits(last: dict[str, list[PeerAnswer]]) -> Iterator[str]:
    """Tokens of the prompt and those that were new, then waits by the clock and in CPU seconds; medians."""
    ours, peer = last.values()
    yield f"{median(a.prompt_tokens for a in ours):.0f}"
    for side in (ours, peer):
        yield f"{median(a.prompt_tokens - a.cached_tokens for a in side):.0f}"
    for seconds in ("first_seconds", "first_cpu"):
        for side in (ours, peer):
            yield f"{median(getattr(a, seconds) for a in side):.3f}"
        yield f"{median(getattr(b, seconds) / max(getattr(a, seconds), 0.005) for a, b in zip(ours, peer)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["clients", "turns"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print_conditions(f"examples.benchmarks.server_speed {arguments.what}")
    {"clients": compare_clients, "turns": compare_turns}[arguments.what](arguments.rounds)


if __name__ == "__main__":
    main()
