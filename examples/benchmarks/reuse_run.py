"""One conversation through our runtime and through the peer, turn by turn, each turn held against the truth."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.benchmarks.mlx_lm_server import MlxLmServer, PeerError
from examples.benchmarks.reuse_scripts import NAMES, TOPICS, VOICES, Script, Turn
from examples.benchmarks.reuse_truth import Reuse, new_messages_at, shared_tokens
from mlx_qwen35.chat.events import Content, Finished, PrefillProgress, Reasoning, ToolCallEnd, Usage
from mlx_qwen35.chat.tokenizer import Tokenizer
from mlx_qwen35.options import CacheOptions
from mlx_qwen35.runtime import ChatRequest, Runtime
from tests.support import puppet, puppet_weights, real_tokenizer

REPOSITORY = Path(__file__).parents[2]
REAL_TEMPLATE = REPOSITORY.parent / "shared" / "data" / "qwen3_5_chat_template.jinja"
STAND_IN = REPOSITORY / "mlx_qwen35" / "demo_checkpoint" / "chat_template.jinja"
MAX_TOKENS = 400  # more than any reply has


@dataclass
class Answer:
    """What one side said to one turn."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    first_seconds: float = 0.0

    def message(self) -> dict[str, Any]:
        """The answer as the history of the next request carries it."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "reasoning_content": self.reasoning}
        if self.calls:
            message["tool_calls"] = [
                {"id": f"call_{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
                for i, (name, arguments) in enumerate(self.calls)
            ]
        return message


def write_checkpoint(folder: Path) -> puppet.Script:
    """The puppet with the real template, or with the demo's and a loud word where the real one is absent."""
    template = REAL_TEMPLATE
    if not template.is_file():
        print(f"THE REAL TEMPLATE IS ABSENT ({REAL_TEMPLATE}): rendered with the demo checkpoint's instead\n")
        template = STAND_IN
    tokenizer = real_tokenizer.folder()
    script = puppet.Script(Tokenizer.from_folder(tokenizer), VOICES, TOPICS, NAMES)
    puppet_weights.write_puppet(folder, script, tokenizer, template)
    return script


@contextmanager
def our_runtime(folder: Path, disk: Path) -> Iterator[Runtime]:
    """Our side, its prefixes on disk in `disk`."""
    runtime = Runtime.load(str(folder), caches=CacheOptions(disk=disk))
    try:
        yield runtime
    finally:
        runtime.close()


def prompt_ids(runtime: Runtime, request: ChatRequest) -> list[int]:
    """The prompt as the engine sees it: answers of the runtime in it as they were sampled."""
    return list(runtime.prompt(request).ids)


def ask(runtime: Runtime, request: ChatRequest) -> Answer:
    """Our answer, timed from the request until the first piece of any kind."""
    answer, started = Answer(), time.perf_counter()
    for event in runtime.chat(request):
        if not isinstance(event, PrefillProgress):
            answer.first_seconds = answer.first_seconds or time.perf_counter() - started
        if isinstance(event, Reasoning):
            answer.reasoning += event.text
        elif isinstance(event, Content):
            answer.content += event.text
        elif isinstance(event, ToolCallEnd):
            answer.calls.append((event.name, event.arguments))
        elif isinstance(event, Finished):
            answer.usage = event.usage
    return answer


def ask_peer(peer: MlxLmServer, request: ChatRequest) -> Answer:
    """The peer's answer to the same messages. Raises PeerError."""
    body = {"messages": request.messages, "tools": request.tools, "max_tokens": request.max_tokens, "temperature": 0.0}
    said = peer.chat({**body, "chat_template_kwargs": {"enable_thinking": request.enable_thinking}})
    usage = Usage(said.prompt_tokens, said.completion_tokens, cached_tokens=said.cached_tokens)
    return Answer(said.reasoning, said.content, said.calls, usage, said.first_seconds)


class Conversation:
    """One script on its way: the messages so far, and the text of all prompts with their answers.

    seen: texts that both sides have answered before, of other conversations; this one adds its own
    """

    def __init__(self, script: Script, says: puppet.Script, seen: list[bytes]) -> None:
        self.script, self._says = script, says
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": script.system}]
        self.seen = seen
        self._user = says.tokenizer.encode("<|im_start|>user")

    def request(self, turn: Turn) -> ChatRequest:
        message = {"role": turn.role, "content": turn.text}
        if turn.role == "tool":
            message["tool_call_id"] = "call_0"
        messages = [*self.messages, message]
        return ChatRequest(messages, self.script.tools, turn.thinking, max_tokens=MAX_TOKENS)

    def reuse(self, ids: Sequence[int], turn: Turn, answer: Answer) -> Reuse:
        """The truth about a prompt's ids, as the answering side spells them, and what the answer says of them."""
        shared = shared_tokens([self._says.tokenizer.token_bytes(token) for token in ids], self.seen)
        # A conversation without an answer has no history that could be rendered again.
        old = new_messages_at(ids, self._user) if len(self.messages) > 1 else 0
        if answer.usage.prompt_tokens != len(ids):
            note = f"counts {answer.usage.prompt_tokens} prompt tokens, not {len(ids)}"
        elif not self.is_scripted(turn, answer):
            note = "SAYS SOMETHING ELSE"
        else:
            note = ""
        return Reuse(
            prompt=len(ids),
            shared=shared,
            rerendered=max(old - shared, 0),
            cached=answer.usage.cached_tokens,
            first_seconds=answer.first_seconds,
            thinking=turn.thinking,
            note=note,
            reported_rerendered=answer.usage.rerendered_tokens,
            cache_note=answer.usage.cache_note,
        )

    def is_scripted(self, turn: Turn, answer: Answer) -> bool:
        """Whether an answer is the one that the weights were solved for."""
        voice = self._says.voices[turn.voice]
        reasoning, content = (
            text.replace("{topic}", turn.topic).replace("{name}", self.script.name)
            for text in (voice.reasoning if turn.thinking else "", voice.content)
        )
        content, call, rest = content.partition("<tool_call>")
        texts = (answer.reasoning.strip(), answer.content.strip()) == (reasoning, content.strip())
        calls = [
            f"<function={name}>" in rest and all(str(v) in rest for v in args.values()) for name, args in answer.calls
        ]
        right = texts and calls == [True] * bool(call)
        return right and answer.usage.completion_tokens == len(self._reply(turn))

    def advance(self, prompt: str, turn: Turn, request: ChatRequest, answer: Answer) -> None:
        """Remember a turn: its text with the answer, and the messages that the next one sends."""
        self.seen.append((prompt + self._says.tokenizer.decode(self._reply(turn))).encode())
        self.messages = [*map(dict, request.messages), answer.message()]

    def _reply(self, turn: Turn) -> list[int]:
        return self._says.reply(turn.voice, turn.topic, self.script.name, turn.thinking)


@dataclass
class Report:
    """One script's turns, ours and the peer's; `failure` is where the peer stopped answering."""

    script: Script
    ours: list[Reuse] = field(default_factory=list)
    peer: list[Reuse] = field(default_factory=list)
    failure: str = ""


def run(
    runtime: Runtime, peer: MlxLmServer | None, script: Script, says: puppet.Script, seen: list[bytes]
) -> tuple[Report, Conversation]:
    """All turns of a script, ours and the peer's in turn: who goes first changes every turn.

    seen: the texts of earlier scripts on the same two sides, to which this one's are added
    """
    conversation, report = Conversation(script, says, seen), Report(script)
    for i, turn in enumerate(script.turns):
        request = conversation.request(turn)
        prompt = runtime.render(request)
        ids = {"ours": prompt_ids(runtime, request), "peer": runtime.tokenizer.encode(prompt)}
        answer = Answer()
        for side in ("ours", "peer") if i % 2 == 0 else ("peer", "ours"):
            if side == "ours":
                answer = ask(runtime, request)
                report.ours.append(conversation.reuse(ids[side], turn, answer))
            elif peer is not None and not report.failure:
                try:
                    report.peer.append(conversation.reuse(ids[side], turn, ask_peer(peer, request)))
                except PeerError as error:
                    report.failure = f"turn {i + 1}: {error}"
        conversation.advance(prompt, turn, request, answer)
    return report, conversation
