"""What one HTTP protocol provides to plug into the server. Knows no protocol, no HTTP library and no network.

A protocol module makes a list of endpoints, and `app.ENDPOINTS` names its maker. Its kinds:

- `Generation`: a body asks for one or more answers of the runtime. `read` translates it, an `Author` writes the
  answers. Everything between the two (queue, threads, cancellation, keep-alive, deadlines, status) is the server's.
- `Lookup`: a body or a path asks for what is known at once: a count of tokens, a stored answer, the list of models.
- `Download` and `Upload`: the answer, or the body, is a file.

    def endpoints(served: Served) -> list[Generation | Lookup]:
        return [Generation("/v1/messages", read=..., error=..., body=MessagesBody, summary="...")]

`read` and `answer` run on a worker thread, may take milliseconds, and raise `Refused`, or any `UserError` of the
runtime (a RequestError becomes a 400 whose `param` is the field that its message begins with).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from mlx_qwen35.chat.canonical import RULES, canonical
from mlx_qwen35.chat.events import Event, Usage
from mlx_qwen35.chat.reply import Reply
from mlx_qwen35.runtime import ChatRequest, Runtime, TextRequest
from mlx_qwen35.server.pinned import PinnedSessions

Json = Mapping[str, Any]


class Refused(Exception):
    """A request that is not answered, or no longer. `str(refused)` is for people: one line, nothing of the content.

    status: of HTTP: 400 invalid, 401 no or wrong key, 403 forbidden, 404 unknown, 405, 408 slow body, 409 a name
    that is taken, 413 too large,
    415 not JSON, 429 too many, 500 defect, 503 shutting down or out of memory, 504 took too long
    param: the field, as a path (`messages[3].content`)   code: for programs; see CODES
    retry_after: seconds, for the header
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


CODES = (
    "context_length_exceeded",  # the prompt leaves no room in the context
    "unsupported_media",  # images, video, files: in a later release
    "unsupported_parameter",  # a field that this release does not obey
    "unknown_parameter",  # a field that looks like a misspelt one
    "model_not_found",
    "invalid_api_key",
    "invalid_json",
    "server_busy",
    "shutting_down",
)


@dataclass(frozen=True)
class Frame:
    """One server-sent event. data: a JSON value, or text that is sent as it stands (`[DONE]`)"""

    data: Json | str
    event: str | None = None


@dataclass(frozen=True)
class Served:
    """What the server was started with. names: all names of the model that a request may use

    rules: those of `chat.canonical` that are on
    """

    runtime: Runtime
    names: Sequence[str]
    created: int  # seconds since 1970
    quotes: bool = False  # whether notes on the cache may quote earlier prompts, which may be another client's
    rules: Collection[str] = RULES
    sessions: PinnedSessions = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sessions", PinnedSessions(self.runtime))

    def canonical(self, request: ChatRequest) -> ChatRequest:
        """The same request, so written that what was computed for the one before it can be used."""
        messages, tools = canonical(request.messages, request.tools, self.rules)
        return replace(request, messages=messages, tools=tools)

    def cache(self, prompts: Sequence[Usage]) -> Json:
        """The field `cache` of every protocol's usage: how many prompt tokens were reused, how many of earlier turns
        were computed again, and why not more was reused: where the first prompt departs from an earlier one, without
        the texts."""
        note = prompts[0].cache_note
        return {
            "reused_tokens": sum(usage.cached_tokens for usage in prompts),
            "rerendered_tokens": sum(usage.rerendered_tokens for usage in prompts),
            "note": note if self.quotes else note.partition(": “")[0],
        }

    def check_model(self, name: str | None) -> str:
        """The name to answer under. Raises Refused (404) for any other model: nothing is ever loaded for a request."""
        if name is None or name in self.names:
            return name or self.names[0]
        raise Refused(
            404,
            f"The model {name!r:.80} is not served here; served is {', '.join(self.names)}.",
            param="model",
            code="model_not_found",
        )


@dataclass(frozen=True)
class Call:
    """One HTTP request, its body read and parsed: values survive a second trip through JSON (chat/json_text.py).

    body: the JSON object; empty where the method has none   path: values of `{names}` in the endpoint's path
    headers: lower-case names
    """

    body: dict[str, Any]
    path: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


class Author(Protocol):
    """Writes one response: `whole`, called once, or `begin`, `event` for each event, and `end` or `failed`."""

    def whole(self, replies: Sequence[Reply]) -> Json:
        """The response body; one reply for each request of `Asked`."""
        ...

    def begin(self) -> Iterable[Frame]:
        """What precedes all events. Called when the first request was accepted: what was wrong became a status."""
        ...

    def event(self, choice: int, event: Event) -> Iterable[Frame]:
        """choice: which request of `Asked`. The last event of each is `Finished`; `PrefillProgress` needs no frame,
        since the server sends comments that keep the connection alive."""
        ...

    def end(self) -> Iterable[Frame]:
        """After every choice has finished."""
        ...

    def failed(self, refused: Refused) -> Iterable[Frame]:
        """In place of `end`, when something went wrong after `begin`."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a body asks for. requests: one for each choice; they are answered side by side

    session: the name under which the conversation, with the first choice, is kept
    """

    requests: Sequence[ChatRequest | TextRequest]
    author: Author
    stream: bool = False
    session: str | None = None


Error = Callable[[Refused], Json]


@dataclass(frozen=True)
class Generation:
    """POST `path`: answers of the model.

    read: the body as requests to the runtime   error: a refusal as the protocol's error body
    body: the msgspec Struct that documents and checks it (see body.py)
    """

    path: str
    read: Callable[[Call], Asked]
    error: Error
    body: type
    summary: str
    method: str = "POST"


@dataclass(frozen=True)
class Lookup:
    """`method` `path`: something known at once. `answer` gives the JSON body. body: None where the method has none"""

    path: str
    answer: Callable[[Call], Json]
    error: Error
    summary: str
    body: type | None = None
    method: str = "GET"


@dataclass(frozen=True)
class SavedFile:
    """done: called when nobody needs it any more"""

    path: Path
    done: Callable[[], object]


@dataclass(frozen=True)
class Download:
    """GET `path`: a file."""

    path: str
    answer: Callable[[Call], SavedFile]
    error: Error
    summary: str
    body: None = None
    method: str = "GET"


@dataclass(frozen=True)
class Upload:
    """POST `path`: the body is a file, of which `answer` gets the call and a copy that lasts until it returns."""

    path: str
    answer: Callable[[Call, Path], Json]
    error: Error
    summary: str
    body: None = None
    method: str = "POST"


Endpoint = Generation | Lookup | Download | Upload
