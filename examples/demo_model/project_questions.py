"""Questions about this project: every way to ask every intent, split into training and evaluation."""

from __future__ import annotations

from functools import cache
from random import Random

from examples.demo_model.project_facts import FITS, INTENTS, LAYERS, PRECISIONS, WEIGHTS, Intent
from examples.demo_model.samples import Sample, assistant, user
from examples.demo_model.wordings import FRAMES, OPENINGS, UNKNOWN, patterns
from examples.demo_model.words import Words

UNKNOWN_ANSWER = "I do not know that. I am only a small demo model. Ask me about mlx-qwen35."


@cache
def paraphrases(intent: Intent, unseen: bool) -> tuple[str, ...]:
    """All wordings of one world. Wholly unseen cores if the intent has them, else a share of the frames."""
    frames = FRAMES[intent.kind]
    if intent.unseen:
        cores = intent.unseen if unseen else intent.cores
        return tuple(frame.format(core) for core in cores for frame in frames)
    wordings = [frame.format(core) for core in intent.cores for frame in frames]
    held = [w for i, w in enumerate(wordings) if (i * 7 + len(intent.answer)) % 5 == 0]
    return tuple(held if unseen else [w for w in wordings if w not in held])


def _fact_question(random: Random, unseen: bool) -> tuple[str, str]:
    """A question whose answer comes from a table: memory, fitting machine, layers."""
    size = random.choice(list(WEIGHTS))
    spoken = size if random.random() < 0.6 else random.choice((f"Qwen3.5-{size}", f"the {size} model", size.lower()))
    form = random.random()
    if form < 0.5:
        column = random.randrange(3)
        pattern = random.choice(patterns("memory", unseen))
        question = pattern.format(size=spoken, bits=random.choice(PRECISIONS[column]))
        return question, f"{size} at {PRECISIONS[column][0]}: {WEIGHTS[size][column]} GiB of weights."
    if form < 0.85:
        gb = random.choice(list(FITS))
        return random.choice(patterns("fitting", unseen)).format(gb=gb), f"{gb} GB: {FITS[gb]}."
    return random.choice(patterns("depth", unseen)).format(size=spoken), f"{size} has {LAYERS[size]} layers."


def question_and_answer(words: Words) -> tuple[str, str]:
    """One question of this world and its answer, in a random surface form."""
    random, unseen = words.random, words.unseen
    if random.random() < 0.2:
        question, answer = _fact_question(random, unseen)
    else:
        intent = random.choice(INTENTS)
        question, answer = random.choice(paraphrases(intent, unseen)), intent.answer
    return _surface(question, random, unseen), answer


def unknown_question(words: Words) -> tuple[str, str]:
    pattern = words.random.choice(UNKNOWN)
    return pattern.format(city=words.city(), word=words.word(), name=words.name()), UNKNOWN_ANSWER


def _surface(question: str, random: Random, unseen: bool) -> str:
    """People write in lower case, forget marks, greet first. In training words also go missing or change places."""
    if random.random() < 0.1:
        question = random.choice(OPENINGS) + question[0].lower() + question[1:]
    if random.random() < 0.15:
        question = question.lower()
    if random.random() < 0.15:
        question = question.rstrip("?.!")
    if not unseen and len(question.split()) > 4:
        pieces = question.split()
        if random.random() < 0.2:
            del pieces[random.randrange(len(pieces) // 2)]  # the front half: the tail names the subject
        if random.random() < 0.1:
            i = random.randrange(len(pieces) - 1)
            pieces[i], pieces[i + 1] = pieces[i + 1], pieces[i]
        question = " ".join(pieces)
    return question


def _reasoning(random: Random, answer: str) -> str:
    """A think block that names the topic: the first words of the answer."""
    return "They ask about mlx-qwen35. I know: " + " ".join(answer.split()[:4]).rstrip(".,:;")


def project_question(words: Words, thinking: bool) -> Sample:
    random = words.random
    known = words.unseen or random.random() < 0.9
    question, answer = question_and_answer(words) if known else unknown_question(words)
    reasoning = _reasoning(random, answer) if known else "I do not know this."
    return Sample("project", [user(question)], reasoning, answer, thinking)


def follow_up(words: Words, thinking: bool) -> Sample:
    """A question that only makes sense after the turn before it: `And 27B?`."""
    random = words.random
    first, second = random.sample(list(WEIGHTS), 2)
    column = random.randrange(3)
    label = PRECISIONS[column][0]
    question = random.choice(patterns("memory", words.unseen)).format(size=first, bits=label)
    earlier = f"{first} at {label}: {WEIGHTS[first][column]} GiB of weights."
    answer = f"{second} at {label}: {WEIGHTS[second][column]} GiB of weights."
    again = random.choice(("And {}?", "What about {}?", "And for {}?", "Now {}.", "How about {}?")).format(second)
    messages = [user(question), assistant(earlier), user(again)]
    return Sample("multi-turn", messages, _reasoning(random, answer), answer, thinking)
