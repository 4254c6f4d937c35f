"""Two ways to commit a part of a verified window: keep every position's state, or replay the accepted inputs.

    python -m examples.benchmarks.draft_window

One DeltaNet layer of 35B-A3B shape. CPU seconds, A B A B, medians; bytes are what each way keeps beside the state.
"""

from __future__ import annotations

import mlx.core as mx

from examples.benchmarks.measure import in_turn
from mlx_qwen35.caches.delta_state import Moved
from mlx_qwen35.metal_kernels.delta_rows import DeltaMemory, HeldWindow
from mlx_qwen35.metal_kernels.delta_rule import gated_delta_step, gated_delta_stepwise

HK, HV, DK, DV = 16, 32, 128, 128


def main() -> None:
    mx.set_default_device(mx.cpu)
    for tokens in (2, 4, 8):
        q, k, v, log_decay, beta, state = _inputs(tokens)
        window = HeldWindow(*(x[0] for x in (k, v, log_decay, beta)))
        held = Moved(DeltaMemory(mx.zeros((tokens + 3, 8192)), state, window), (tokens,))
        kept = tokens // 2

        def states(q=q, k=k, v=v, log_decay=log_decay, beta=beta, state=state, kept=kept):
            q, k = mx.repeat(q, HV // HK, axis=2), mx.repeat(k, HV // HK, axis=2)
            outputs, after = [], []
            for t in range(q.shape[1]):
                out, state = gated_delta_step(q[:, t], k[:, t], v[:, t], mx.exp(log_decay[:, t]), beta[:, t], state)
                outputs.append(out)
                after.append(state)
            mx.eval(outputs, after)
            return after[kept - 1]

        def replay(q=q, k=k, v=v, log_decay=log_decay, beta=beta, state=state, held=held, kept=kept):
            mx.eval(gated_delta_stepwise(q, k, v, log_decay, beta, state)[0])
            return held.settled(0, 1, kept)[1]

        timings = in_turn({"states": states, "replay": replay}, repeats=7)
        held_bytes = sum(a.nbytes for a in (k, v, log_decay, beta))
        a, b = timings["states"], timings["replay"]
        print(
            f"window {tokens}, {kept} kept: every state {a.cpu_seconds * 1e3:.1f} ms, "
            f"{tokens * state.nbytes >> 10:,} KiB written; replay {b.cpu_seconds * 1e3:.1f} ms, "
            f"{held_bytes >> 10:,} KiB held and one state ({state.nbytes >> 10:,} KiB) written; "
            f"peak {a.peak_bytes / b.peak_bytes:.1f} to 1"
        )


def _inputs(tokens: int) -> tuple[mx.array, ...]:
    mx.random.seed(0)
    q, k = (mx.random.normal((1, tokens, HK, DK)) * DK**-0.5 for _ in range(2))
    v = mx.random.normal((1, tokens, HV, DV))
    log_decay, beta = -mx.random.uniform(shape=(1, tokens, HV)), mx.random.uniform(shape=(1, tokens, HV))
    made = (q, k, v, log_decay, beta, mx.random.normal((1, HV, DV, DK)))
    mx.eval(made)
    return made


if __name__ == "__main__":
    main()
