"""`python -m tests.browser.served RECORD app demo ...`: the command line, watched, and a model told what to say.

What the runtime is asked is written to the file RECORD, a JSON object a line. A question `Say: TEXT` (or `Say 50 times:
TEXT`) is answered with that very text: the model still computes it, guided by a grammar that knows no other. Whatever
would leave loopback is written to stderr as OUTSIDE, and refused.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

DIRECTIVE = re.compile(r"Say(?: (\d+) times)?: (.*)", re.DOTALL)


def refuse_what_leaves_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; it sees every connection that Python code opens."""
    if event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else ""
    elif event == "socket.getaddrinfo":
        host = arguments[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if host not in ("", "localhost", "::1") and not host.startswith(("127.", "/")):
        print("OUTSIDE", event, host, file=sys.stderr, flush=True)
        raise OSError("blocked by the test")


def directed(request: Any) -> Any:
    """The request, with a grammar where its question is told what to be answered."""
    last = request.messages[-1] if request.messages else {}
    content = last.get("content") if last.get("role") == "user" else None
    if not (isinstance(content, str) and (found := DIRECTIVE.fullmatch(content))):
        return request
    times, text = int(found[1] or 1), found[2]
    return replace(request, grammar=f"start: ({json.dumps(text)}){{{times}}}\n", tools=None)


def described(runtime: Any, request: Any) -> dict[str, Any]:
    """What the model is asked, as it gets it."""
    return {
        "prompt": runtime.render(request),
        "sampling": vars(runtime.sampling(request)),
        "messages": list(request.messages),
        "thinking": runtime.thinks(request),
        "budget": request.thinking_budget,
        "preset": request.preset,
        "tools": [tool["function"]["name"] for tool in request.tools or ()],
        "response_format": request.response_format,
    }


def main(record: str, *arguments: str) -> int:
    sys.addaudithook(refuse_what_leaves_loopback)
    from mlx_qwen35.cli import main
    from mlx_qwen35.runtime import Runtime

    prepare = Runtime.prepare  # what every question goes through, with tools or without

    def watched(self: Runtime, request: Any, *more: Any) -> Any:
        with Path(record).open("a") as file:
            file.write(json.dumps(described(self, request), default=str) + "\n")
        return prepare(self, directed(request), *more)

    Runtime.prepare = watched
    return main(list(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
