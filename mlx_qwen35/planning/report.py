"""`mlx-qwen35 plan`: what fits this machine and other Macs, and the limits of speed there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mlx_qwen35.columns import aligned
from mlx_qwen35.convert.sizing import USABLE
from mlx_qwen35.counting.report import WINDOW, cost
from mlx_qwen35.hub.family import FamilyEntry
from mlx_qwen35.hub.machine import GIB, MACS, Machine
from mlx_qwen35.hub.memory import MemoryPlan
from mlx_qwen35.planning.chips import CHIPS, Chip, label
from mlx_qwen35.planning.fitting import longest_context, mac, plan_of
from mlx_qwen35.planning.roofline import ASSUMPTIONS, limits
from mlx_qwen35.planning.subject import Subject

PROMPTS = (512, 8_192, 32_768, 131_072)
COUNTED = ("27b", "35b-a3b", "122b-a10b", "397b-a17b")


@dataclass(frozen=True)
class Question:
    """What is planned. subjects: the same network at several precisions, or one checkpoint   chip: of this machine"""

    title: str
    subjects: Sequence[Subject]
    entry: FamilyEntry | None
    machine: Machine
    chip: Chip | None
    context: int
    batch: int
    kv_bits: int
    on_metal: bool

    def plan(self, subject: Subject, machine: Machine) -> MemoryPlan:
        return plan_of(subject, machine, self.context, self.batch, self.kv_bits, self.title)

    def speed(self, subject: Subject, chip: Chip) -> float:
        return limits(subject, chip, self.context, self.batch, self.kv_bits).decode


def lines_of(question: Question) -> list[str]:
    """This machine, then other Macs."""
    q = question
    sequences = f"{q.batch} sequences of " if q.batch > 1 else ""
    head = f"{q.title}, {sequences}{q.context:,} tokens of context, KV cache in {q.kv_bits} bits"
    return [head, "", *_here(q), "", *_macs(q)]


def _here(q: Question) -> list[str]:
    first = q.plan(q.subjects[0], q.machine)
    parts = [row.name for row in first.rows if row.name != "weights"]
    speed_heading = ["limit, tokens/s"] if q.chip else []
    rows: list[Sequence[str]] = [("GiB", "weights", *parts, "needed", "fits here", *speed_heading)]
    for subject in q.subjects:
        plan = q.plan(subject, q.machine)
        sizes = {row.name: row.nbytes for row in plan.rows}
        speed = [_speed(q.speed(subject, q.chip))] if q.chip else []
        figures = [_gib(sizes[name]) for name in ("weights", *parts)]
        rows.append((subject.label, *figures, _gib(plan.total), "yes" if plan.fits else "no", *speed))
    chip = f"Apple {label(q.chip)}" if q.chip else "no Apple chip"
    where = (
        f"This machine: {chip}, {_gib(q.machine.total)} GiB, {_gib(q.machine.budget)} for a model ({q.machine.note})."
    )
    metal = (
        [] if q.on_metal else ["Counted as on Metal; without it, as here, all is computed in float32 and needs more."]
    )
    return [where, *metal, *aligned(rows, right=range(1, len(rows[0])))]


def _macs(q: Question) -> list[str]:
    rows = [("Mac with", *(subject.label for subject in q.subjects))]
    for memory in MACS:
        longest = [longest_context(subject, mac(memory), q.batch, q.kv_bits) for subject in q.subjects]
        if any(longest):
            rows.append((f"{memory} GB", *(f"{context:,}" if context else "-" for context in longest)))
    told = f"The longest context that fits, with {USABLE:.0%} of memory for the GPU (beyond 262,144 with YaRN):"
    if len(rows) == 1:
        return [f"It fits no Mac, of up to {MACS[-1]} GB, at any context."]
    return [told, *aligned(rows, right=range(1, len(rows[0])))]


def roofline_of(question: Question) -> list[str]:
    """Every chip: the bound of decoding at each precision, and of prompts; then what our kernels move and compute."""
    q = question
    rows = [("chip", "GB/s", *(subject.label for subject in q.subjects), *(f"{n:,}" for n in PROMPTS))]
    for chip in CHIPS:
        # The GPU is what computes; which precision the weights are stored in does not matter to a prompt.
        prompts = [limits(q.subjects[0], chip, n).prefill for n in PROMPTS]
        fits = [q.plan(subject, mac(chip.memories[-1])).fits for subject in q.subjects]
        decode = [_speed(q.speed(s, chip)) if fit else "-" for s, fit in zip(q.subjects, fits)]
        rows.append((label(chip), f"{chip.gigabytes:.0f}", *decode, *(f"{p:,.0f}" for p in prompts)))
    told = (
        f"Limits, tokens a second: decoding at {q.context:,} tokens (where the chip comes with the memory), then "
        "prompts of so many tokens."
    )
    return [told, *aligned(rows, right=range(1, len(rows[0]))), "", f"Assumed: {ASSUMPTIONS}", *_counted(q)]


def _counted(q: Question) -> list[str]:
    if q.entry is None or q.entry.short not in COUNTED:
        return []
    token, window = (cost("ours", q.entry.short, "uniform", *how) for how in ((1, q.context), (WINDOW, 0)))
    return [
        f"Counted for our kernels at 4 bits: a token {token.launches:,.0f} launches and {token.nbytes / 1e9:.2f} GB "
        f"({token.nbytes / token.minimum:.2f} of the least); a prompt's first {WINDOW} tokens {window.launches:,.0f} "
        f"launches, {window.nbytes / 1e9:.1f} GB, {window.flops / WINDOW / 1e9:.2f} GFLOP a token in matrix products."
    ]


def data_of(question: Question) -> dict[str, Any]:
    """The same for machines; bytes, and tokens a second."""
    q = question
    return {
        "model": q.title,
        "context": q.context,
        "batch": q.batch,
        "kv_bits": q.kv_bits,
        "machine": {"chip": q.chip and label(q.chip), "total": q.machine.total, "for_a_model": q.machine.budget},
        "plans": [_plan_data(q, subject) for subject in q.subjects],
        "longest_context": {
            str(memory): {s.label: longest_context(s, mac(memory), q.batch, q.kv_bits) for s in q.subjects}
            for memory in MACS
        },
        "limits": {
            label(chip): {s.label: round(q.speed(s, chip), 1) for s in q.subjects}
            | {f"prompt {n}": round(limits(q.subjects[0], chip, n).prefill) for n in PROMPTS}
            for chip in CHIPS
        },
    }


def _plan_data(q: Question, subject: Subject) -> dict[str, Any]:
    plan = q.plan(subject, q.machine)
    return {
        "weights_are": subject.label,
        "bytes": {row.name: row.nbytes for row in plan.rows} | {"needed": plan.total},
        "fits": plan.fits,
        "limit_tokens_per_second": round(q.speed(subject, q.chip), 1) if q.chip else None,
    }


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 9.995 * GIB else f"{size / GIB:,.1f}"


def _speed(tokens: float) -> str:
    return f"{tokens:,.0f}" if tokens >= 100 else f"{tokens:.1f}"
