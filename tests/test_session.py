"""Sessions: forks go their own way, saved ones go on in another process, damaged ones never answer wrongly."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlx_qwen35
from mlx_qwen35.caches import sealed
from mlx_qwen35.chat.events import Event
from mlx_qwen35.chat.reply import Gathering
from mlx_qwen35.errors import RequestError, SessionError
from mlx_qwen35.qwen import Qwen
from mlx_qwen35.session import Session

GREEDY: Any = {"temperature": 0, "max_tokens": 120}
ASKED = ["What is 3 + 4?", "What is 5 + 6?", "How do I convert a model?"]
PATIENCE = 30  # seconds for what another thread does at once

RESUME = """
import json, sys, warnings
import mlx_qwen35
warned = []
with mlx_qwen35.load("demo", warn=warned.append) as qwen:
    session = qwen.load_session(sys.argv[1])
    reply = session.chat(sys.argv[2])
    print(json.dumps({"message": reply.message, "cached": reply.usage.cached_tokens,
                      "prompt": reply.usage.prompt_tokens, "messages": session.messages, "warned": warned}))
"""


@pytest.fixture(scope="module")
def warned() -> list[str]:
    return []


@pytest.fixture(scope="module")
def qwen(warned: list[str]) -> Iterator[Qwen]:
    with mlx_qwen35.load("demo", warn=warned.append) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def saved(qwen: Qwen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A session of two turns with thinking."""
    path = tmp_path_factory.mktemp("sessions") / "talk.session"
    with qwen.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED[:2]:
            session.chat(question)
        session.save(path)
    return path


def fresh(**options: Any) -> Qwen:
    return mlx_qwen35.load("demo", **options)


def held_nodes(qwen: Qwen) -> int:
    """Nodes of the prefix store that some session holds."""
    return qwen.runtime.prefixes._engine.with_prefixes(
        16, lambda _, form: sum(1 for node in form.root.descendants() if node.holds)
    )


def settles_at(qwen: Qwen, held: int) -> bool:
    until = time.monotonic() + PATIENCE
    while held_nodes(qwen) != held and time.monotonic() < until:
        time.sleep(0.01)
    return held_nodes(qwen) == held


def test_a_session_is_a_conversation(qwen: Qwen) -> None:
    messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
    with qwen.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED:
            messages.append({"role": "user", "content": question})
            reply, apart = session.chat(question), qwen.chat(messages, think=True, **GREEDY)
            assert (reply.content, reply.reasoning) == (apart.content, apart.reasoning)
            messages.append(apart.message)
        assert session.messages == messages
        assert session.usage.completion_tokens > reply.usage.completion_tokens
        session.messages.clear()
        assert session.messages == messages


def test_all_ways_of_asking_a_session_give_the_same_turn(qwen: Qwen) -> None:
    def events_of(session: Session) -> list[dict[str, Any]]:
        list(session.stream(ASKED[0]))
        return session.messages

    async def awaited(session: Session) -> list[dict[str, Any]]:
        await session.achat(ASKED[0])
        return session.messages

    async def astreamed(session: Session) -> list[dict[str, Any]]:
        async for _ in session.astream({"role": "user", "content": ASKED[0]}):
            pass
        return session.messages

    with qwen.session(**GREEDY) as session:
        wanted = (session.chat(ASKED[0]), session.messages)[1]
    assert events_of(qwen.session(**GREEDY)) == wanted
    assert asyncio.run(awaited(qwen.session(**GREEDY))) == wanted
    assert asyncio.run(astreamed(qwen.session(**GREEDY))) == wanted


def test_fork_then_diverge_equals_two_separate_runs() -> None:
    def turns(qwen: Qwen, *questions: str) -> list[dict[str, Any]]:
        with qwen.session(think=True, **GREEDY) as session:
            for question in questions:
                session.chat(question)
            return session.messages

    with fresh() as one:
        apart = [turns(one, *ASKED), turns(one, ASKED[0], ASKED[2], ASKED[1])]
    with fresh() as other, other.session(think=True, **GREEDY) as session:
        session.chat(ASKED[0])
        fork = session.fork()
        ids = [session._ids, fork._ids]
        for ours, theirs in zip(ASKED[1:], reversed(ASKED[1:])):
            session.chat(ours)
            assert fork.chat(theirs).usage.cached_tokens > 0
        assert ids[0] == ids[1]
        assert [session.messages, fork.messages] == apart


def test_the_next_turn_in_another_process_computes_nothing_again(
    qwen: Qwen, saved: Path, clean_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-c", RESUME, str(saved), ASKED[2]]
    found = json.loads(
        subprocess.run(command, capture_output=True, text=True, env=clean_environment, check=True).stdout
    )
    with fresh() as here, here.session("Be brief.", think=True, **GREEDY) as session:
        for question in ASKED[:2]:
            session.chat(question)
        wanted = session.chat(ASKED[2])
        assert found["message"] == wanted.message
        assert (found["cached"], found["prompt"]) == (wanted.usage.cached_tokens, wanted.usage.prompt_tokens)
        assert found["messages"] == session.messages
    assert found["cached"] > 0
    assert found["warned"] == []


def test_a_loaded_session_can_be_saved_and_loaded_again(saved: Path, tmp_path: Path) -> None:
    with fresh() as first:
        session = first.load_session(saved)
        session.fork().save(tmp_path / "again.session")
        wanted = session.chat(ASKED[2])
    with fresh() as second:
        again = second.load_session(tmp_path / "again.session").chat(ASKED[2])
    assert (again.message, again.usage.cached_tokens) == (wanted.message, wanted.usage.cached_tokens)


def test_unusual_spellings_come_back_as_they_were_sampled(qwen: Qwen, tmp_path: Path) -> None:
    """Encoding an answer's text anew may give other tokens, and then nothing after them is found again."""
    # A question would make the template rewrite the answer; a tool's result does not.
    tokenizer, follow = qwen.runtime.tokenizer, [{"role": "tool", "content": "Go on."}]
    letters: Any = {tokenizer.token_id(letter): 100.0 for letter in "convert"}
    session = qwen.session(think=False, temperature=1, max_tokens=20, seed=1, logit_bias=letters)
    session.chat(ASKED[2])
    request = session._request(follow, {})
    wanted = qwen.runtime.prompt(request).ids
    assert list(wanted) != tokenizer.encode(qwen.runtime.render(request)), "spelled as the tokenizer does"
    session.save(tmp_path / "odd.session")
    with fresh() as other:
        loaded = other.load_session(tmp_path / "odd.session")
        sampled = len(loaded._ids)
        assert other.runtime.prompt(loaded._request(follow, {})).ids == wanted
        assert loaded.chat(follow[0]).usage.cached_tokens == sampled - 1


def test_settings_and_tools_are_saved_too(qwen: Qwen, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    session = qwen.session("Hi", tools=[tool], think=False, stop=["x", "y"], logit_bias={5: -1.5}, top_k=3)
    session.save(tmp_path / "empty.session")
    loaded = qwen.load_session(tmp_path / "empty.session")
    assert (loaded.messages, loaded.tools, loaded.think) == (session.messages, [tool], False)
    request = loaded._request([], {})
    assert (request.stop, request.logit_bias, request.sampling) == (("x", "y"), {5: -1.5}, {"top_k": 3})


def test_another_kv_format_restores_the_conversation_and_says_so(saved: Path) -> None:
    warned: list[str] = []
    with fresh(kv_bits=8, warn=warned.append) as qwen:
        session = qwen.load_session(saved)
        assert [message["role"] for message in session.messages] == ["system", *["user", "assistant"] * 2]
        assert session.chat(ASKED[2]).usage.cached_tokens == 0
    assert len(warned) == 1
    assert "another model" in warned[0]


def test_a_prefix_larger_than_the_memory_is_computed_again(
    qwen: Qwen, saved: Path, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(qwen.runtime.prefixes), "spare_bytes", lambda _: 1000)
    warned.clear()
    assert qwen.load_session(saved).messages
    assert "memory" in warned[0]


def loaded_or_refused(qwen: Qwen, path: Path) -> Session | None:
    try:
        return qwen.load_session(path)
    except SessionError as error:
        if "\n" in str(error):
            raise
        return None


@settings(max_examples=80)
@given(st.data())
def test_a_damaged_file_gives_its_conversation_or_one_line(
    qwen: Qwen, saved: Path, warned: list[str], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(saved.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["header", "payload", "cut"]))
    if kind == "cut":
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at = data.draw(st.integers(0, header - 1) if kind == "header" else st.integers(header, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged.session"
    path.write_bytes(content)
    warned.clear()
    whole = qwen.load_session(saved)
    assert not warned
    session = loaded_or_refused(qwen, path)
    if session is None:
        assert kind != "payload"
        return
    assert (session.messages, session.options, session.think) == (whole.messages, whole.options, whole.think)
    assert len(warned) == 1
    assert session._ids == ()
    session.close()
    whole.close()


def test_an_answer_after_damage_is_the_right_one(saved: Path, tmp_path: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[-1000] ^= 64
    (tmp_path / "damaged.session").write_bytes(content)
    with fresh() as one, fresh(warn=lambda _: None) as other:
        wanted, reply = one.load_session(saved).chat(ASKED[2]), other.load_session(tmp_path / "damaged.session")
        again = reply.chat(ASKED[2])
    assert (again.content, again.reasoning) == (wanted.content, wanted.reasoning)
    assert again.usage.cached_tokens == 0


def forged(saved: Path, path: Path, metadata: dict[str, Any], drop: str = "") -> Path:
    """The file with other metadata and without some tensors, its checksums right."""
    with sealed.opened(saved) as (file, size):
        raw = sealed.raw_header(file, saved, size, 1 << 30)
        header = sealed.checked_header(raw, saved, size)
        blobs = sealed.payload(file, size, raw, header)
    kept = {name: blob for name, blob in blobs.items() if not drop or not name.startswith(drop)}
    stated = {**header.metadata, **metadata}
    stated.pop("checksum")
    sealed.write(path, sealed.seal(stated, kept))
    return path


@pytest.mark.parametrize(
    ("metadata", "drop", "words"),
    [
        ({"ends": "[5, 5]"}, "", "spans"),
        ({"ends": "[1000000]"}, "", "spans"),
        ({"ends": "[true]"}, "", "spans end"),
        ({"ends": "[[["}, "", "spans end"),
        ({"ends": "[7, 20]"}, "", "arrays"),
        ({}, "0.checkpoint", "arrays"),
        ({}, "0.segment.0.1", "arrays"),
        ({}, "token_ids", "token ids"),
    ],
)
def test_a_forged_prefix_is_not_used(
    saved: Path, tmp_path: Path, metadata: dict[str, Any], drop: str, words: str
) -> None:
    warned: list[str] = []
    with fresh(warn=warned.append) as qwen:
        session = qwen.load_session(forged(saved, tmp_path / "forged.session", metadata, drop))
        assert session.messages
        assert qwen.stats().prefix_bytes == 0
    assert len(warned) == 1
    assert words in warned[0]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"messages": 3, "tools": None, "think": None, "options": {}},
        {"messages": [{"role": "king", "content": ""}], "tools": None, "think": None, "options": {}},
        {"messages": [], "tools": [3], "think": None, "options": {}},
        {"messages": [], "tools": None, "think": "yes", "options": {}},
        {"messages": [], "tools": None, "think": None, "options": []},
        {"messages": [], "tools": None, "think": None, "options": {"temprature": 1}},
        {"messages": [], "tools": None, "think": None, "options": {"logit_bias": [[1]]}},
        {"messages": [], "tools": None, "think": None, "options": {"logit_bias": [["1", 2]]}},
        {"messages": [], "tools": None, "think": None, "options": {"temperature": [1]}},
        {"messages": [], "tools": None, "think": None, "options": {"think": True}},
        {"messages": [], "tools": None, "think": None, "options": {"messages": "x"}},
        {"messages": [], "tools": None, "think": None, "options": {"tools": 1}},
        {"messages": [], "tools": None, "think": None, "options": {"stop": 5}},
        {"messages": [], "tools": None, "think": None, "options": {"stop": {"a": 1}}},
    ],
)
def test_a_forged_conversation_is_one_line(qwen: Qwen, saved: Path, tmp_path: Path, said: Any) -> None:
    from mlx_qwen35.session_file import _checksum

    text = json.dumps(said)
    path = forged(saved, tmp_path / "forged.session", {"conversation": text, "conversation_checksum": _checksum(text)})
    with pytest.raises(SessionError, match="is a damaged session") as error:
        qwen.load_session(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"{}", b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 100])
def test_what_is_no_session_is_one_line_and_never_overwritten(qwen: Qwen, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(SessionError, match="not a saved session"):
        qwen.load_session(path)
    with pytest.raises(SessionError, match="exists and is not a saved session"):
        qwen.session().save(path)
    assert path.read_bytes() == content


def test_paths_that_lead_nowhere_are_one_line(qwen: Qwen, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none.session", tmp_path, tmp_path / "pipe"):
        with pytest.raises(SessionError):
            qwen.load_session(path)
    with pytest.raises(SessionError, match="no folder"):
        qwen.session().save(tmp_path / "none" / "a.session")


def test_a_full_disk_leaves_the_old_file(
    qwen: Qwen, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "talk.session"
    path.write_bytes(saved.read_bytes())
    session = qwen.load_session(path)
    session.chat(ASKED[2])

    def full(file: Any, data: memoryview) -> None:
        file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "_write_all", full)
        with pytest.raises(SessionError, match="no space left"):
            session.save(path)
    assert path.read_bytes() == saved.read_bytes()
    assert os.listdir(tmp_path) == ["talk.session"]
    session.save(path)
    assert len(qwen.load_session(path).messages) == 7


def test_an_open_session_survives_pressure_and_a_closed_one_gives_way() -> None:
    def press(qwen: Qwen, word: str) -> None:
        evicted = qwen.stats().evictions
        for i in range(6):
            qwen.generate(f"{word} number {i}", max_tokens=1)
        assert qwen.stats().evictions > evicted

    # A checkpoint of the demo takes a third of this.
    with fresh(prefix_bytes=1 << 20) as qwen:
        session = qwen.session("Be brief.", think=True, **GREEDY)
        session.chat(ASKED[0])
        press(qwen, "First")
        fork = session.fork()
        kept = session.chat(ASKED[1]).usage
        assert kept.cached_tokens > 0
        assert "make room" not in kept.cache_note
        session.close()
        press(qwen, "Second")
        assert fork.chat(ASKED[1]).usage.cached_tokens >= kept.cached_tokens
        fork.close()
        press(qwen, "Third")
        assert qwen.stats().prefix_bytes <= 1 << 20
        again = qwen.chat(fork.messages, max_tokens=1).usage
        assert again.cached_tokens == 0
        assert "make room" in again.cache_note


def test_loaded_sessions_share_the_memory_and_the_first_give_way(
    qwen: Qwen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{i}.session" for i in range(4)]
    for i, path in enumerate(paths):
        with qwen.session(f"Your number is {i}.", **GREEDY) as session:
            session.chat(ASKED[0])
            session.save(path)
    budget = 2 * max(path.stat().st_size for path in paths)
    monkeypatch.setattr("mlx_qwen35.runtime.cache_bytes", lambda _: budget)
    with fresh() as small:
        loaded = []
        for path in paths:
            loaded.append(small.load_session(path))
            assert small.stats().prefix_bytes <= budget
        assert loaded[-1].chat(ASKED[1], max_tokens=1).usage.cached_tokens > 0
        assert "make room" in loaded[0].chat(ASKED[1], max_tokens=1).usage.cache_note


def test_sessions_give_way_to_live_sequences_where_memory_runs_out(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat) as qwen:
        session = qwen.session(max_tokens=4)
        session.chat("hello " * 100)
        engine = qwen.runtime.prefixes._engine
        assert held_nodes(qwen) > 0
        engine.with_prefixes(16, lambda store, _: store.shrink(0))
        assert qwen.stats().prefix_bytes > 0
        engine.with_prefixes(16, lambda store, _: store.squeeze(0))
        assert qwen.stats().prefix_bytes == 0
        assert session.chat("again").usage.completion_tokens == 4


@pytest.mark.parametrize("calls", [None, [], [{"function": {"name": "f", "arguments": {}}}]])
def test_a_tool_result_without_a_call_to_answer_is_one_line(qwen: Qwen, calls: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "tool_calls": calls}]
    session = qwen.session(messages=messages)
    for call in ("call_1", {"function": {"name": "f"}}):
        with pytest.raises(RequestError, match="its calls are none"):
            session.add_tool_result(call, "x")
    with pytest.raises(RequestError, match="The call is a int"):
        session.add_tool_result(5, "x")  # pyright: ignore[reportArgumentType]


def test_what_is_no_question_is_one_line(qwen: Qwen) -> None:
    with pytest.raises(RequestError, match="think is of a whole conversation"):
        qwen.session().chat("Hello", think=True)  # pyright: ignore[reportCallIssue]
    for ask in (qwen.session().chat, qwen.session().stream, qwen.session().astream):
        for question in (5, ["Hello"]):
            with pytest.raises(RequestError, match="The question is a"):
                ask(question)  # pyright: ignore[reportArgumentType]
    for messages in (5, [5], {"role": "user"}):
        with pytest.raises(RequestError, match="messages"):
            qwen.session("Be brief.", messages=messages)  # pyright: ignore[reportArgumentType]


def test_an_interrupted_chat_leaves_the_session_free(qwen: Qwen, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(Gathering):
        def take(self, event: Event) -> None:
            raise KeyboardInterrupt

    session = qwen.session(**GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_qwen35.chat.reply.Gathering", Interrupted)
        with pytest.raises(KeyboardInterrupt) as interrupt:
            session.chat(ASKED[0])
    assert session.messages == []
    assert session.chat(ASKED[0]).content
    del interrupt  # held until here: its traceback knows the frame that was reading


def test_closing_and_forgetting_let_go(qwen: Qwen) -> None:
    gc.collect()
    before = held_nodes(qwen)
    session = qwen.session("Let go of this.", **GREEDY)
    session.chat(ASKED[0])
    assert held_nodes(qwen) > before
    fork = session.fork()
    session.close()
    session.close()
    assert held_nodes(qwen) > before
    del fork
    gc.collect()
    assert settles_at(qwen, before)
    with pytest.raises(SessionError, match="closed"):
        session.chat("Hello?")
    assert len(session.messages) == 3


def test_a_turn_that_does_not_end_leaves_the_session_as_it_was(tiny_chat: Path) -> None:
    with mlx_qwen35.load(tiny_chat) as qwen, qwen.session("Be brief.", temperature=0) as session:
        session.chat("hello", max_tokens=5)
        before, ids = session.messages, session._ids
        stream = session.stream("more", max_tokens=30_000)
        next(stream)
        for change in (session.fork, lambda: session.save("x"), lambda: session.chat("no")):
            with pytest.raises(SessionError, match="is answering"):
                change()
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]

        async def cancelled() -> None:
            task = asyncio.create_task(session.achat("more", max_tokens=30_000))
            while not qwen.stats().rows:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        with pytest.raises(RequestError):
            session.chat("hello", max_tokens=0)
        assert (session.messages, session._ids) == (before, ids)
        assert session.chat("more", max_tokens=5).usage.completion_tokens == 5


def test_tool_results_belong_to_calls_of_the_last_answer(qwen: Qwen) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with qwen.session(tools=[tool], think=False, **GREEDY) as session:
        with pytest.raises(RequestError, match="made no call"):
            session.add_tool_result("call_1", "x")
        (call,) = session.chat("What is the weather in Paris?").tool_calls
        with pytest.raises(RequestError, match="made no call 'other'"):
            session.add_tool_result("other", "x")
        with pytest.raises(RequestError, match="give text"):
            session.add_tool_result(call, {"sky": "blue"})  # pyright: ignore[reportArgumentType]
        session.add_tool_result(call, "Sunny, 21 degrees.")
        reply = session.chat()
        assert reply.content
        assert reply.usage.cached_tokens > reply.usage.prompt_tokens // 2
        assert [message["role"] for message in session.messages] == ["user", "assistant", "tool", "assistant"]
