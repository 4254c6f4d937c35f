"""Samples to packed rows of token ids. Several samples share a row; `position` restarts at each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.demo_model.encoding import Encoded, encode
from examples.demo_model.samples import Sample


@dataclass(frozen=True)
class Batch:
    """All [B, T]. `weight` is the loss weight of predicting the token at its own place (not the next one)."""

    tokens: Tensor
    position: Tensor
    weight: Tensor

    def targets(self, ahead: int) -> tuple[Tensor, Tensor]:
        """The tokens `ahead` places later and their weights, zero where they belong to another sample."""
        tokens = self.tokens.roll(-ahead, 1)
        same = self.position.roll(-ahead, 1) == self.position + ahead
        same[:, -ahead:] = False
        return tokens, self.weight.roll(-ahead, 1) * same


def pack(samples: list[Encoded], rows: int, length: int, prompt_weight: float) -> tuple[Batch, int]:
    """First-fit packing of as many samples as go into rows x length; -> the batch and how many samples it took."""
    tokens = torch.zeros(rows, length, dtype=torch.long)
    position = torch.arange(length).repeat(rows, 1)  # padding is a sample of its own that weighs nothing
    weight = torch.zeros(rows, length)
    used, taken = [0] * rows, 0
    for sample in samples:
        row = next((r for r in range(rows) if used[r] + len(sample) <= length), None)
        if row is None:
            break
        start, middle, end = used[row], used[row] + len(sample.prompt), used[row] + len(sample)
        tokens[row, start:end] = torch.tensor(sample.prompt + sample.completion)
        position[row, start:end] = torch.arange(len(sample))
        position[row, end:] = torch.arange(length - end)
        weight[row, start:middle] = prompt_weight
        weight[row, middle:end] = 1.0
        used[row], taken = end, taken + 1
    return Batch(tokens, position, weight), taken


class Packer:
    """Draws samples and hands out full batches of one shape; a sample that did not fit opens the next batch."""

    def __init__(self, source: Iterator[Sample], rows: int, length: int):
        self.source, self.rows, self.length = source, rows, length
        self.drawn, self.waiting = 0, []

    def next(self, prompt_weight: float) -> Batch:
        while sum(map(len, self.waiting)) < self.rows * self.length:
            self.drawn += 1
            if len(sample := encode(next(self.source))) <= self.length:
                self.waiting.append(sample)
        batch, taken = pack(self.waiting, self.rows, self.length, prompt_weight)
        self.waiting = self.waiting[taken:]
        return batch


def pad(samples: list[Encoded], multiple: int = 64) -> Batch:
    """One sample per row, padded on the right: the form the evaluation uses."""
    longest = max(map(len, samples))
    return pack_each(samples, -(-longest // multiple) * multiple)


def pack_each(samples: list[Encoded], length: int) -> Batch:
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    weight = torch.zeros(len(samples), length)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample)] = torch.tensor(sample.prompt + sample.completion)
        weight[row, len(sample.prompt) : len(sample)] = 1.0
    return Batch(tokens, torch.arange(length).repeat(len(samples), 1), weight)
