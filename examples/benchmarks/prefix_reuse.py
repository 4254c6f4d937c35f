"""How much of a growing conversation is computed again: four scripts, our runtime and mlx_lm.server turn by turn.

    python -m examples.benchmarks.prefix_reuse [--scripts ABCD] [--turns N] [--no-peer] [--verbose]

The checkpoint is a puppet (tests/support/puppet.py): the real vocabulary and chat template, weights that answer each
turn with reasoning, tool calls and text of their own, so a cache that is restored wrongly shows as a wrong text. Both
sides get the same messages, built from what ours answered. The bar: prefilled tokens are at most 1.15 times those
beyond the longest prefix shared with any earlier prompt and answer of the run.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from examples.benchmarks import reuse_scripts
from examples.benchmarks.measure import print_conditions, print_table
from examples.benchmarks.mlx_lm_server import MlxLmServer
from examples.benchmarks.reuse_run import Conversation, Report, ask, our_runtime, run, write_checkpoint
from examples.benchmarks.reuse_scripts import Script, Turn
from examples.benchmarks.reuse_truth import BAR, total
from mlx_qwen35.runtime import ChatRequest

HEAD = (
    "script",
    "side",
    "prompt",
    "cached",
    "prefilled",
    "beyond LCP",
    "re-rendered",
    "reported",
    "ratio",
    "after 1st",
    "worst",
)
TURN_HEAD = (
    "turn",
    "prompt",
    "LCP",
    "re-rendered",
    "reported",
    "cached",
    "ratio",
    "s",
    "peer cached",
    "ratio",
    "s",
    "notes",
)


def scripts(keys: str, turns: int) -> list[Script]:
    """The scripts named by `keys`; turns: tool rounds in A and D, questions in B; C has about as many answers."""
    made = {
        "A": lambda: reuse_scripts.tool_loop(turns),
        "B": lambda: reuse_scripts.questions(turns),
        "C": lambda: reuse_scripts.mixed(max(turns // 3, 2)),
        "D": lambda: reuse_scripts.tool_loop(turns, respelled=True),
    }
    return [made[key]() for key in keys]


def print_turns(report: Report) -> None:
    """One line a turn."""
    rows = []
    for i, ours in enumerate(report.ours):
        peer = report.peer[i] if i < len(report.peer) else None
        beside = (str(peer.cached), f"{peer.ratio:.2f}", f"{peer.first_seconds:.2f}") if peer else ("-", "-", "-")
        kind = "" if ours.thinking else "no thinking"
        reason = ours.cache_note.partition(":")[0]
        notes = "; ".join(filter(None, (kind, ours.note, reason, f"peer: {peer.note}" if peer and peer.note else "")))
        numbers = (i + 1, ours.prompt, ours.shared, ours.rerendered, ours.reported_rerendered, ours.cached)
        rows.append((*map(str, numbers), f"{ours.ratio:.2f}", f"{ours.first_seconds:.2f}", *beside, notes))
    print_table(TURN_HEAD, rows)
    print()


def lines(report: Report) -> list[tuple[str, ...]]:
    """A script's line for each side that answered it."""
    rows = []
    for side, turns in (("ours", report.ours), ("peer", report.peer)):
        if len(turns) < len(report.script.turns):
            continue
        t = total(turns)
        numbers = (t.prompt, t.cached, t.prefilled, t.beyond, t.rerendered)
        reported = f"{t.reported_rerendered:,}" if side == "ours" else "-"
        ratios = (t.ratio, t.ratio_after_first, t.worst_turn)
        rows.append((report.script.key, side, *(f"{n:,}" for n in numbers), reported, *(f"{r:.3f}" for r in ratios)))
    return rows


def print_summary(reports: list[Report]) -> bool:
    """The totals, the times and what failed; whether every script of ours is within the bar and says its lines."""
    print_table(HEAD, [line for report in reports for line in lines(report)])
    print("\nMedian seconds to the first token (thinking turns after the first; the peer holds tool calls back):")
    good = True
    for report in reports:
        key, ours = report.script.key, total(report.ours)
        beside = ""
        if len(report.peer) == len(report.ours) and (peer := total(report.peer)).first_seconds and ours.first_seconds:
            beside = f"   peer {peer.first_seconds:.2f}   {peer.first_seconds / ours.first_seconds:.1f}x"
        print(f"  {key}  ours {ours.first_seconds or 0:.2f}{beside}   ({report.script.title})")
        if report.failure:
            print(f"  {key}  THE PEER FAILED at {report.failure}")
        for i, turn in enumerate(report.ours):
            if turn.note:
                print(f"  {key}  OURS, turn {i + 1}: {turn.note}")
                good = False
        good = good and ours.ratio <= BAR
        verdict = "within" if ours.ratio <= BAR else "ABOVE"
        print(f"  {key}  ratio {ours.ratio:.3f} is {verdict} the bar of {BAR}")
    return good


def restart(folder: Path, disk: Path, conversation: Conversation, state: Path) -> int:
    """A new process on the same disk folder answers the conversation's next turn; returns the tokens it reused."""
    turn = Turn("user", "One more thing. Please briefly, and keep to the horse.", "briefly", "horse")
    request = conversation.request(turn)
    ask_for = {"messages": request.messages, "tools": request.tools, "enable_thinking": request.enable_thinking}
    state.write_text(json.dumps({"folder": str(folder), "disk": str(disk), "request": ask_for}))
    command = [sys.executable, "-m", "examples.benchmarks.prefix_reuse", "--resume", str(state)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    usage = json.loads(done.stdout.splitlines()[-1])
    print(f"\nAfter a restart, the next turn of {conversation.script.key}: {usage}")
    return usage["cached_tokens"]


def resume(state: Path) -> None:
    """The new process of `restart`: answers one request and prints its usage as one line of JSON."""
    saved = json.loads(state.read_text())
    with our_runtime(Path(saved["folder"]), Path(saved["disk"])) as runtime:
        print(json.dumps(asdict(ask(runtime, ChatRequest(**saved["request"], max_tokens=400)).usage)))


def measure(chosen: list[Script], with_peer: bool, verbose: bool) -> bool:
    """Everything, on a checkpoint in a temporary folder."""
    reports = []
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder, disk = Path(temporary) / "puppet", Path(temporary) / "prefixes"
        says = write_checkpoint(folder)
        peer = stack.enter_context(MlxLmServer(folder, Path(temporary) / "peer.log")) if with_peer else None
        with our_runtime(folder, disk) as runtime:
            # Both sides run everything once before anything is timed; nothing of it is a script's beginning.
            seen: list[bytes] = []
            run(runtime, peer, reuse_scripts.warm_up(), says, seen)
            to_resume = None
            for script in chosen:
                report, conversation = run(runtime, peer, script, says, seen)
                reports.append(report)
                to_resume = conversation if to_resume is None or script.key == "B" else to_resume
                if verbose:
                    print_turns(report)
        good = print_summary(reports)
        if to_resume is not None:
            good = restart(folder, disk, to_resume, Path(temporary) / "resume.json") > 0 and good
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", default="ABCD", help="which of A, B, C and D (default all)")
    parser.add_argument("--turns", type=int, default=20, help="length of a script (default 20)")
    parser.add_argument("--no-peer", action="store_true", help="our side alone")
    parser.add_argument("--verbose", action="store_true", help="a line a turn as well")
    parser.add_argument("--resume", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.resume:
        resume(args.resume)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the peer's process ends with this one
    print_conditions("examples.benchmarks.prefix_reuse")
    sys.exit(0 if measure(scripts(args.scripts, args.turns), not args.no_peer, args.verbose) else 1)


if __name__ == "__main__":
    main()
