"""OpenAI's Responses: `POST /v1/responses`, its stored answers, and the count of a request's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from mlx_qwen35.server.body import typed
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.parts import told_as
from mlx_qwen35.server.protocol import Asked, Call, Generation, Json, Lookup, Refused, Served
from mlx_qwen35.server.responses_answer import ResponseAuthor
from mlx_qwen35.server.responses_request import InputTokensBody, Message, Parts, ResponsesBody, read_items, read_request
from mlx_qwen35.server.responses_store import ResponseStore, Stored
from mlx_qwen35.server.responses_tools import read_tools
from mlx_qwen35.server.sessions import session_name

# Fields by the names that the runtime has for them.
FIELDS = {"response_format": "text.format.schema", "messages": "input", "max_tokens": "max_output_tokens"}


def error(refused: Refused) -> Json:
    """OpenAI's error object."""
    return openai_error(told_as(refused, FIELDS))


def endpoints(served: Served) -> list[Generation | Lookup]:
    """Those of the protocol, for `app.ENDPOINTS`; what is stored is shared among them."""
    store = ResponseStore()

    def read(call: Call) -> Asked:
        body = typed(call.body, ResponsesBody)
        name = served.check_model(body.model)
        tools = read_tools(body.tools)
        before, own = _before(store, body), read_items(body.input, tools, store.item)
        request = served.canonical(read_request(body, before, own, tools))
        items = _listed(body.input)

        def keep(response: Json, answer: dict[str, Any]) -> None:
            if body.store is not False:
                store.put(Stored(response, items, [*before, *own, answer]))

        return Asked(
            [request],
            ResponseAuthor(name, body, call.body, tools, served.cache, keep),
            bool(body.stream),
            session_name(body.session_id),
        )

    def count(call: Call) -> Json:
        body = typed(call.body, InputTokensBody)
        served.check_model(body.model)
        tools = read_tools(body.tools)
        own = read_items(body.input, tools, store.item)
        request = served.canonical(read_request(body, _before(store, body), own, tools))
        return {"object": "response.input_tokens", "input_tokens": len(served.runtime.prompt(request).ids)}

    def stored(call: Call) -> Json:
        return _known(store, call.path["id"]).response

    def items(call: Call) -> Json:
        listed = list(reversed(_known(store, call.path["id"]).items))
        ends = {"first_id": listed[0]["id"], "last_id": listed[-1]["id"]} if listed else {}
        return {"object": "list", "data": listed, "has_more": False, **ends}

    def drop(call: Call) -> Json:
        if not store.drop(call.path["id"]):
            raise _unknown(call.path["id"])
        return {"id": call.path["id"], "object": "response", "deleted": True}

    path = "/v1/responses"
    return [
        Generation(path, read, error, ResponsesBody, "An answer, in the form of OpenAI's Responses."),
        Lookup(f"{path}/input_tokens", count, error, "Its prompt's tokens.", InputTokensBody, "POST"),
        Lookup(f"{path}/{{id}}", stored, error, "A stored response."),
        Lookup(f"{path}/{{id}}/input_items", items, error, "What it was asked, the last item first."),
        Lookup(f"{path}/{{id}}", drop, error, "Forget a stored response.", method="DELETE"),
    ]


def _before(store: ResponseStore, body: InputTokensBody) -> Sequence[Message]:
    """The conversation that the request goes on from. Raises Refused."""
    name = body.previous_response_id
    return [] if name is None else _known(store, name, "previous_response_id").said


def _known(store: ResponseStore, name: str, param: str | None = None) -> Stored:
    found = store.get(name)
    if found is None:
        raise _unknown(name, param)
    return found


def _unknown(name: str, param: str | None = None) -> Refused:
    text = f"No response {name!r:.80} is stored here (they live in memory, until the server ends)."
    code = "previous_response_not_found" if param else None
    return Refused(400 if param else 404, text, param=param, code=code)


def _listed(given: Parts) -> list[dict[str, Any]]:
    """The input as items with ids."""
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    return [{"type": "message", **item, "id": item.get("id") or f"item_{uuid4().hex}"} for item in given]
