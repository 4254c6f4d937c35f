"""What the page needs that Gradio does not serve: its script, and saved conversations as files.

Stands behind the same guard as the page. Nothing is written: a file is made when it is asked for.
"""

from __future__ import annotations

import re

from fastapi import FastAPI
from starlette.responses import FileResponse, PlainTextResponse, Response

from mlx_qwen35.app.desk import Desk
from mlx_qwen35.app.look import SCRIPT
from mlx_qwen35.conversations.markdown import as_markdown
from mlx_qwen35.errors import UserError


def add_routes(app: FastAPI, desk: Desk) -> None:
    """Before the page is mounted, which takes every other path."""

    @app.get("/page.js", include_in_schema=False)
    def script() -> Response:
        return FileResponse(SCRIPT, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @app.get("/chats/{name}", include_in_schema=False)
    def chat(name: str) -> Response:
        id, _, kind = name.partition(".")
        try:
            summary, conversation = desk.store.open(id)
        except UserError as error:
            return PlainTextResponse(f"{error}\n", status_code=404)
        conversation.title = summary.title
        if kind == "md":
            text, media = as_markdown(conversation, summary.model), "text/markdown"
        elif kind == "json":
            text, media = conversation.as_json(summary.model), "application/json"
        else:
            return PlainTextResponse("A chat is a file that ends in .md or .json.\n", status_code=404)
        headers = {"Content-Disposition": f'attachment; filename="{file_name(summary.title)}.{kind}"'}
        return Response(text.encode("utf-8", "replace"), media_type=f"{media}; charset=utf-8", headers=headers)


def file_name(title: str) -> str:
    """A title as a name that any file system and any header takes."""
    return re.sub(r"[^A-Za-z0-9]+", "-", title).strip("-")[:60] or "chat"
