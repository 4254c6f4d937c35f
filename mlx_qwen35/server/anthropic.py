"""Anthropic's protocol: `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from mlx_qwen35.server.anthropic_answer import MessageAuthor, anthropic_error
from mlx_qwen35.server.anthropic_request import CountBody, MessagesBody, read_request
from mlx_qwen35.server.body import typed
from mlx_qwen35.server.protocol import Asked, Call, Generation, Json, Lookup, Served
from mlx_qwen35.server.sessions import session_name


def endpoints(served: Served) -> list[Generation | Lookup]:
    """Those of the protocol, for `app.ENDPOINTS`."""

    def read(call: Call) -> Asked:
        body = typed(call.body, MessagesBody)
        name = served.check_model(body.model)
        hides = body.thinking is not None and body.thinking.display == "omitted"
        author = MessageAuthor(name, hides, served.runtime.config.max_context, served.cache)
        session = session_name(body.session_id)
        return Asked([served.canonical(read_request(body))], author, bool(body.stream), session)

    def count(call: Call) -> Json:
        body = typed(call.body, CountBody)
        served.check_model(body.model)
        return {"input_tokens": len(served.runtime.prompt(served.canonical(read_request(body))).ids)}

    summary = "An answer to a conversation, in Anthropic's form."
    return [
        Generation("/v1/messages", read, anthropic_error, MessagesBody, summary),
        Lookup(
            "/v1/messages/count_tokens",
            count,
            anthropic_error,
            "How many tokens a conversation has.",
            CountBody,
            "POST",
        ),
    ]
