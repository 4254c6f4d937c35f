"""Muon for the matrices, AdamW for the rest. Muon reaches a given loss in about half the tokens at this size."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalize(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrix, for a stack g [N, R, S]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, then an orthogonal step. Parameters of three dimensions are stacks of matrices."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            stacks: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"])
                stacks[update.shape[-2:]].append((p, update.view(-1, *update.shape[-2:])))
            for (rows, columns), members in stacks.items():
                steps = orthogonalize(torch.cat([u for _, u in members]))
                steps *= max(1.0, rows / columns) ** 0.5
                parts = steps.split([len(u) for _, u in members])
                for (p, _), step in zip(members, parts):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(step.view_as(p), alpha=-group["lr"])


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Embeddings, routers, convolutions and everything of one dimension go to AdamW."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        small = p.ndim < 2 or min(p.shape[-2:]) < 32 or "embed_tokens" in name or name.endswith("mlp.gate.weight")
        (rest if small else matrices).append(p)
    return [
        Muon(matrices, lr=muon_lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
