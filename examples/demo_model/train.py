"""Trains the demo model on the CPU, resumable at any time.

    python -m examples.demo_model.train --run DIR

DIR keeps the state (written every ten minutes and at the end) and log.txt; `touch DIR/stop` ends the run in good order.
recipe.json is read again whenever it changes, so that the mixture can follow what lags; its phases, by step, are the
record of what was done. One process with one thread per rank: on a shared machine, threads that wait for each other at
every operation lose three quarters of their time, ranks that meet once a step lose little.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from examples.demo_model.batches import Batch, Packer
from examples.demo_model.mixture import SHARES, long_sample, short_sample
from examples.demo_model.network import DemoConfig, DemoModel
from examples.demo_model.optimizer import optimizers
from examples.demo_model.scoring import score_all

RECIPE = Path(__file__).with_name("recipe.json")
SHORT, LONG = (6, 384), (2, 1344)  # rows of one rank, tokens per row
SAVE_SECONDS = 600


class Recipe:
    """recipe.json as of now: learning rate and mixture by step."""

    def __init__(self) -> None:
        self.read_at, self.values = 0.0, {}
        self.refresh()

    def refresh(self) -> None:
        changed = RECIPE.stat().st_mtime
        if changed != self.read_at:
            try:
                self.values, self.read_at = json.loads(RECIPE.read_text()), changed
            except json.JSONDecodeError:
                return  # caught in the middle of an edit; the next step reads it again

    def phase(self, step: int) -> dict:
        return [p for p in self.values["phases"] if p["from_step"] <= step][-1]

    def rate(self, step: int) -> float:
        """The learning rate's factor: straight lines through the recipe's points, constant after the last."""
        points = self.values["rate"]
        for (left, low), (right, high) in pairwise(points):
            if left <= step < right:
                return low + (high - low) * (step + 1 - left) / (right - left)
        return points[-1][1]


def weighted_loss(model: DemoModel, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Mean cross entropy; logits are computed only where something is to be learned."""
    where = weight > 0
    losses = F.cross_entropy(model.logits(hidden[where]), targets[where], reduction="none")
    return (losses * weight[where]).sum() / weight.sum()


def losses(model: DemoModel, batch: Batch, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """-> loss of the next token, of the MTP layer's token after next, and of the router's balance.

    Long rows are too rare to be worth a compilation of their own.
    """
    chunk, compiled = (32, True) if kind == "short" else (64, False)
    hidden, drafted, balance = model(batch.tokens, batch.position, chunk, compiled)
    main = weighted_loss(model, hidden, *batch.targets(1))
    return main, weighted_loss(model, drafted, *batch.targets(2)), balance


def share_gradients(model: DemoModel, stop: bool) -> bool:
    """Averages the gradients over the ranks; -> whether any rank saw the stop file."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([float(stop)])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for g, mean in zip(grads, flat[:-1].split([g.numel() for g in grads])):
        g.copy_(mean.view_as(g))
    return bool(flat[-1] > 0)


class Run:
    def __init__(self, folder: Path, rank: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self.rank = rank
        self.folder, self.recipe = folder, Recipe()
        seed = self.recipe.values["seed"]
        torch.manual_seed(seed)
        self.model = DemoModel(DemoConfig())
        self.optimizers = optimizers(self.model, self.recipe.values["muon_lr"], self.recipe.values["adam_lr"])
        self.step, self.tokens, self.drawn, self.stopping = 0, 0, {"short": 0, "long": 0}, False
        if (folder / "state.pt").exists():
            self.load()
        self.packers = {
            "short": Packer(self.samples("short", seed), *SHORT),
            "long": Packer(self.samples("long", seed), *LONG),
        }

    def samples(self, kind: str, seed: int):
        """Sample number i of a kind depends on the seed, the rank, i and the phase."""
        while True:
            random = Random(f"{seed}/{kind}/{self.rank}/{self.drawn[kind]}")
            self.drawn[kind] += 1
            phase = self.recipe.phase(self.step)
            if kind == "short":
                yield short_sample(random, {**SHARES, **phase["shares"]})
            else:
                yield long_sample(random, phase["longest"])

    def save(self) -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "tokens": self.tokens,
            "drawn": self.drawn,
        }
        torch.save(state, self.folder / "state.part")
        os.replace(self.folder / "state.part", self.folder / "state.pt")

    def load(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.drawn = state["step"], state["tokens"], state["drawn"]

    def log(self, text: str) -> None:
        if self.rank:
            return
        line = f"{time.strftime('%H:%M:%S')} step {self.step} {text}"
        print(line, flush=True)
        with open(self.folder / "log.txt", "a") as file:
            file.write(line + "\n")

    def train_step(self) -> tuple[str, float, float]:
        self.recipe.refresh()
        values, phase = self.recipe.values, self.recipe.phase(self.step)
        long = phase["long_every"] and self.step % phase["long_every"] == phase["long_every"] - 1
        kind = "long" if long else "short"
        batch = self.packers[kind].next(phase["prompt_weight"])
        main, draft, balance = losses(self.model, batch, kind)
        (main + values["mtp_weight"] * draft + values["balance_weight"] * balance).backward()
        self.stopping = share_gradients(self.model, (self.folder / "stop").exists())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.recipe.rate(self.step)
        for optimizer, base in zip(self.optimizers, (values["muon_lr"], values["adam_lr"])):
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens.numel() * dist.get_world_size()
        return kind, main.item(), draft.item()


def train(run: Run, until: int, evaluate_every: int) -> None:
    saved, started, tokens = time.time(), time.time(), run.tokens
    recent: dict[str, list[tuple[float, float]]] = {"short": [], "long": []}
    while run.step < until and not run.stopping:
        kind, main, draft = run.train_step()
        recent[kind].append((main, draft))
        if run.step % 20 == 0:
            means = {k: [sum(x) / len(v) for x in zip(*v)] for k, v in recent.items() if v}
            shown = " ".join(f"{k} {m[0]:.3f} mtp {m[1]:.3f}" for k, m in means.items())
            speed = (run.tokens - tokens) / (time.time() - started)
            run.log(f"{shown} | {run.tokens / 1e6:.2f}M tokens, {speed:.0f}/s, rate {run.recipe.rate(run.step):.2f}")
            recent, started, tokens = {"short": [], "long": []}, time.time(), run.tokens
        if run.step % evaluate_every == 0 and run.rank == 0:
            run.log("eval " + score_all(run.model, count=40))
            started, tokens = time.time(), run.tokens
        if time.time() - saved > SAVE_SECONDS:
            run.save()
            saved = time.time()


def work(rank: int, arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{arguments.run.resolve()}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=arguments.ranks)
    run = Run(arguments.run, rank)
    if not arguments.no_compile:
        run.model.compile_layers()
        if rank == 0:
            main, draft, _ = losses(run.model, run.packers["short"].next(0.1), "short")
            (main + draft).backward()
            run.model.zero_grad(set_to_none=True)
            run.log("compiled")
        dist.barrier()  # the other ranks find what the first has compiled
    train(run, arguments.until, arguments.evaluate_every)
    run.save()
    run.log("saved")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run's state")
    parser.add_argument("--until", type=int, default=1_000_000, help="stop at this step")
    parser.add_argument("--ranks", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--evaluate-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--no-compile", action="store_true", help="start at once, run about a third slower")
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    for left_over in ("rendezvous", "stop"):
        (arguments.run / left_over).unlink(missing_ok=True)
    mp.spawn(work, (arguments,), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
