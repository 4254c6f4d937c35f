"""Samples to token ids, with the demo's own tokenizer. Knows nothing of batches or tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer

from examples.demo_model.samples import CHECKPOINT, Sample, render_completion, render_prompt


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


@dataclass(frozen=True)
class Encoded:
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def encode(sample: Sample) -> Encoded:
    prompt = tokenizer().encode(render_prompt(sample), add_special_tokens=False).ids
    return Encoded(prompt, tokenizer().encode(render_completion(sample), add_special_tokens=False).ids)
