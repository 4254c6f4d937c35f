"""`mlx-qwen35 kernels`: launches and bytes of a decoded token and of a prompt's window, stock mlx-lm beside ours.

A layer of each kind is what one more of it adds to a small network, so whatever layers share between them is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mlx_qwen35.convert.roles import place_of
from mlx_qwen35.counting.graph import record
from mlx_qwen35.counting.host import build_seconds
from mlx_qwen35.counting.launches import Tally, tally
from mlx_qwen35.counting.networks import Step, our_step
from mlx_qwen35.counting.stock import stock_step
from mlx_qwen35.errors import ConfigError
from mlx_qwen35.hub.family import FAMILY
from mlx_qwen35.models.config import FULL, LINEAR

SIZES = ("27b", "35b-a3b", "122b-a10b", "397b-a17b")
RECIPES = {"uniform": "uniform 4-bit", "balanced": "our default recipe"}
ENGINES: dict[str, Callable[..., Step]] = {"stock": stock_step, "ours": our_step}
CONTEXT, WINDOW = 1024, 512


@dataclass(frozen=True)
class Cost:
    """Of one step of a network. delta, attention: of a layer of that kind   total: of all layers, embedding and head

    minimum: bytes no implementation can do without   flops: of matrix products outside our kernels
    host: seconds to build the graph, None where it was not measured
    """

    delta: Tally
    attention: Tally
    launches: float
    nbytes: float
    minimum: float
    flops: float
    host: float | None = None


def cost(engine: str, size: str, recipe: str, tokens: int = 1, context: int = CONTEXT, timed: bool = False) -> Cost:
    """Count one step of `tokens` after a context. engine: a key of ENGINES; size: of FAMILY; recipe: of RECIPES"""
    make, entry = ENGINES[engine], FAMILY[size]

    def step(*kinds: str) -> Step:
        return make(size, kinds, recipe, tokens, context)

    def counted(*kinds: str) -> tuple[Tally, float]:
        """Launches and bytes, and the least bytes."""
        one = step(*kinds)
        graph = record(one.function, one.inputs, twin=step(*kinds).function)
        shares = {v.key: _share(name, one) for v, name in zip(graph.inputs, one.parameters)}
        return tally(graph, shares), _minimum(one)

    base, least = counted(LINEAR, FULL)
    (delta, least_delta), (attention, least_attention) = counted(LINEAR, LINEAR, FULL), counted(LINEAR, FULL, FULL)
    delta, attention = delta - base, attention - base
    more = (entry.linear_layers - 1, entry.full_layers - 1)
    group = (LINEAR, LINEAR, LINEAR, FULL)

    def whole(what: str) -> float:
        return getattr(base, what) + more[0] * getattr(delta, what) + more[1] * getattr(attention, what)

    minimum = least + more[0] * (least_delta - least) + more[1] * (least_attention - least)
    host = build_seconds(step(*group)) * entry.layers / len(group) if timed else None
    return Cost(delta, attention, whole("launches"), whole("nbytes"), minimum, whole("flops"), host)


def _share(name: str, step: Step) -> float:
    """The part of a parameter that a step reads: of experts, those that its tokens choose if they choose at random."""
    experts = step.config.experts
    if experts is None or not place_of(name).role.startswith("experts"):
        return 1.0
    return 1 - (1 - experts.chosen / experts.count) ** step.tokens


def _minimum(step: Step) -> float:
    """Bytes of the weights in use, of the recurrent state in and out, and of keys and values: each once."""
    config, total = step.config, 0.0
    for name, parameter in step.parameters.items():
        looked_up = place_of(name).role == "embedding" and not config.tie_embeddings
        rows = step.tokens / config.vocab_size if looked_up else 1
        # A prompt's window ends with its states; nobody asks for its logits.
        unused = place_of(name).role == "head" and step.tokens > 1
        total += 0 if unused else parameter.nbytes * rows * _share(name, step)
    pairs = 4 * config.num_kv_heads * config.head_dim * config.layer_types.count(FULL)
    return total + 2 * step.state_bytes + pairs * (step.context + 2 * step.tokens)


def decode_table(recipe: str, sizes: Sequence[str] = SIZES) -> str:
    """Markdown, a line for each size and engine."""
    lines = [
        "| model | graph | a DeltaNet layer | an attention layer | launches a token | of stock | GB a token "
        "| of the minimum | host, ms |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for size in sizes:
        costs = {engine: cost(engine, size, recipe, timed=True) for engine in ENGINES}
        for engine, c in costs.items():
            part = c.launches / costs["stock"].launches
            assert c.host is not None
            lines.append(
                f"| {size} | {engine} | {c.delta.launches:.0f} | {c.attention.launches:.0f} | {c.launches:,.0f} "
                f"| {part:.0%} | {c.nbytes / 1e9:.2f} | {c.nbytes / c.minimum:.2f} | {1000 * c.host:.1f} |"
            )
    return "\n".join(lines)


def prefill_table(recipe: str, sizes: Sequence[str] = SIZES) -> str:
    """Markdown: a prompt's first window of WINDOW tokens."""
    lines = [
        "| model | graph | a DeltaNet layer | an attention layer | launches | GB | of the minimum |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for size in sizes:
        for engine in ENGINES:
            c = cost(engine, size, recipe, WINDOW, 0)
            lines.append(
                f"| {size} | {engine} | {c.delta.launches:.0f} | {c.attention.launches:.0f} | {c.launches:,.0f} "
                f"| {c.nbytes / 1e9:.2f} | {c.nbytes / c.minimum:.2f} |"
            )
    return "\n".join(lines)


def parts_table(size: str, recipe: str = "uniform") -> str:
    """Markdown: what the launches of a decoded token's layers are."""
    costs = {engine: cost(engine, size, recipe) for engine in ENGINES}
    lines = ["| layer | graph | launches of |", "|---|---|---|"]
    for kind in ("delta", "attention"):
        for engine, c in costs.items():
            names = getattr(c, kind).names
            told = ", ".join(f"{n} {k:.0f}" for n, k in sorted(names.items(), key=lambda x: (-x[1], x[0])))
            lines.append(f"| {'DeltaNet' if kind == 'delta' else 'attention'} | {engine} | {told} |")
    return "\n".join(lines)


def print_report(sizes: Sequence[str] = SIZES) -> None:
    """All tables, as Markdown. Raises ConfigError for a size that the family does not have."""
    if unknown := sorted(set(sizes) - set(FAMILY)):
        raise ConfigError(f"No size is called {unknown[0]!r}; known are {', '.join(FAMILY)}.")
    for recipe, name in RECIPES.items():
        print(f"### One decoded token, {name}, context {CONTEXT:,}\n\n{decode_table(recipe, sizes)}\n", flush=True)
    for recipe, name in RECIPES.items():
        print(f"### A prompt's first {WINDOW} tokens, {name}\n\n{prefill_table(recipe, sizes)}\n", flush=True)
    for size in sizes[:2]:  # one dense and one mixture tell it all
        print(f"### What the launches of a decoded token are, {size}, {RECIPES['uniform']}\n\n{parts_table(size)}\n")
