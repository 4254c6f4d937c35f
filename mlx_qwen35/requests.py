"""What may be asked of a model, as plain data. Knows nothing of how it is answered, and checks nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_qwen35.options import Draft


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What shapes any answer.

    preset: a name of `chat.presets`; by default the one that fits thinking on or off
    sampling: what to change of it, by the names of `options.Sampling`
    max_tokens: of the answer, thinking included; by default 32,768 or what the context has room for
    stop: strings that end the answer (in content, not in reasoning)
    response_format: OpenAI's: "json_schema", "json_object" or "text"   regex: that the whole answer matches
    choices: texts, one of which is the answer   grammar: of the answer, in llguidance's kind of Lark
    draft: tokens guessed ahead, as in `options.CacheOptions`, which None leaves it to
    logprobs: tell each token's log-probability, and of so many of the likeliest in its place, 0 to 20; None tells none
    """

    preset: str | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    response_format: Mapping[str, Any] | None = None
    regex: str | None = None
    choices: Sequence[str] | None = None
    grammar: str | None = None
    draft: Draft | None = None
    logprobs: int | None = None


@dataclass(frozen=True)
class ChatRequest(Asked):
    """One question to the model, with the conversation before it.

    messages: OpenAI form, `{"role": ..., "content": ...}`   tools: OpenAI form
    enable_thinking: None leaves it to the checkpoint's template
    thinking_budget: tokens of thinking, after which the block is closed; 0 is thinking off
    reasoning_effort: a name of `chat.constraints.EFFORTS`, which stands for a budget
    tool_choice: "auto", "none", "required", or the one tool to call, in OpenAI's form
    parallel_tool_calls: whether one answer may make several calls
    fold_at: tokens of prompt beyond which older turns are summarised, see chat/folding.py; None never does
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    enable_thinking: bool | None = None
    fold_at: int | None = None
    thinking_budget: int | None = None
    reasoning_effort: str | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True


@dataclass(frozen=True)
class TextRequest(Asked):
    """A text to go on with, as it stands: no template, no parsing.

    prompt: text, or token ids
    """

    prompt: str | Sequence[int]
