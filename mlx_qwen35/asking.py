"""The keyword options of the Python API, checked and made into requests. Knows nothing of how they are answered."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, Unpack

from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import Sampling
from mlx_qwen35.runtime import ChatRequest, TextRequest

SAMPLING = tuple(f.name for f in fields(Sampling))
OTHERS = ("preset", "max_tokens", "stop", "seed", "logit_bias")

Messages = str | Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Options(TypedDict, total=False):
    """What shapes an answer; whatever is left out is the checkpoint's choice. None is as if left out.

    preset: a name of `chat.presets`, whose values the next seven change
    max_tokens: of the answer, thinking included
    stop: strings that end the answer; they are not part of it
    seed: the same one gives the same answer   logit_bias: token id -> what to add to its logit
    """

    preset: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    max_tokens: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    logit_bias: Mapping[int, float] | None


def chat_request(
    messages: Messages, tools: Tools | None = None, think: bool | None = None, **options: Unpack[Options]
) -> ChatRequest:
    """messages: OpenAI form, or one question. Raises RequestError naming an option that does not exist or fit."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if think is not None and not isinstance(think, bool):
        raise RequestError(f"think is {think!r:.40}; it should be True, False, or None for the template's own choice.")
    return ChatRequest(messages, tools, think, **checked(options))


def text_request(prompt: str | Sequence[int], **options: Unpack[Options]) -> TextRequest:
    """prompt: text or token ids. Raises RequestError as `chat_request`."""
    ids = isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes, bytearray))
    if not isinstance(prompt, str) and not (ids and all(type(token) is int and token >= 0 for token in prompt)):
        raise RequestError("The prompt should be text or a list of token ids.")
    return TextRequest(prompt, **checked(options))


def check_names(options: Mapping[str, Any]) -> None:
    """Raises RequestError for what is no option of an answer. For mappings, before they become keywords of a call."""
    for name in options:
        if name not in SAMPLING and name not in OTHERS:
            if name in ("tools", "think"):
                raise RequestError(f"{name} is of a whole conversation, and no option of one answer or text.")
            near = difflib.get_close_matches(name, [*SAMPLING, *OTHERS, "tools", "think"], 1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join([*SAMPLING, *OTHERS])}."
            raise RequestError(f"There is no option {name[:40]!r}. {hint}")


def checked(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the fields of a request. Raises RequestError naming the first that is unknown or of a wrong type."""
    check_names(options)
    given = {name: value for name, value in options.items() if value is not None}
    for name in SAMPLING:
        if name in given:
            _check(name, _is_number(given[name]), "a number", given)
    for name in ("max_tokens", "seed"):
        if name in given:
            _check(name, type(given[name]) is int, "a whole number", given)
    if "preset" in given:
        _check("preset", isinstance(given["preset"], str), "a name", given)
    if "stop" in given:
        stops = [given["stop"]] if isinstance(given["stop"], str) else given["stop"]
        sound = isinstance(stops, Sequence) and all(isinstance(stop, str) for stop in stops)
        _check("stop", sound, "a string, or a list of them", given)
        given["stop"] = tuple(stops)
    if "logit_bias" in given:
        bias = given["logit_bias"]
        sound = isinstance(bias, Mapping) and all(type(k) is int and _is_number(v) for k, v in bias.items())
        _check("logit_bias", sound, "a mapping from token ids to numbers", given)
    sampling = {name: given.pop(name) for name in SAMPLING if name in given}
    return {**given, "sampling": sampling}


def _check(name: str, sound: bool, wanted: str, given: Mapping[str, Any]) -> None:
    if not sound:
        raise RequestError(f"{name} is {given[name]!r:.60}; it should be {wanted}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
