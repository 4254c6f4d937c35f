"""Our server beside mlx_lm.server, over HTTP, in one run: tokens/s of 1, 4 and 8 clients, and the wait in turn 10.

    python -m examples.benchmarks.server_speed clients [--rounds 5]
    python -m examples.benchmarks.server_speed turns [--rounds 3]

The demo checkpoint in float32 on both sides, A B A B, medians. Beside seconds on the clock stand CPU seconds of the
server's process: they say the same on a quiet machine, and stay meaningful on a busy one. Turns: a conversation that
never thinks, one that thinks in every turn, with 4,000 tokens of system message and tools, and that one once more with
the time in its system message, as agent programs have it; each side gets its own answers back, and who is asked first
changes every turn. The demo's own answers are a few words; these go on for some 200 tokens, as answers to people do
(bias against the tokens that end them, on both sides). Between an answer and the next question is a pause in which a
person would read and type: a second at least, and until the server computes nothing any more. What it computes in it
(ours reads the next turn ahead) stands in the last columns.
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
SKILLS = ("project", "json", "arithmetic, thinking", "multi-turn")
ANSWERS = 6  # of each client and round
STOPS = {"991": -100, "993": -100}  # of the demo's tokenizer: a text without them goes on to its limit
NO_THINK = (
    "1016"  # a text that may not end writes that, too, and then the template takes what stands before for thought
)
DRAWN_TOKENS = 150
TURNS = 10
# No calls: a demo that meets 22 tools makes some that end in the middle, and both sides would remember them otherwise.
TURN: Body = {"temperature": 0.0, "max_tokens": 240, "logit_bias": {"1005": -100, **STOPS}}
PAUSE_SECONDS, LOOK_SECONDS = 1.0, 0.3
IDLE = 0.03  # CPU seconds between two looks, of a server that only waits
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
    never: Body = {
        "chat_template_kwargs": {"enable_thinking": False},
        "logit_bias": {**TURN["logit_bias"], NO_THINK: -100},
    }
    return [{"role": "system", "content": f"You help {name}."}], never


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
            last_turns(both, make, "nobody", turns=2)  # warms both up
            pauses: dict[str, list[float]] = {side: [] for side in both}
            for number in range(rounds):
                for side, (answer, pause) in last_turns(both, make, f"client {number}").items():
                    last[side].append(answer)
                    pauses[side].append(pause)
            rows.append((kind, *waits(last), *(f"{median(pause):.2f}" for pause in pauses.values())))
            print("  ".join(rows[-1]), flush=True)
    print()
    seconds = ("ours, s", "peer", "ratio", "ours, CPU s", "peer", "ratio", "pause, CPU s", "peer")
    print_table(("first token in turn 10", "prompt", "ours new", "peer new", *seconds), rows)


def last_turns(
    both: dict[str, ChatServer], make: Callable[[str], tuple[list[Body], Body]], name: str, turns: int = TURNS
) -> dict[str, tuple[PeerAnswer, float]]:
    """The same conversation with both, turn by turn; each side's answer in the last turn, and the CPU seconds of the
    pause before it."""
    opened = {side: make(name) for side in both}
    talks = {side: Talk(both[side], opening, TURN | shared) for side, (opening, shared) in opened.items()}
    found: dict[str, tuple[PeerAnswer, float]] = {}
    pauses = dict.fromkeys(both, 0.0)
    for i, question in enumerate(questions(name)[:turns]):
        for side in both if i % 2 else reversed(both):
            found[side] = talks[side].turn(question), pauses[side]
            pauses[side] = pause(both[side])
    return found


def pause(server: ChatServer) -> float:
    """A person reads and types; the other server is asked nothing meanwhile. -> CPU seconds"""
    began = before = server.cpu_seconds()
    time.sleep(PAUSE_SECONDS)
    while (now := server.cpu_seconds()) - before > IDLE:
        before = now
        time.sleep(LOOK_SECONDS)
    return now - began


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
