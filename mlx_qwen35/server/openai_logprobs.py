"""Log-probabilities of tokens in the three forms that OpenAI's endpoints have for them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from mlx_qwen35.chat.events import Logprobs, TokenLogprob
from mlx_qwen35.server.protocol import Json


def token_logprobs(tokens: Iterable[TokenLogprob]) -> list[Json]:
    """Of chat completions and Responses: an object for each token, with the likeliest in its place."""
    return [{**_one(token), "top_logprobs": [_one(other) for other in token.top]} for token in tokens]


def text_logprobs(tokens: Logprobs, start: int) -> Json:
    """Of completions: lists as long as there are tokens.   start: characters of the text before them

    Names are the tokens' texts; those that are no whole character by themselves are told by their bytes, so that no
    two share a name. The drawn token is among the likeliest even where it is none of them.
    """
    told: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        told["tokens"].append(_name(token))
        told["token_logprobs"].append(token.logprob)
        told["top_logprobs"].append({_name(other): other.logprob for other in (*token.top, token)})
        told["text_offset"].append(start)
        start += len(utf8.decode(token.raw))
    return told


def _one(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.raw)}


def _name(token: TokenLogprob) -> str:
    try:
        return token.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)
