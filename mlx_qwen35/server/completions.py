"""OpenAI's `/v1/completions`: texts to go on with, as they stand."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from msgspec import Meta

from mlx_qwen35.chat.events import Content, Event, Finished, Logprobs, Usage
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.options import MOST_LOGPROBS
from mlx_qwen35.runtime import TextRequest
from mlx_qwen35.server.body import typed
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.openai_fields import Shared, answer_options, refuse_unsupported, seeds, usage_json
from mlx_qwen35.server.openai_logprobs import text_logprobs
from mlx_qwen35.server.protocol import Asked, Call, Frame, Generation, Json, Refused, Served

USUAL_TOKENS = 16  # the protocol's own default
MAX_TEXTS = 64  # of one request


class CompletionBody(Shared, kw_only=True):
    """The body of `/v1/completions`."""

    prompt: str | list[Any]  # text, token ids, or a list of either
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None = None


def endpoints(served: Served) -> list[Generation]:
    """`/v1/completions`."""

    def read(call: Call) -> Asked:
        body = typed(call.body, CompletionBody)
        prompts = _prompts(body.prompt)
        _refuse_what_is_missing(body)
        count = body.n or 1
        if len(prompts) * count > MAX_TEXTS:
            raise Refused(400, f"prompt and n ask for more than {MAX_TEXTS} texts.", param="prompt")
        options = answer_options(body)
        options["max_tokens"] = options["max_tokens"] or USUAL_TOKENS
        options["logprobs"] = body.logprobs
        requests = [TextRequest(text, seed=seed, **options) for text in prompts for seed in seeds(body.seed, count)]
        return Asked(requests, CompletionAuthor(served, body, prompts, count), bool(body.stream))

    return [Generation("/v1/completions", read, openai_error, CompletionBody, "Go on with a text.")]


def _prompts(given: str | list[Any]) -> list[str | list[int]]:
    """One text, ids of one text, or several of either. Raises Refused."""
    if isinstance(given, str):
        return [given]
    if given and all(type(item) is int for item in given):
        return [given]
    for i, item in enumerate(given):
        if not isinstance(item, str) and not (isinstance(item, list) and all(type(token) is int for token in item)):
            raise Refused(400, "Text or a list of token ids is needed.", param=f"prompt[{i}]")
    if not given:
        raise Refused(400, "prompt is empty; give a text.", param="prompt")
    return list(given)


def _refuse_what_is_missing(body: CompletionBody) -> None:
    if body.logprobs is not None and body.echo:
        raise refuse_unsupported("logprobs", "of a prompt are not told; leave out echo")
    if body.suffix:
        raise refuse_unsupported("suffix")
    if body.best_of not in (None, 1, body.n):
        raise refuse_unsupported("best_of", "other than n is not supported")
    if body.echo and not all(isinstance(text, str) for text in _prompts(body.prompt)):
        raise refuse_unsupported("echo", "needs prompts that are text")


class CompletionAuthor:
    """Writes one `text_completion`, or its chunks."""

    def __init__(self, served: Served, body: CompletionBody, prompts: Sequence[str | list[int]], count: int) -> None:
        self._served, self._count = served, count
        self._id, self._created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self._model = served.check_model(body.model)
        self._echoes = [str(text) if body.echo else "" for text in prompts for _ in range(count)]
        self._tells_logprobs = body.logprobs is not None
        self._told = [0] * len(self._echoes)  # characters of each
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._usages: dict[int, Usage] = {}

    def whole(self, replies: Sequence[Reply]) -> Json:
        """The `text_completion` object."""
        choices = [
            self._choice(i, echo + reply.content, reply.reason, reply.logprobs)
            for i, (echo, reply) in enumerate(zip(self._echoes, replies))
        ]
        return self._object(choices) | {"usage": self._usage([reply.usage for reply in replies])}

    def begin(self) -> Iterable[Frame]:
        for i, echo in enumerate(self._echoes):
            if echo:
                yield self._chunk(self._choice(i, echo, None))

    def event(self, choice: int, event: Event) -> Iterable[Frame]:
        if isinstance(event, Content):
            yield self._chunk(self._choice(choice, event.text, None, event.logprobs))
        elif isinstance(event, Finished):
            self._usages[choice] = event.usage
            yield self._chunk(self._choice(choice, "", event.reason))

    def end(self) -> Iterable[Frame]:
        if self._with_usage:
            yield Frame(self._object([]) | {"usage": self._usage([usage for _, usage in sorted(self._usages.items())])})
        yield Frame("[DONE]")

    def failed(self, refused: Refused) -> Iterable[Frame]:
        yield Frame(openai_error(refused))

    def _usage(self, usages: list[Usage]) -> Json:
        return usage_json(self._served, usages, self._count)

    def _chunk(self, choice: Json) -> Frame:
        chunk = self._object([choice])
        return Frame(chunk | {"usage": None} if self._with_usage else chunk)

    def _object(self, choices: list[Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }

    def _choice(self, index: int, text: str, reason: str | None, tokens: Logprobs = ()) -> Json:
        logprobs = text_logprobs(tokens, self._told[index]) if self._tells_logprobs else None
        self._told[index] += len(text)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
