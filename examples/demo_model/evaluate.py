"""Evaluates the demo checkpoint through this project's own runtime, and writes the numbers into its model card.

    python -m examples.demo_model.evaluate [--count 200] [--jobs 2] [--checkpoint FOLDER] [--write-card]

Every prompt is made of wordings and values that training never uses; the script also regenerates part of the training
stream and refuses to report when a prompt of the evaluation occurs in it. Greedy answers, 200 prompts per skill.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from examples.demo_model.acceptance import acceptance
from examples.demo_model.card import write_card
from examples.demo_model.mixture import EVALUATIONS, evaluation_set, long_sample, short_sample, stream
from examples.demo_model.samples import CHECKPOINT, Sample, render_prompt

TRAINING_SAMPLES = 50_000  # of the training stream, regenerated to prove that no evaluation prompt is among them
LONGEST_ANSWER = 160
DRAFTED = 40  # prompts per skill on which the MTP layer is judged: some ten thousand drafts in all


@dataclass
class Answer:
    """What came back for one prompt."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, dict]] = field(default_factory=list)
    finished: str = ""


Backend = Callable[[Sample], Answer]


def runtime_backend(folder: Path) -> Backend:
    """Answers through mlx_qwen35.runtime at temperature 0: what a user of the package gets."""
    from mlx_qwen35.chat.events import Content, Finished, Reasoning, ToolCallEnd
    from mlx_qwen35.runtime import ChatRequest, Runtime

    runtime = Runtime.load(str(folder))

    def answer(sample: Sample) -> Answer:
        out = Answer()
        request = ChatRequest(
            sample.messages,
            sample.tools or None,
            sample.thinking,
            sampling={"temperature": 0.0},
            max_tokens=LONGEST_ANSWER,
        )
        for event in runtime.chat(request):
            if isinstance(event, Reasoning):
                out.reasoning += event.text
            elif isinstance(event, Content):
                out.content += event.text
            elif isinstance(event, ToolCallEnd):
                out.calls.append((event.name, event.arguments))
            elif isinstance(event, Finished):
                out.finished = event.reason
        return out

    return answer


def is_right(sample: Sample, answer: Answer) -> bool:
    """The task is solved: the same words, the same JSON value, the same calls, the fact in the answer."""
    content = answer.content.strip()
    if sample.calls:
        called = [(name, {k: str(v) for k, v in arguments.items()}) for name, arguments in answer.calls]
        return called == sample.calls
    if answer.calls:
        return False
    if sample.skill == "json":
        try:
            return json.loads(content) == json.loads(sample.answer)
        except json.JSONDecodeError:
            return False
    if sample.skill == "recall":
        return sample.answer.rsplit(" is ", 1)[1].rstrip(".") in content
    return content == sample.answer


def thinks_rightly(sample: Sample, answer: Answer) -> bool:
    """A think block with content and then an answer if thinking is on; no trace of one if it is off."""
    answered = bool(answer.content.strip() or answer.calls) and answer.finished in ("stop", "tool_calls")
    stray = "think>" in answer.content
    return answered and not stray and bool(answer.reasoning.strip()) == sample.thinking


def training_prompts(count: int, seed: int = 0) -> Iterable[str]:
    """The prompts of the training stream: short samples, and one long one in twenty."""
    for rank in range(2):
        for kind, make, share in (("short", short_sample, 19), ("long", lambda r: long_sample(r, 1100), 1)):
            for sample in islice(stream(f"{seed}/{kind}/{rank}", make), count * share // 40):
                yield render_prompt(sample)


def held_out(sets: dict[str, list[Sample]]) -> int:
    """-> how many training prompts were compared. Exits when an evaluation prompt is among them."""
    prompts = {render_prompt(sample): name for name, samples in sets.items() for sample in samples}
    compared = 0
    for prompt in training_prompts(TRAINING_SAMPLES):
        compared += 1
        if prompt in prompts:
            raise SystemExit(f"{prompts[prompt]}: this prompt occurs in training:\n{prompt}")
    return compared


def evaluate_one(folder: Path, name: str, count: int) -> tuple[str, int, int]:
    """-> the skill, how many of its answers are right, and how many show the right think-block behaviour."""
    backend, samples, started = runtime_backend(folder), evaluation_set(name, count), time.time()
    answers = [(sample, backend(sample)) for sample in samples]
    right, thought = (sum(test(*pair) for pair in answers) for test in (is_right, thinks_rightly))
    print(f"{name:24} {100 * right / count:5.1f} %  ({count} prompts, {time.time() - started:.0f} s)", flush=True)
    return name, right, thought


def evaluate(folder: Path, names: list[str], count: int, jobs: int) -> dict[str, float]:
    """Percent right by skill, percent of right think-block behaviour over all, percent of MTP drafts accepted."""
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(evaluate_one, folder, name, count) for name in names]
        results = {name: (right, thought) for name, right, thought in (job.result() for job in running)}
    scores = {name: 100 * right / count for name, (right, _) in results.items()}
    scores["think-block behaviour"] = 100 * sum(t for _, t in results.values()) / (count * len(names))
    drafted = [sample for name in names for sample in evaluation_set(name, count)[:DRAFTED]]
    scores["first MTP draft accepted"] = 100 * acceptance(folder, drafted)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200, help="prompts per skill")
    parser.add_argument("--only", choices=list(EVALUATIONS), help="one skill")
    parser.add_argument("--jobs", type=int, default=2, help="skills at a time")
    parser.add_argument("--write-card", action="store_true", help="write the numbers into the model card")
    arguments = parser.parse_args()
    names = [name for name in EVALUATIONS if arguments.only in (None, name)]
    compared = held_out({name: evaluation_set(name, arguments.count) for name in names})
    print(f"no evaluation prompt is among {compared:,} prompts of the training stream", flush=True)
    scores = evaluate(arguments.checkpoint, names, arguments.count, arguments.jobs)
    for name in ("think-block behaviour", "first MTP draft accepted"):
        print(f"{name:24} {scores[name]:5.1f} %")
    if arguments.write_card:
        write_card(arguments.checkpoint, scores, arguments.count, compared)


if __name__ == "__main__":
    main()
