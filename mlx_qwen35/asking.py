"""The keyword options of the Python API, checked and made into requests. Knows nothing of how they are answered."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypedDict, Unpack

from mlx_qwen35.chat.constraints import answer_form, thinking
from mlx_qwen35.errors import RequestError
from mlx_qwen35.options import DRAFT_VALUES, Draft, Sampling, is_draft
from mlx_qwen35.runtime import ChatRequest, TextRequest

SAMPLING = tuple(f.name for f in fields(Sampling))
FORMS = ("response_format", "schema", "regex", "choices", "grammar")
OF_CHATS = ("thinking_budget", "reasoning_effort", "tool_choice", "parallel_tool_calls", "fold_at")
OTHERS = ("preset", "max_tokens", "stop", "seed", "logit_bias", "logprobs", "draft", *FORMS, *OF_CHATS)

Messages = str | Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class Options(TypedDict, total=False):
    """What shapes an answer; whatever is left out is the checkpoint's choice. None is as if left out.

    preset: a name of `chat.presets`, whose values the next seven change
    max_tokens: of the answer, thinking included
    stop: strings that end the answer; they are not part of it
    seed: the same one gives the same answer   logit_bias: token id -> what to add to its logit
    logprobs: tell each token's log-probability, and of so many of the likeliest in its place, 0 to 20: `Reply.logprobs`
    draft: tokens guessed ahead: "auto", "off", or 1 to 4; costs or saves time and changes nothing else

    Of the answer's form, one of these; thinking stays free:
    response_format: OpenAI's   schema: a JSON schema, a shorter word for it   regex: that the whole answer matches
    choices: texts, one of which is the answer   grammar: in llguidance's kind of Lark

    Of chats alone:
    thinking_budget: tokens after which thinking is brought to its end; 0 switches it off
    reasoning_effort: "none", "minimal" (256), "low" (1,024), "medium" (4,096), "high" (16,384 tokens), "xhigh"
    tool_choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}
    parallel_tool_calls: False for one call an answer at most
    fold_at: tokens of prompt beyond which older turns become a summary that the model writes (see chat/folding.py)
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
    logprobs: int | None
    response_format: Mapping[str, Any] | None
    schema: Mapping[str, Any] | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None
    thinking_budget: int | None
    reasoning_effort: str | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    fold_at: int | None
    draft: Draft | None


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
    if of_chats := [name for name in OF_CHATS if options.get(name) is not None]:
        raise RequestError(f"{of_chats[0]} is of a conversation, and no option of a text to go on with.")
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
    for name in ("max_tokens", "seed", "fold_at", "logprobs"):
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
    if "parallel_tool_calls" in given:
        _check("parallel_tool_calls", isinstance(given["parallel_tool_calls"], bool), "True or False", given)
    if "schema" in given:
        _check("schema", "response_format" not in given, "given without response_format", given)
        given["response_format"] = {"type": "json_schema", "json_schema": {"schema": given.pop("schema")}}
    forms = ("response_format", "regex", "choices", "grammar")
    answer_form(*(given.get(name) for name in forms))
    thinking(None, given.get("thinking_budget"), given.get("reasoning_effort"))
    if "draft" in given:
        _check("draft", is_draft(given["draft"]), DRAFT_VALUES, given)
    sampling = {name: given.pop(name) for name in SAMPLING if name in given}
    return {**given, "sampling": sampling}


def _check(name: str, sound: bool, wanted: str, given: Mapping[str, Any]) -> None:
    if not sound:
        raise RequestError(f"{name} is {given[name]!r:.60}; it should be {wanted}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
