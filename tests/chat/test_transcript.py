"""A history must come back as the ids it was computed with, and never as ids of another text."""

from __future__ import annotations

import threading
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Raw

from mlx_qwen35.chat.id_memory import ENTRY_BYTES
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.chat.transcript import Prompt, Transcript, Turn
from tests.chat.conversations import CASES, TEMPLATES
from tests.chat.parsing import PATIENT
from tests.chat.prompts import Chat, sample, single_bytes, tokenizer
from tests.chat.test_tokenizer import SAMPLES, byte_level_folder

OPEN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
NEXT = "\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n<think>\n"
FRAGMENTS = [
    *("<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<|endoftext|>", "<tts_pad>"),
    *("<tool_response>", "assistant\n", "user\n", "<|im_", "_end|>", "<", ">", "|", " ", "\n", "\n\n", "\r\n", "\t"),
    *("the", " quick", "brown", "17", "'s", ".", "…", "\u0338", "é", "e\u0301", "你好", "🧑‍🚀", "\x00", "\u2028"),
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=25).map("".join)
# As the tokenizer's own normalisation leaves it, so that ids decode to the text and not to its composed form.
words = st.lists(
    st.sampled_from(["the", " quick", "brown", "17", "  ", "\n", "\n\n", "!", "é", "你好", "🧑‍🚀"]),
    min_size=1,
    max_size=8,
).map(lambda parts: unicodedata.normalize("NFC", "".join(parts)))
both = pytest.mark.parametrize("name", ["demo", "real"])


def data(tokens: Tokenizer, ids) -> bytes:
    return b"".join(tokens.token_bytes(token) for token in ids)


@both
@PATIENT
@given(text=texts)
def test_without_memory_ids_are_those_of_the_whole_text(name: str, text: str) -> None:
    tokens = tokenizer(name)
    assert list(Transcript(tokens).prompt(text).ids) == tokens.encode(text)


@both
def test_long_texts_come_back_equal_from_the_cache(name: str) -> None:
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    text = "".join(f"<|im_start|>user\n{sample * 40}{i}<|im_end|>\n" for i, sample in enumerate(SAMPLES))
    for _ in range(2):
        assert list(transcript.prompt(text).ids) == tokens.encode(text)


@both
@PATIENT
@given(
    reasoning=words, content=words, seed=st.integers(0, 999), end=st.sampled_from(["<|im_end|>", "<|endoftext|>", None])
)
def test_an_answer_comes_back_as_sampled(name: str, reasoning: str, content: str, seed: int, end: str | None) -> None:
    """The stop token included, another stop token, and none because the answer was cut."""
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(OPEN)
    answer = f"{reasoning}\n</think>\n\n{content}"
    spelled = sample(tokens, answer, seed)
    stop = [] if end is None else tokens.encode(end)
    transcript.remember(prompt, [*spelled, *stop])
    later = f"{OPEN}{answer}<|im_end|>{NEXT}"
    ids = transcript.prompt(later).ids
    assert list(ids) == [*prompt.ids, *spelled, *tokens.encode(f"<|im_end|>{NEXT}")]
    assert data(tokens, ids) == later.encode()


def test_an_answer_sampled_otherwise_is_a_real_case() -> None:
    tokens = tokenizer("demo")
    assert any(sample(tokens, text, 1) != tokens.encode(text) for text in ("the quick brown fox", "</think>\n\nthe"))


@both
@PATIENT
@given(
    answers=st.lists(st.tuples(words, words, st.integers(0, 99)), min_size=1, max_size=6),
    rest=texts,
    trimmed=st.booleans(),
)
def test_ids_always_spell_the_text(name: str, answers: list, rest: str, trimmed: bool) -> None:
    """Many answers to few prompts, re-rendered as they were or trimmed, and anything after them."""
    tokens = tokenizer(name)
    transcript, text = Transcript(tokens), OPEN
    for reasoning, content, seed in answers:
        spelled = sample(tokens, f"{reasoning}\n</think>\n\n{content}<|im_end|>", seed)
        transcript.remember(transcript.prompt(text), spelled)
        if trimmed:
            reasoning, content = reasoning.strip(), content.strip()
        text += f"{reasoning}\n</think>\n\n{content}<|im_end|>{NEXT}"
        assert data(tokens, transcript.prompt(text).ids) == unicodedata.normalize("NFC", text).encode()
    assert tokens.decode(transcript.prompt(text + rest).ids) == tokens.decode(tokens.encode(text + rest))


@both
def test_what_a_template_trims_is_encoded_anew(name: str) -> None:
    tokens = tokenizer(name)
    for sampled_text, rendered in {
        "so it is \n</think>\n\nthe quick brown": "so it is\n</think>\n\nthe quick brown",
        "so\n</think>\n\nthe quick brown\n": "so\n</think>\n\nthe quick brown",
        "so\n</think>\nthe quick brown": "so\n</think>\n\nthe quick brown",
        "the quick brown": "the quick",
        "the quick": "the quick brown",
    }.items():
        transcript = Transcript(tokens)
        head = sampled_text.partition("the quick")[0]
        letters = [single_bytes(tokens)[byte] for byte in sampled_text.removeprefix(head).encode()]
        transcript.remember(transcript.prompt(OPEN), [*tokens.encode(head), *letters])
        later = f"{OPEN}{rendered}<|im_end|>{NEXT}"
        assert list(transcript.prompt(later).ids) == tokens.encode(later)


@both
def test_reasoning_stays_as_sampled_where_the_call_after_it_is_written_anew(name: str) -> None:
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(OPEN)
    thought = [*(single_bytes(tokens)[byte] for byte in b"need it\n"), *tokens.encode("</think>\n\n<tool_call>\n")]
    transcript.remember(prompt, [*thought, *tokens.encode('{"days":2}\n</tool_call><|im_end|>')])
    later = OPEN + 'need it\n</think>\n\n<tool_call>\n{"days": 2}\n</tool_call><|im_end|>' + NEXT
    ids = list(transcript.prompt(later).ids)
    assert ids[: len(prompt.ids) + len(thought) - 1] == [*prompt.ids, *thought[:-1]]
    assert data(tokens, ids) == later.encode()


@both
def test_the_open_turn_is_what_the_template_writes(name: str) -> None:
    """A model that closed its reasoning at once spelled `\\n\\n` in two; the think-off opening has it in one."""
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(OPEN)
    spelled = tokens.encode("\n</think>\n\nthe<|im_end|>")
    transcript.remember(prompt, spelled)
    off = OPEN + "\n</think>\n\n"
    assert list(transcript.prompt(off).ids) == tokens.encode(off) != [*prompt.ids, *spelled[:-2]]
    history = off + "the<|im_end|>" + NEXT
    assert list(transcript.prompt(history).ids)[: len(prompt.ids) + len(spelled)] == [*prompt.ids, *spelled]


@both
def test_another_conversation_is_not_touched(name: str) -> None:
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    letters = [single_bytes(tokens)[byte] for byte in b"the quick"]
    transcript.remember(transcript.prompt(OPEN), letters)
    other = OPEN.replace("Hi", "Ho") + "the quick<|im_end|>" + NEXT
    assert list(transcript.prompt(other).ids) == tokens.encode(other)


@both
def test_the_answer_sampled_last_counts(name: str) -> None:
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(OPEN)
    later = OPEN + "the quick<|im_end|>" + NEXT
    letters = [single_bytes(tokens)[byte] for byte in b"the quick"]
    for spelled in (letters, tokens.encode("the quick"), letters[:3] + tokens.encode(" quick")):
        transcript.remember(prompt, spelled)
        assert list(transcript.prompt(later).ids)[: len(prompt.ids) + len(spelled)] == [*prompt.ids, *spelled]


@both
def test_half_a_character_and_spelled_out_tags_are_not_remembered(name: str) -> None:
    tokens = tokenizer(name)
    for spelled in ("é".encode()[:1], b"the <|im_end|> tag", b"the <|im_start|>user\nx"):
        transcript = Transcript(tokens)
        transcript.remember(transcript.prompt(OPEN), [single_bytes(tokens)[byte] for byte in spelled])
        for text in (spelled.decode("utf-8", "replace"), spelled.decode("utf-8", "ignore")):
            later = f"{OPEN}{text}<|im_end|>{NEXT}"
            assert list(transcript.prompt(later).ids) == tokens.encode(later)


@both
def test_a_decomposed_character_comes_back_as_sampled(name: str) -> None:
    """Encoding composes it, so only the memory can bring it back."""
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(OPEN)
    spelled = [single_bytes(tokens)[byte] for byte in "cafe\u0301".encode()]
    transcript.remember(prompt, spelled)
    later = OPEN + "cafe\u0301<|im_end|>" + NEXT
    assert data(tokens, transcript.prompt(later).ids) == later.encode() != data(tokens, tokens.encode(later))


@both
def test_a_session_from_disk_is_remembered_from_its_ids(name: str) -> None:
    tokens = tokenizer(name)
    first, second = Transcript(tokens), Transcript(tokens)
    text, ids = OPEN, []
    for turn in range(3):
        prompt = first.prompt(text)
        answer = f"the quick {turn}\n</think>\n\nbrown fox<|im_end|>"
        ids = [*prompt.ids, *sample(tokens, answer, turn, rate=1)]
        first.remember(prompt, ids[len(prompt.ids) :])
        text += answer + NEXT
    assert first.prompt(text).ids[: len(ids)] == tuple(ids)
    assert list(second.prompt(text).ids) == tokens.encode(text) != list(first.prompt(text).ids)
    second.relearn(ids)
    assert second.prompt(text) == first.prompt(text)


def test_half_a_surrogate_pair_is_encoded_as_ever() -> None:
    tokens = tokenizer("demo")
    transcript = Transcript(tokens)
    for text in ("\ud83d<|im_end|>\ude00", "<|im_start|>user\n" + "\ude00\ud83d" * 200 + "<|im_end|>\n"):
        assert list(transcript.prompt(text).ids) == tokens.encode(text)


def test_the_oldest_answer_is_forgotten_first_and_the_budget_is_kept() -> None:
    tokens = tokenizer("demo")
    letters = [single_bytes(tokens)[byte] for byte in b"the quick brown"]
    transcript = Transcript(tokens, max_bytes=3 * (ENTRY_BYTES + 4 * (len(letters) + 1)))

    def is_known(question: int) -> bool:
        later = OPEN.replace("Hi", str(question)) + "the quick brown<|im_end|>" + NEXT
        return list(transcript.prompt(later).ids) != tokens.encode(later)

    for question in range(3):
        transcript.remember(transcript.prompt(OPEN.replace("Hi", str(question))), letters)
    assert is_known(0)  # and so it was used more recently than 1
    transcript.remember(transcript.prompt(OPEN.replace("Hi", "3")), letters)
    assert [is_known(question) for question in range(4)] == [True, False, True, True]
    transcript.remember(transcript.prompt(OPEN.replace("Hi", "4")), letters * 100)  # larger than the budget
    assert not is_known(4)


def test_threads_share_one_memory() -> None:
    """Small enough that entries are dropped all the time; whatever is left, the ids spell the text."""
    tokens = tokenizer("demo")
    transcript = Transcript(tokens, max_bytes=2000)
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            for turn in range(40):
                text = OPEN.replace("Hi", str((seed + turn) % 5))
                answer = "the quick brown fox"
                transcript.remember(transcript.prompt(text), sample(tokens, answer, seed + turn, rate=1))
                later = f"{text}{answer}<|im_end|>{NEXT}" + f"<|im_start|>user\n{'long ' * 60}<|im_end|>\n" * (turn % 3)
                if data(tokens, transcript.prompt(later).ids) != later.encode():
                    wrong.append(later)
        except Exception as error:  # a thread's own exceptions would be lost
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, None])
def test_a_tokenizer_whose_tags_bound_nothing_gives_one_turn(tmp_path: Path, flags: dict | None) -> None:
    folder = byte_level_folder(tmp_path)
    raw = Raw.from_file(str(folder / "tokenizer.json"))
    if flags is None:
        text = (folder / "tokenizer.json").read_text().replace("<|im_end|>", "<|stop|>")
        (folder / "tokenizer.json").write_text(text)
    else:
        raw.add_special_tokens([AddedToken("<|im_start|>", special=True, **flags)])
        raw.save(str(folder / "tokenizer.json"))
    tokens = Tokenizer.from_folder(folder)
    transcript = Transcript(tokens)
    text = "a <|im_start|> user\nthe<|im_end|>\n <|im_start|>assistant\nthe"
    prompt = transcript.prompt(text)
    transcript.remember(prompt, tokens.encode("t")[:1])
    assert prompt == Prompt(tuple(tokens.encode(text)), (Turn("", 0, 0, len(prompt.ids)),))


@both
@pytest.mark.parametrize("text", ["", "Once upon a time", "<think>\nx</think>"])
def test_a_plain_completion_is_one_turn_without_checkpoints(name: str, text: str) -> None:
    tokens = tokenizer(name)
    transcript = Transcript(tokens)
    prompt = transcript.prompt(text)
    assert prompt == Prompt(tuple(tokens.encode(text)), (Turn("", 0, 0, len(prompt.ids)),))
    transcript.remember(prompt, [single_bytes(tokens)[byte] for byte in b"the end"])
    assert list(transcript.prompt(text + "the end").ids) == tokens.encode(text + "the end")


@both
@PATIENT
@given(text=texts)
def test_turns_cover_any_text_in_order(name: str, text: str) -> None:
    tokens = tokenizer(name)
    prompt = Transcript(tokens).prompt(text)
    assert [turn.start for turn in prompt.turns] == [0, *(turn.end for turn in prompt.turns[:-1])]
    assert prompt.turns[-1].end == len(prompt.ids)
    for turn in prompt.turns:
        assert turn.start <= turn.body <= turn.end
        header = tokens.decode(prompt.ids[turn.start : turn.body])
        assert not turn.role or header in (f"<|im_start|>{turn.role}\n", f"<|im_start|>{turn.role}")
    assert all(0 < position <= len(prompt.ids) for position in prompt.checkpoints)
    assert list(prompt.checkpoints) == sorted(set(prompt.checkpoints))
    assert set(prompt.pivots) <= set(prompt.checkpoints)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_every_rendered_conversation_has_its_turns(name: str) -> None:
    chat = Chat(name)
    for case, (messages, tools, options) in CASES.items():
        if "tags" in case:
            continue  # a user who writes <|im_start|> begins a turn
        text = chat.template.render(messages, tools=tools, **options)
        prompt = chat.transcript.prompt(text)
        headers = [part.partition("\n")[0] for part in text.split("<|im_start|>")[1:]]
        assert [turn.role for turn in prompt.turns] == headers, case
        for turn in prompt.turns:
            assert chat.tokenizer.decode(prompt.ids[turn.start : turn.body]) == f"<|im_start|>{turn.role}\n", case
        assert prompt.is_open == options.get("add_generation_prompt", True)
