"""mlx_qwen35: the Qwen3.5 family on Apple Silicon, natively on MLX.

    import mlx_qwen35

    qwen = mlx_qwen35.load("demo")
    print(qwen.chat("How do I convert a model?").content)

Importing this takes no time: MLX is loaded with the first model, or with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_qwen35.chat.events import (
        Content,
        Event,
        Finished,
        Malformed,
        PrefillProgress,
        Reasoning,
        ToolCallArguments,
        ToolCallEnd,
        ToolCallStart,
        Usage,
    )
    from mlx_qwen35.chat.reply import Completion, Reply
    from mlx_qwen35.errors import UserError
    from mlx_qwen35.qwen import Qwen, load
    from mlx_qwen35.runtime import ChatRequest
    from mlx_qwen35.session import Session

__version__ = "0.1.0"
__all__ = [
    "ChatRequest",
    "Completion",
    "Content",
    "Event",
    "Finished",
    "Malformed",
    "PrefillProgress",
    "Qwen",
    "Reasoning",
    "Reply",
    "Session",
    "ToolCallArguments",
    "ToolCallEnd",
    "ToolCallStart",
    "Usage",
    "UserError",
    "load",
]

_HOMES = {
    "load": "qwen",
    "Qwen": "qwen",
    "Session": "session",
    "ChatRequest": "runtime",
    "Completion": "chat.reply",
    "Reply": "chat.reply",
    "UserError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'chat.events')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
