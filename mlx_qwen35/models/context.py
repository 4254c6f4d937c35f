"""Contexts beyond the one a checkpoint was trained with: YaRN, decided when it is loaded.

Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models" (arXiv 2309.00071). The model cards
give factor 2 for 524,288 tokens and 4 for 1,010,000, over 262,144, and advise it only where it is needed: the same
stretch applies to short texts. The MTP layer turns by the same angles as the trunk.
"""

from __future__ import annotations

from dataclasses import replace

from mlx_qwen35.errors import ConfigError
from mlx_qwen35.models.config import ModelConfig
from mlx_qwen35.options import USUAL_CONTEXT

LARGEST_FACTOR = 4


def native_context(config: ModelConfig) -> int:
    """Tokens that the checkpoint was trained with, before any stretch of its own."""
    return config.rotary.original_context or config.max_context


def with_context(config: ModelConfig, context: int) -> ModelConfig:
    """The config for texts of up to `context` tokens: as it is where those fit, else with YaRN.

    Raises ConfigError, one line, for more than LARGEST_FACTOR times the native context.
    """
    # The usual context is what memory is planned for where nobody asks; it stretches no model that holds less.
    if context <= max(config.max_context, USUAL_CONTEXT):
        return config
    native, factor = native_context(config), 2
    while factor * native < context:
        factor *= 2
    if factor > LARGEST_FACTOR:
        raise ConfigError(
            f"A context of {context:,} tokens is more than {LARGEST_FACTOR} times the {native:,} this model was "
            f"trained with, which is as far as YaRN takes it; ask for {LARGEST_FACTOR * native:,} or less."
        )
    note = f"YaRN stretches the context of {native:,} tokens by {factor}; it changes short texts a little, too."
    rotary = replace(config.rotary, factor=float(factor), original_context=native, attention_factor=None)
    return replace(config, rotary=rotary, max_context=context, notes=(*config.notes, note))


def room(config: ModelConfig) -> str:
    """How much a text may hold, in words that end a line of refusal."""
    most = LARGEST_FACTOR * native_context(config)
    more = f"; --context N loads it with YaRN for up to {most:,}" if config.max_context < most else ""
    return f"this model's context holds {config.max_context:,}, the answer included{more}"
