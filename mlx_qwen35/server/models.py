"""What is served, and whether it is well: `/v1/models`, `/health`, and the root that some clients knock at."""

from __future__ import annotations

from dataclasses import asdict

from mlx_qwen35 import __version__
from mlx_qwen35.chat.presets import FAMILY as PRESETS
from mlx_qwen35.runtime import ChatRequest, Runtime
from mlx_qwen35.server.openai_errors import openai_error
from mlx_qwen35.server.protocol import Call, Json, Lookup, Refused, Served


def endpoints(served: Served) -> list[Lookup]:
    """GET endpoints without a body."""

    def entry(name: str) -> Json:
        context = served.runtime.config.max_context
        return {
            "id": name,
            "object": "model",
            "created": served.created,
            "owned_by": "mlx-qwen35",
            "max_model_len": context,
            "thinks_by_default": served.runtime.thinks(ChatRequest([])),
            "sampling": _sampling(served.runtime),
        }

    def listing(_: Call) -> Json:
        return {"object": "list", "data": [entry(name) for name in served.names]}

    def one(call: Call) -> Json:
        return entry(served.check_model(call.path["model"]))

    def root(_: Call) -> Json:
        return {"name": "mlx-qwen35", "version": __version__, "model": served.names[0]}

    def health(_: Call) -> Json:
        if not served.runtime.is_open:
            raise Refused(503, "The model was closed.", code="shutting_down")
        return {"status": "ok"}

    return [
        Lookup("/v1/models", listing, openai_error, "The models that may be asked."),
        Lookup("/v1/models/{model:path}", one, openai_error, "One of them."),
        Lookup("/health", health, openai_error, "Whether the model answers."),
        Lookup("/", root, openai_error, "What this is."),
    ]


def _sampling(runtime: Runtime) -> Json:
    """The numbers of each preset, and those of a request that names none, thinking or not."""
    modes = {"default-thinking": True, "default-non-thinking": False}
    requests = {name: ChatRequest([], enable_thinking=thinks) for name, thinks in modes.items()}
    requests |= {name: ChatRequest([], preset=name) for name in PRESETS}
    return {name: asdict(runtime.sampling(request)) for name, request in requests.items()}
