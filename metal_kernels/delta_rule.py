"""The gated delta rule: its one-token definition, and the chunked form that prefill uses. Plain mx, runs anywhere.

Yang, Kautz, Hatamizadeh: "Gated Delta Networks: Improving Mamba2 with Delta Rule" (arXiv 2412.06464);
the chunked WY form follows Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence
Length" (arXiv 2406.06484).

Letters: B batch, T tokens, Hk/Hv key/value heads, R = Hv / Hk value heads a key head, Dk/Dv widths,
N chunks, C tokens a chunk. Value head h reads key head h // R.
"""

from __future__ import annotations

import functools

import mlx.core as mx

CHUNK = 32  # measured on CPU: 16 and 32 are level, 64 and more are slower
STEPWISE = 4  # windows up to this many tokens go token by token: a chunk would compute mostly padding
SEGMENT = 1024  # tokens prepared at once; bounds the memory of a long window


def gated_delta_step(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One token of the gated delta rule: the definition every faster path is tested against.

    q, k: [B, H, Dk]   v: [B, H, Dv]   decay, beta: [B, H]   state: [B, H, Dv, Dk], float32
    -> output [B, H, Dv], state
    """
    state = state * decay[..., None, None]
    recalled = (state * k[..., None, :]).sum(-1)  # [B, H, Dv]
    correction = beta[..., None] * (v - recalled)
    state = state + correction[..., None] * k[..., None, :]
    return (state * q[..., None, :]).sum(-1), state


def gated_delta(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[mx.array, mx.array]:
    """A window of any length.

    q, k: [B, T, Hk, Dk], normalised, q scaled   v: [B, T, Hv, Dv]   log_decay (<= 0), beta: [B, T, Hv]
    state: [B, Hv, Dv, Dk] or None for a fresh one   all float32
    -> output [B, T, Hv, Dv], state after the window
    """
    if q.shape[1] <= STEPWISE:
        # On Metal the definition, which every fast form there is measured against.
        short = gated_delta_stepwise if mx.metal.is_available() else gated_delta_products
        return short(q, k, v, log_decay, beta, state)
    return gated_delta_chunked(q, k, v, log_decay, beta, state)


def gated_delta_stepwise(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The definition, token by token. Shapes as in `gated_delta`."""
    R = v.shape[2] // k.shape[2]
    state = _fresh_state(q, v) if state is None else state
    q, k = mx.repeat(q, R, axis=2), mx.repeat(k, R, axis=2)
    decay = mx.exp(log_decay)
    outputs = []
    for t in range(q.shape[1]):
        output, state = gated_delta_step(q[:, t], k[:, t], v[:, t], decay[:, t], beta[:, t], state)
        outputs.append(output)
    return mx.stack(outputs, axis=1), state


def gated_delta_products(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[mx.array, mx.array]:
    """The same by matrix products, for CPUs: half of the operations, and half of the passes over the state.

    A token's numbers do not depend on how many there are. Shapes as in `gated_delta`.
    """
    state = _fresh_state(q, v) if state is None else state
    decay = mx.exp(log_decay)
    if (T := q.shape[1]) == 1:
        return _product_step(q, k, v, decay, beta, state)
    outputs = []
    for parts in zip(*[mx.split(x, T, axis=1) for x in (q, k, v, decay, beta)]):
        output, state = _product_step(*parts, state=state)
        outputs.append(output)
    return mx.concatenate(outputs, axis=1), state


def _product_step(
    q: mx.array, k: mx.array, v: mx.array, decay: mx.array, beta: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    """One token, T = 1. The states of value heads that share a key head are the rows of one matrix."""
    (B, _, Hk, Dk), (Hv, Dv) = q.shape, v.shape[2:]
    decayed = (state * decay.reshape(B, Hv, 1, 1)).reshape(B, Hk, -1, Dk)
    recalled = (decayed @ k.reshape(B, Hk, Dk, 1)).reshape(B, Hv, Dv, 1)
    correction = (v.reshape(B, Hv, Dv, 1) - recalled) * beta.reshape(B, Hv, 1, 1)
    after = mx.addmm(decayed, correction.reshape(B, Hk, -1, 1), k.reshape(B, Hk, 1, Dk))
    output = (after @ q.reshape(B, Hk, Dk, 1)).reshape(B, 1, Hv, Dv)
    return output, after.reshape(B, Hv, Dv, Dk)


def gated_delta_chunked(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    log_decay: mx.array,
    beta: mx.array,
    state: mx.array | None,
    chunk: int = CHUNK,
) -> tuple[mx.array, mx.array]:
    """The chunked (WY) form: matmuls inside chunks, a scan over chunks. Any length, differentiable.

    Shapes as in `gated_delta`. Work that does not depend on the state is batched over all chunks of a segment.
    """
    state = _fresh_state(q, v) if state is None else state
    outputs = []
    for start in range(0, q.shape[1], SEGMENT):
        window = slice(start, start + SEGMENT)
        output, state = _segment(
            q[:, window], k[:, window], v[:, window], log_decay[:, window], beta[:, window], state, chunk
        )
        outputs.append(output)
    return (outputs[0] if len(outputs) == 1 else mx.concatenate(outputs, axis=1)), state


def gated_delta_mx(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array | None
) -> tuple[mx.array, mx.array]:
    """MLX's own kernels, where it has them for these shapes. Shapes as in `gated_delta`."""
    state = _fresh_state(q, v) if state is None else state
    output, state = mx.fast.gated_delta_update(q, k, v, mx.exp(log_decay), beta, state)
    return output, state


def _fresh_state(q: mx.array, v: mx.array) -> mx.array:
    return mx.zeros((q.shape[0], v.shape[2], v.shape[3], q.shape[3]), mx.float32)


def _segment(
    q: mx.array, k: mx.array, v: mx.array, log_decay: mx.array, beta: mx.array, state: mx.array, chunk: int
) -> tuple[mx.array, mx.array]:
    B, T, Hk, Dk = q.shape
    Hv, Dv = v.shape[2:]
    R = Hv // Hk
    C = chunk
    # [B, Hk, R, N, C, ...]; q and k have R = 1. A tail padded with zeros leaves the state as it is:
    # beta = 0 writes nothing and log decay 0 forgets nothing.
    q, k = _chunks(q, Hk, 1, C), _chunks(k, Hk, 1, C)
    v = _chunks(v, Hk, R, C)
    beta = _chunks(beta[..., None], Hk, R, C)  # [B, Hk, R, N, C, 1]
    gamma = mx.cumsum(_chunks(log_decay[..., None], Hk, R, C), axis=-2)

    lower, strictly_lower = _triangles(C)
    # Form the difference, mask, then exp: exp(-gamma) alone overflows.
    D = mx.exp(mx.where(lower, gamma - gamma.swapaxes(-1, -2), -mx.inf))  # [B, Hk, R, N, C, C]
    kT = k.swapaxes(-1, -2)
    A = mx.where(strictly_lower, (k @ kT) * D * beta, 0)
    inverse = unit_lower_inverse(A)
    decay_in = mx.exp(gamma)  # from the start of the chunk up to each token
    U = inverse @ (beta * v)  # [B, Hk, R, N, C, Dv]
    W = inverse @ (beta * decay_in * k)  # [B, Hk, R, N, C, Dk]
    read = mx.concatenate([W, decay_in * q], axis=-2)  # rows that read the incoming state: [.., 2C, Dk]
    scores = (q @ kT) * D
    last = gamma[..., -1:, :]
    write = mx.exp(last - gamma) * k  # [B, Hk, R, N, C, Dk]
    carry = mx.exp(last)  # [B, Hk, R, N, 1, 1]

    S = state.reshape(B, Hk, R, Dv, Dk)
    corrected, from_state = [], []
    for n in range(v.shape[3]):
        reads = read[:, :, :, n] @ S.swapaxes(-1, -2)  # [B, Hk, R, 2C, Dv]
        values = U[:, :, :, n] - reads[..., :C, :]
        S = carry[:, :, :, n] * S + values.swapaxes(-1, -2) @ write[:, :, :, n]
        corrected.append(values)
        from_state.append(reads[..., C:, :])
    output = mx.stack(from_state, axis=3) + scores @ mx.stack(corrected, axis=3)
    output = output.reshape(B, Hv, -1, Dv)[:, :, :T].swapaxes(1, 2)
    return output, S.reshape(B, Hv, Dv, Dk)


def _chunks(x: mx.array, Hk: int, R: int, C: int) -> mx.array:
    """[B, T, Hk * R, D] -> [B, Hk, R, N, C, D], the tail padded with zeros."""
    B, T, _, D = x.shape
    if pad := -T % C:
        x = mx.pad(x, [(0, 0), (0, pad), (0, 0), (0, 0)])
    return x.swapaxes(1, 2).reshape(B, Hk, R, -1, C, D)


def unit_lower_inverse(A: mx.array) -> mx.array:
    """(I + A)^-1 for strictly lower triangular A [..., C, C], C a power of two, by doubling diagonal blocks.

    With X the inverse of the block diagonal, [[a, 0], [b, c]]^-1 = [[a', 0], [-c' b a', c']] reads X - X b X for
    all blocks at once. The Neumann product needs fewer matmuls and is not used: for equal keys its terms
    grow to 1e8 and cancel, while every matrix here is a true inverse.
    """
    C = A.shape[-1]
    eye, *selectors = _block_selectors(C)
    X = eye - mx.where(selectors[0], A, 0)
    for selector in selectors[1:]:
        X = X - X @ mx.where(selector, A, 0) @ X
    return X


@functools.lru_cache
def _triangles(C: int) -> tuple[mx.array, mx.array]:
    """Masks [C, C]: the lower triangle with and without its diagonal."""
    row, column = mx.arange(C)[:, None], mx.arange(C)[None]
    masks = row >= column, row > column
    mx.eval(masks)
    return masks


@functools.lru_cache
def _block_selectors(C: int) -> list[mx.array]:
    """The identity, then per block size 1, 2, .. C/2 the mask of what joins two neighbouring diagonal blocks."""
    if C & (C - 1):
        raise ValueError(f"chunk must be a power of two but is {C}")
    row, column = mx.arange(C)[:, None], mx.arange(C)[None]
    selectors = [mx.eye(C)]
    size = 1
    while size < C:
        same_pair = row // (2 * size) == column // (2 * size)
        selectors.append(same_pair & (row // size % 2 == 1) & (column // size % 2 == 0))
        size *= 2
    mx.eval(selectors)
    return selectors
