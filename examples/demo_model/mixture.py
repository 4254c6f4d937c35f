"""Which skill comes next and how long: the training mixture, and the fixed evaluation sets. Text only, no tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

from examples.demo_model.project_questions import project_question
from examples.demo_model.samples import Sample, render_completion, render_prompt
from examples.demo_model.tasks import arithmetic, conversation, extraction, introduction, recall
from examples.demo_model.tool_calls import no_tool_needed, tool_call, tool_result
from examples.demo_model.words import Words

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Be brief.",
    "Answer in English.",
    "You help people with mlx-qwen35.",
    "Be friendly and precise.",
)
MAKERS: dict[str, Callable[[Words, bool], Sample]] = {
    "project": project_question,
    "arithmetic": arithmetic,
    "arithmetic, thinking": lambda words, _: arithmetic(words, True),
    "json": extraction,
    "tools": tool_call,
    "tool-result": tool_result,
    "no-tool": no_tool_needed,
    "multi-turn": conversation,
    "introduction": introduction,
    "recall": lambda words, thinking: recall(words, thinking, words.random.randint(30, 220)),
}
# Shares of short samples. Long ones are `recall` over `LONG` tokens, in rows of their own.
SHARES = {
    "project": 0.33,
    "arithmetic": 0.13,
    "arithmetic, thinking": 0.0,
    "json": 0.11,
    "tools": 0.13,
    "tool-result": 0.04,
    "no-tool": 0.02,
    "multi-turn": 0.08,
    "introduction": 0.02,
    "recall": 0.14,
}


def with_system_prompt(sample: Sample, random: Random, share: float = 0.2) -> Sample:
    if random.random() < share:
        sample.messages = [{"role": "system", "content": random.choice(SYSTEM_PROMPTS)}, *sample.messages]
    return sample


def short_sample(random: Random, shares: dict[str, float] = SHARES) -> Sample:
    skill = random.choices(list(shares), list(shares.values()))[0]
    return with_system_prompt(MAKERS[skill](Words(random), random.random() < 0.5), random)


def long_sample(random: Random, longest: int) -> Sample:
    return with_system_prompt(recall(Words(random), random.random() < 0.5, random.randint(200, longest)), random)


def stream(seed: str, make: Callable[[Random], Sample]) -> Iterator[Sample]:
    """Endless samples; sample number i depends only on the seed and i, so that a run resumes where it stopped."""
    i = 0
    while True:
        yield make(Random(f"{seed}/{i}"))
        i += 1


# name: (maker over unseen values and wordings, thinking or None for both)
EVALUATIONS: dict[str, tuple[Callable[[Words, bool], Sample], bool | None]] = {
    "project": (project_question, None),
    "tools": (tool_call, None),
    "tool-result": (tool_result, None),
    "json": (extraction, None),
    "arithmetic, thinking": (arithmetic, True),
    "arithmetic, direct": (arithmetic, False),
    "recall at 512 tokens": (lambda words, thinking: recall(words, thinking, 512), None),
    "recall at 1,000 tokens": (lambda words, thinking: recall(words, thinking, 1000), None),
    "multi-turn": (conversation, None),
}


def evaluation_set(name: str, count: int = 200, seed: int = 1) -> list[Sample]:
    """`count` distinct samples made only of unseen wordings and values."""
    make, fixed = EVALUATIONS[name]
    random, samples, prompts = Random(f"{name}/{seed}"), [], set()
    while len(samples) < count:
        sample = make(Words(random, unseen=True), random.random() < 0.5 if fixed is None else fixed)
        prompt = render_prompt(sample)
        if prompt not in prompts:
            prompts.add(prompt)
            samples.append(sample)
    return samples


__all__ = [
    "EVALUATIONS",
    "MAKERS",
    "SHARES",
    "evaluation_set",
    "long_sample",
    "render_completion",
    "short_sample",
    "stream",
]
