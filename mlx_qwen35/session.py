"""A conversation that remembers itself: its messages, its settings, and a hold on what was computed of it.

with qwen.session(system="Be brief.") as session:
    print(session.chat("Hello").content)
    other = session.fork()           # both go on from here, at no cost
    session.save("talk.session")     # later, or elsewhere: qwen.load_session("talk.session")
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping, Sequence
from contextlib import aclosing, closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Unpack

from mlx_qwen35.asking import Options, Tools, chat_request, check_names
from mlx_qwen35.caches.holds import Hold
from mlx_qwen35.chat.events import Event, Finished, Usage
from mlx_qwen35.chat.messages import normalise_messages, normalise_tools
from mlx_qwen35.chat.reply import Gathering, Reply, agathered, gathered
from mlx_qwen35.errors import RequestError, SessionError
from mlx_qwen35.folded import Answering
from mlx_qwen35.runtime import ChatRequest, Runtime
from mlx_qwen35.session_file import read_session, write_session

Message = dict[str, Any]
Question = str | Mapping[str, Any] | None
SAVED = ("messages", "tools", "think", "options")


class Session:
    """Turns of one conversation; what was computed of it is kept in memory until `close`, or as long as memory allows.

    A turn that does not come to its end (it failed, or was cancelled) leaves the session as it was before. One answer
    at a time: fork to ask two questions at once. Any thread or task may ask.
    """

    def __init__(
        self,
        runtime: Runtime,
        messages: Sequence[Mapping[str, Any]] = (),
        tools: Tools | None = None,
        think: bool | None = None,
        options: Options | None = None,
        hold: Hold | None = None,
    ) -> None:
        """messages: what was said before   options: of all answers, unless a turn says otherwise"""
        self.tools, self.think = normalise_tools(tools), think
        self.options: Options = options or {}
        self._runtime = runtime
        if messages:
            normalise_messages(messages)  # to complain at once; what is kept is the caller's own form
        self._messages: list[Message] = [dict(message) for message in messages]
        self._ids: Sequence[int] = ()  # of the last prompt and its answer, as sampled
        self._usage = Usage()
        self._asking = threading.Lock()
        self._closed = False
        runtime.sampling(self._request([], {}))
        self._hold = hold or Hold()
        # For who forgets to close. At the end of the program nothing needs to be let go of.
        self._release = weakref.finalize(self, runtime.prefixes.release, self._hold)
        self._release.atexit = False

    @classmethod
    def load(cls, runtime: Runtime, path: Path, trusted: bool = True, limit_bytes: int | None = None) -> Session:
        """The session that `save` wrote. What cannot be used of its cache is computed again, after one warning.

        trusted: otherwise nobody but this session and its forks goes on from the file's numbers, and a file whose cache
        cannot be used is refused   limit_bytes: of the cache; None takes what there is room for
        Raises SessionError for what is no session file.
        """
        fingerprint, room = runtime.prefixes.fingerprint(), runtime.prefixes.spare_bytes()
        saved = read_session(path, fingerprint, room if limit_bytes is None else min(room, limit_bytes))
        said = saved.conversation
        try:
            if set(said) != set(SAVED) or not isinstance(said["messages"], list):
                raise RequestError(f"it does not hold {', '.join(SAVED)}.")
            session = cls(runtime, said["messages"], said["tools"], said["think"], _read_options(said["options"]))
        except RequestError as error:
            raise SessionError(f"{path} is a damaged session: {error}") from None
        trouble = saved.trouble
        if saved.carried is not None:
            ids = saved.carried.ids
            if max(ids, default=0) >= runtime.tokenizer.vocab_size:
                trouble = "it holds ids that are no tokens"
            elif not runtime.prefixes.put_back(saved.carried, session._hold, apart=not trusted):
                trouble = "its arrays are not those of this model"
            else:
                if trusted:  # how a text is spelled is known for all who write it
                    runtime.transcript.relearn(ids)
                session._ids = ids
        if trouble and not trusted:
            session.close()
            raise SessionError(f"{path} cannot be gone on from: {trouble}.")
        if trouble:
            runtime.warn(f"{path}: the conversation is here, but is computed again: {trouble}.")
        return session

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, OpenAI form, the system message first: a list of its own."""
        return list(self._messages)

    @property
    def hold(self) -> Hold:
        """For `Runtime.prepare`, where turns are asked for without `chat` or `stream`; then `follow`."""
        return self._hold

    @property
    def cached_ids(self) -> Sequence[int]:
        """Of the last prompt and its answer, as sampled."""
        return self._ids

    def follow(
        self, messages: Sequence[Mapping[str, Any]], tools: Tools | None, think: bool | None, ids: Sequence[int]
    ) -> None:
        """Take over a conversation that went on with `hold`: its messages, and the ids of all of it, as sampled."""
        with self._asking:
            self.tools, self.think = normalise_tools(tools), think
            self._messages, self._ids = [dict(message) for message in messages], ids

    @property
    def usage(self) -> Usage:
        """Of all turns since the session was opened, added up; the note is that of the last."""
        return self._usage

    def chat(self, question: Question = None, **options: Unpack[Options]) -> Reply:
        """Ask, and wait for the answer. Without a question the model goes on, as after `add_tool_result`."""
        return gathered(self.stream(question, **options))

    def stream(self, question: Question = None, **options: Unpack[Options]) -> Generator[Event]:
        """Ask, and read the answer's events as they come; the last is `Finished`. Closing the iterator cancels."""
        self._request(_asked(question), options)  # what is wrong with it is said at once
        return self._stream(_asked(question), options)

    async def achat(self, question: Question = None, **options: Unpack[Options]) -> Reply:
        """`chat` for event loops; cancelling the task cancels the answer."""
        return await agathered(self.astream(question, **options))

    def astream(self, question: Question = None, **options: Unpack[Options]) -> AsyncGenerator[Event]:
        """`stream` for event loops."""
        self._request(_asked(question), options)
        return self._astream(_asked(question), options)

    def add_tool_result(self, call: str | Mapping[str, Any], result: str) -> None:
        """Answer a tool call of the last reply. call: its id, or the call itself   result: what the model will read"""
        if not isinstance(result, str):
            raise RequestError(f"The result is a {type(result).__name__}; give text, such as json.dumps(result).")
        if not isinstance(call, (str, Mapping)):
            raise RequestError(f"The call is a {type(call).__name__}; give its id, or the call itself.")
        name = call if isinstance(call, str) else call.get("id")
        with self._turn():
            answers = [message for message in self._messages if message["role"] == "assistant"]
            made = answers[-1].get("tool_calls") or () if answers else ()
            known = [call["id"] for call in made if isinstance(call.get("id"), str)]
            if name not in known:
                raise RequestError(
                    f"The last answer made no call {name!r:.60}; its calls are {', '.join(known) or 'none'}."
                )
            self._messages.append({"role": "tool", "content": result, "tool_call_id": name})

    def fork(self) -> Session:
        """Another session with the same past, which goes its own way from here."""
        with self._turn():
            hold = self._runtime.prefixes.share(self._hold)
            other = Session(self._runtime, self._messages, self.tools, self.think, self.options, hold)
            other._ids = self._ids
            return other

    def save(self, path: str | Path) -> None:
        """Write the session to one file, whole or not at all: messages, settings, and what was computed.

        Another process that loads the same model with the same KV format goes on from there at no cost. Takes the
        memory of what it writes. Raises SessionError where the file cannot be written or is something else.
        """
        with self._turn():
            options = {**self.options, "logit_bias": list((self.options.get("logit_bias") or {}).items())}
            settings = {"tools": self.tools, "think": self.think, "options": options}
            carried = self._runtime.prefixes.carry(self._ids, self._hold)
            write_session(Path(path).expanduser(), {"messages": self._messages, **settings}, carried)

    def close(self) -> None:
        """Let go of what is kept of the session. What it said can still be read."""
        self._closed = True
        self._release()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, asked: list[Message], options: Options) -> ChatRequest:
        merged: Options = {**self.options, **options}
        check_names(merged)
        return chat_request([*self._messages, *asked], self.tools, self.think, **merged)

    def _stream(self, asked: list[Message], options: Options) -> Generator[Event]:
        with self._turn():
            running = self._runtime.submit(self._runtime.prepare(self._request(asked, options), self._hold))
            gathering = Gathering()
            with closing(running.events()) as events:
                for event in events:
                    self._take(event, asked, running, gathering)
                    yield event

    async def _astream(self, asked: list[Message], options: Options) -> AsyncGenerator[Event]:
        with self._turn():
            request = self._request(asked, options)
            prepared = await asyncio.to_thread(self._runtime.prepare, request, self._hold)
            running = self._runtime.submit(prepared)
            gathering = Gathering()
            async with aclosing(running.aevents()) as events:
                async for event in events:
                    self._take(event, asked, running, gathering)
                    yield event

    def _take(self, event: Event, asked: list[Message], running: Answering, gathering: Gathering) -> None:
        """Account for an event; at the last one the turn becomes part of the conversation."""
        gathering.take(event)
        if isinstance(event, Finished) and event.reason != "cancelled":
            self._messages += [*asked, gathering.reply().message]
            self._ids = (*running.prompt.ids, *running.sampled)
            self._usage = _added(self._usage, event.usage)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._closed:
            raise SessionError("The session was closed.")
        if not self._asking.acquire(blocking=False):
            raise SessionError("The session is answering; wait for it, or ask a fork().")
        try:
            yield
        finally:
            self._asking.release()


def _asked(question: Question) -> list[Message]:
    if question is None:
        return []
    if not isinstance(question, (str, Mapping)):
        raise RequestError(f"The question is a {type(question).__name__}; give text, or one message.")
    return [{"role": "user", "content": question} if isinstance(question, str) else dict(question)]


def _read_options(value: Any) -> Options:
    """Options of a file. JSON has no numbers as names, so a file lists pairs of token and bias."""
    if not isinstance(value, dict):
        raise RequestError("its options are no object.")
    pairs = value.get("logit_bias") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RequestError("its logit_bias is no list of pairs.")
    if not all(type(token) is int for token, _ in pairs):
        raise RequestError("its logit_bias is of what is no token id.")
    given: Any = {**value, "logit_bias": dict(pairs) or None}
    return given


def _added(total: Usage, turn: Usage) -> Usage:
    numbers = [f.name for f in fields(Usage) if f.name != "cache_note"]
    return replace(turn, **{name: getattr(total, name) + getattr(turn, name) for name in numbers})
