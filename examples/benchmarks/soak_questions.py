"""What the clients of the soak ask, in each protocol, and how an answer's text is read from a whole or from events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from examples.demo_model.mixture import evaluation_set
from examples.demo_model.samples import Message

Protocol = Literal["chat", "messages", "responses", "text"]
PATHS: dict[Protocol, str] = {
    "chat": "/v1/chat/completions",
    "messages": "/v1/messages",
    "responses": "/v1/responses",
    "text": "/v1/completions",
}
PROTOCOLS: tuple[Protocol, ...] = ("chat", "messages", "responses")
LONGEST_ANSWER, LONG_TEXT = 160, 300
STOPS = {"991": -100, "993": -100}  # of the demo's tokenizer: a text without them goes on to its limit


@dataclass(frozen=True)
class Question:
    """Greedy, so that the same question has one answer. long: a text that goes on for LONG_TEXT tokens"""

    protocol: Protocol
    messages: tuple[Message, ...]
    thinking: bool = False

    @property
    def path(self) -> str:
        return PATHS[self.protocol]

    def body(self, stream: bool) -> dict[str, Any]:
        shared: dict[str, Any] = {"model": "demo", "temperature": 0, "stream": stream}
        said = list(self.messages)
        if self.protocol == "text":
            return {**shared, "prompt": said[-1]["content"], "max_tokens": LONG_TEXT, "logit_bias": STOPS}
        if self.protocol == "responses":
            return {**shared, "input": said, "max_output_tokens": LONGEST_ANSWER}
        thinking = {"enable_thinking": self.thinking} if self.protocol == "chat" else {}
        return {**shared, **thinking, "messages": said, "max_tokens": LONGEST_ANSWER}

    def whole(self, raw: bytes) -> str:
        """The text of an answer that came at once."""
        body = json.loads(raw)
        if self.protocol == "text":
            return body["choices"][0]["text"]
        if self.protocol == "responses":
            return "".join(part["text"] for item in body["output"] for part in item.get("content") or [])
        if self.protocol == "messages":
            return "".join(part["text"] for part in body["content"])
        message = body["choices"][0]["message"]
        return message.get("reasoning_content", "") + message["content"]

    def streamed(self, raw: bytes) -> str:
        """The text of a stream. ValueError where the stream has no end."""
        data = [line.removeprefix(b"data: ") for line in raw.split(b"\n") if line.startswith(b"data: ")]
        events: list[Any] = [json.loads(line) for line in data if line != b"[DONE]"]
        ended = data[-1:] == [b"[DONE]"] or events[-1].get("type") in ("message_stop", "response.completed")
        if not ended or any("error" in event and event["error"] for event in events):
            raise ValueError(f"a stream without its end: {raw[-200:]!r}")
        return "".join(map(self._piece, events))

    def _piece(self, event: Any) -> str:
        if self.protocol == "messages":
            return event["delta"].get("text", "") if event["type"] == "content_block_delta" else ""
        if self.protocol == "responses":
            return event["delta"] if event["type"] == "response.output_text.delta" else ""
        if self.protocol == "text":
            return event["choices"][0]["text"]
        delta = event["choices"][0]["delta"]
        return (delta.get("reasoning_content") or "") + (delta.get("content") or "")


def questions(count: int) -> list[Question]:
    """Recall, extraction and arithmetic: each answer says what only its own prompt held."""
    third = -(-count // 3)
    stated = [sample for name in ("recall at 512 tokens", "json") for sample in evaluation_set(name, third)]
    made = [Question(PROTOCOLS[i % 3], tuple(sample.messages)) for i, sample in enumerate(stated)]
    sums = evaluation_set("arithmetic, thinking", third)
    return [*made, *(Question("chat", tuple(sample.messages), thinking=True) for sample in sums)]


def long_texts(count: int) -> list[Question]:
    """For those who read slowly: more than buffers on the way take."""
    return [Question("text", ({"role": "user", "content": f"Text number {i}: How do I"},)) for i in range(count)]
