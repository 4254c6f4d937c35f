"""The chunked delta rule against mlx-lm's loop over tokens, on the same inputs, in turn.

    python -m examples.benchmarks.delta_rule [--tokens 64 256 1024 4096] [--repeats 3]

Shapes of one DeltaNet layer of the 35B-A3B and 9B sizes: 16 key heads, 32 value heads of 128, float32. The loop keeps
every token's state until it is evaluated: 2.1 MB a token, 8.7 GB at 4,096.
"""

from __future__ import annotations

import argparse

import mlx.core as mx
from mlx_lm.models.gated_delta import gated_delta_ops

from examples.benchmarks.measure import in_turn, print_conditions, print_table
from mlx_qwen35.metal_kernels.delta_rule import gated_delta_chunked

KEY_HEADS, VALUE_HEADS, DIM = 16, 32, 128


def inputs(tokens: int) -> tuple[mx.array, ...]:
    """q, k, v, log_decay, beta and an incoming state, as the network makes them."""
    mx.random.seed(tokens)
    q, k = (mx.random.normal((1, tokens, KEY_HEADS, DIM)) for _ in range(2))
    q = q / mx.linalg.norm(q, axis=-1, keepdims=True) * DIM**-0.5
    k = k / mx.linalg.norm(k, axis=-1, keepdims=True)
    v = mx.random.normal((1, tokens, VALUE_HEADS, DIM))
    log_decay = mx.log(mx.random.uniform(0.5, 0.999, (1, tokens, VALUE_HEADS)))
    beta = mx.sigmoid(mx.random.normal((1, tokens, VALUE_HEADS)))
    state = mx.random.normal((1, VALUE_HEADS, DIM, DIM))
    mx.eval(q, k, v, log_decay, beta, state)
    return q, k, v, log_decay, beta, state


def compare(tokens: int, repeats: int) -> tuple[str, ...]:
    """One line of the table."""
    q, k, v, log_decay, beta, state = inputs(tokens)
    decay = mx.exp(log_decay)
    mx.eval(decay)

    def chunked() -> tuple[mx.array, mx.array]:
        return gated_delta_chunked(q, k, v, log_decay, beta, state)

    def loop() -> tuple[mx.array, mx.array]:
        return gated_delta_ops(q, k, v, decay, beta, state)

    differences = [mx.abs(a - b).max() / mx.abs(b).max() for a, b in zip(chunked(), loop())]
    worst = mx.max(mx.stack(differences))
    mx.eval(worst)
    differences.clear()  # else the loop's states stay alive
    times = in_turn({"chunked": chunked, "loop": loop}, repeats)
    ours, theirs = times["chunked"], times["loop"]
    return (
        f"{tokens:,}",
        f"{theirs.cpu_seconds:.3f}",
        f"{ours.cpu_seconds:.3f}",
        f"{theirs.cpu_seconds / ours.cpu_seconds:.1f}x",
        f"{theirs.wall_seconds / ours.wall_seconds:.1f}x",
        f"{theirs.peak_bytes / 1e6:,.0f}",
        f"{ours.peak_bytes / 1e6:,.0f}",
        f"1/{theirs.peak_bytes / ours.peak_bytes:.1f}",
        f"{worst.item():.0e}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 256, 1024, 4096], help="window lengths")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    args = parser.parse_args()
    print_conditions("examples.benchmarks.delta_rule")
    head = ("tokens", "loop CPU s", "chunked", "faster", "by wall", "loop peak MB", "chunked", "ratio", "differ by")
    print_table(head, [compare(tokens, args.repeats) for tokens in args.tokens])


if __name__ == "__main__":
    main()
