"""Whatever went wrong, as a refusal with a status. Nothing of a defect's details reaches the client."""

from __future__ import annotations

import logging
import re

from mlx_qwen35.errors import BusyError, RequestError, TooLongError, UserError
from mlx_qwen35.server.protocol import Refused

PLACE = re.compile(r"^([a-z_]+(?:\[\d+\]|\.[a-z_]+)*) (?:is|has|holds|names|of|should)\b")

log = logging.getLogger(__name__)


def refusal(error: BaseException) -> Refused:
    """The refusal that an error of the runtime means to a client. A defect is logged, with its traceback."""
    if isinstance(error, Refused):
        return error
    text = str(error)
    if isinstance(error, BusyError):
        return Refused(503, text, code="server_busy", retry_after=5)
    if isinstance(error, TooLongError):
        return Refused(400, text, param="messages", code="context_length_exceeded")
    if isinstance(error, RequestError):
        place = PLACE.match(text)
        code = "unsupported_media" if "images and video come in a later release" in text else None
        return Refused(400, text, param=place.group(1) if place else None, code=code)
    if isinstance(error, UserError):  # the checkpoint's trouble, not the request's
        return Refused(500, text)
    log.error("A request met a defect", exc_info=error)
    return Refused(500, "This is a defect of the server; its log says more.")
