"""The tasks with a computable answer: arithmetic, JSON extraction, recall, multi-turn. Seeded, no tokens, no model."""

from __future__ import annotations

import json

from examples.demo_model.project_questions import follow_up, question_and_answer
from examples.demo_model.samples import Message, Sample, assistant, user
from examples.demo_model.wordings import patterns
from examples.demo_model.words import WORDS, Words, is_unseen


def add_trace(a: int, b: int) -> str:
    """47+35 -> `47+35: 7+5=12 write 2 carry 1, 4+3+1=8, 82`."""
    (a10, a1), (b10, b1) = divmod(a, 10), divmod(b, 10)
    carry = (a1 + b1) // 10
    steps = [f"{a1}+{b1}={a1 + b1}"]
    if carry:
        steps[0] += f" write {(a1 + b1) % 10} carry 1"
    if a10 or b10:
        steps.append(f"{a10}+{b10}{'+1' if carry else ''}={a10 + b10 + carry}")
    return f"{a}+{b}: " + ", ".join([*steps, str(a + b)])


def subtract_trace(a: int, b: int) -> str:
    """82-35 -> `82-35: 12-5=7 borrow 1, 8-3-1=4, 47`; a negative result is computed the other way round."""
    if a < b:
        return f"{a}-{b}: less than 0, {subtract_trace(b, a)}, -{b - a}"
    (a10, a1), (b10, b1) = divmod(a, 10), divmod(b, 10)
    borrow = a1 < b1
    steps = [f"{a1 + 10 * borrow}-{b1}={(a1 - b1) % 10}{' borrow 1' if borrow else ''}"]
    if a10 or b10:
        steps.append(f"{a10}-{b10}{'-1' if borrow else ''}={a10 - b10 - borrow}")
    return f"{a}-{b}: " + ", ".join([*steps, str(a - b)])


def arithmetic(words: Words, thinking: bool) -> Sample:
    random = words.random
    plus = random.random() < 0.5
    while True:
        a, b = (random.randint(0, 9 if random.random() < 0.25 else 99) for _ in range(2))
        if not plus and a < b and random.random() < 0.8:
            a, b = b, a
        if is_unseen(f"{a}{'+' if plus else '-'}{b}") == words.unseen:
            break
    question = random.choice(patterns("adding" if plus else "subtracting", words.unseen)).format(a=a, b=b)
    trace, result = (add_trace(a, b), a + b) if plus else (subtract_trace(a, b), a - b)
    return Sample("arithmetic", [user(question)], trace, str(result), thinking)


def extraction(words: Words, thinking: bool) -> Sample:
    random = words.random
    if random.random() < 0.6:
        record = {
            "name": words.name(),
            "age": random.randint(18, 89),
            "city": words.city(),
            "job": random.choice(WORDS["jobs"]),
        }
        if random.random() < 0.3:
            record["name"] += " " + words.word().capitalize()
        text = random.choice(patterns("people", words.unseen)).format(**record)
    else:
        item = words.word() if random.random() < 0.4 or words.unseen else random.choice(WORDS["things"]) + "s"
        record = {"name": words.name(), "count": random.randint(2, 60), "item": item, "price": random.randint(3, 999)}
        text = random.choice(patterns("orders", words.unseen)).format(**record)
    fields = random.sample(list(record), random.choice((1, 2, 2, 3, 3, 4)))
    spoken = fields[0] if len(fields) == 1 else ", ".join(fields[:-1]) + " and " + fields[-1]
    question = random.choice(patterns("asking_json", words.unseen)).format(fields=spoken, text=text)
    answer = json.dumps({field: record[field] for field in fields}, separators=(",", ":"))
    return Sample("json", [user(question)], f"Fields: {spoken}.", answer, thinking)


def _facts(words: Words, count: int) -> dict[str, str]:
    random = words.random
    facts: dict[str, str] = {}
    while len(facts) < count:
        thing = random.choice(
            (
                f"{random.choice(WORDS['colors'])} {random.choice(WORDS['things'])}",
                random.choice(WORDS["things"]),
                words.word(),
            )
        )
        key = random.choice(("code of the", "name of the", "number of the", "owner of the", "password of the"))
        value = words.digits(2, 5) if key[:2] in ("co", "nu") else words.code() if key[0] == "p" else words.word()
        if is_unseen(f"{key} {thing} {value}") == words.unseen:
            facts[f"{key} {thing}"] = value
    return facts


def recall(words: Words, thinking: bool, tokens: int) -> Sample:
    """Facts among filler, then a question about one of them. `tokens` is the rough length wanted."""
    random = words.random
    facts = _facts(words, random.choice((1, 1, 2, 3)) if tokens < 400 else random.choice((1, 2, 3, 4)))
    key = random.choice(list(facts))
    stated = {k: random.choice(patterns("stating", words.unseen)).format(key=k, value=v) for k, v in facts.items()}
    filler = [words.sentence() for _ in range(max(0, int(tokens / 11.5) - 2 * len(facts) - 1))]
    places = {k: random.randint(0, len(filler)) for k in facts}
    if tokens > 400 and (words.unseen or random.random() < 0.6):
        places[key] = min(places[key], 2)  # as far from the question as can be
    for k in sorted(facts, key=places.__getitem__, reverse=True):
        filler.insert(places[k], stated[k])
    question = random.choice(patterns("asking_back", words.unseen)).format(key=key)
    answer = f"The {key} is {facts[key]}."
    messages = _spread(words, filler, question)
    return Sample("recall", messages, f"The {key}: {facts[key]}", answer, thinking)


def _spread(words: Words, sentences: list[str], question: str) -> list[Message]:
    """The text and the question in one turn, or the text in turns of its own that are answered `OK.`."""
    if words.random.random() < 0.5:
        return [user(" ".join([*sentences, question]))]
    turns, size = [], max(1, len(sentences) // words.random.randint(1, 3))
    for start in range(0, len(sentences), size):
        turns += [user(" ".join(sentences[start : start + size])), assistant("OK.")]
    return [*turns, user(question)]


def conversation(words: Words, thinking: bool) -> Sample:
    """Several turns: a fact of the first turn is asked back, or a follow-up question, or a new task after others."""
    random = words.random
    form = random.random()
    if form < 0.3:
        return follow_up(words, thinking)
    middle: list[Message] = []
    for _ in range(random.randint(0, 2)):
        question, answer = question_and_answer(words)
        middle += [user(question), assistant(answer)]
    if form < 0.65:
        name = words.name()
        told = random.choice(
            ("My name is {}.", "I am {}.", "Hello, I am {}.", "Call me {}.", "Hi! My name is {}.")
        ).format(name)
        asked = random.choice(("What is my name?", "Who am I?", "Do you remember my name?", "Tell me my name."))
        messages = [user(told), assistant(f"Hello {name}!"), *middle, user(asked)]
        return Sample("multi-turn", messages, f"The name: {name}", f"Your name is {name}.", thinking)
    last = random.choice((arithmetic, extraction))(words, thinking)
    earlier = random.choice((arithmetic, extraction))(words, thinking)
    middle += [*earlier.messages, assistant(earlier.answer)]
    return Sample("multi-turn", [*middle, *last.messages], last.reasoning, last.answer, thinking)


def introduction(words: Words, thinking: bool) -> Sample:
    """The first turn of a conversation about a name, or a fact to remember: short acknowledgements."""
    name = words.name()
    if words.random.random() < 0.5:
        told = words.random.choice(
            ("My name is {}.", "I am {}.", "Hello, I am {}.", "Call me {}.", "Hi! My name is {}.")
        )
        return Sample("multi-turn", [user(told.format(name))], f"The name: {name}", f"Hello {name}!", thinking)
    facts = _facts(words, 1)
    stated = [words.random.choice(patterns("stating", words.unseen)).format(key=k, value=v) for k, v in facts.items()]
    filler = [words.sentence() for _ in range(words.random.randint(0, 2))]
    return Sample("multi-turn", [user(" ".join(stated + filler))], "A fact to remember.", "OK.", thinking)
