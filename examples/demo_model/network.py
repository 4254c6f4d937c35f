"""The demo model as a torch module, written for training on a CPU. Knows nothing of text, data or files.

Parameter names are those of the released checkpoints, so that exporting is only renaming a prefix. Several samples
share one row of a batch: `position` restarts at 0 at each sample's first token, and no mixer looks across such a
start. Shapes: B rows, T tokens, C model width, H heads, D head width, E experts, I expert width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Added to the log decay at a sample's first token: forgets the previous sample (e^-60 is below float32's reach).
FORGET = -60.0


@dataclass(frozen=True)
class DemoConfig:
    vocab: int = 1024
    width: int = 128
    layers: int = 8
    attention_every: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    rotary_dim: int = 16
    rope_theta: float = 10_000_000.0
    linear_key_heads: int = 2
    linear_value_heads: int = 2
    linear_dim: int = 64
    conv: int = 4
    experts: int = 8
    experts_per_token: int = 2
    expert_width: int = 64
    shared_width: int = 64
    eps: float = 1e-6


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in x's dtype; the float32 master weight is rounded on the way."""
    return F.linear(x, weight.to(x.dtype))


class ZeroCentredNorm(nn.Module):
    """RMS norm whose stored weight is the offset from 1. Computes in float32, answers in `dtype`."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        x = x.float()
        return (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)).to(dtype)


class Weight(nn.Module):
    """A bare matrix under the name `<name>.weight`."""

    def __init__(self, *shape: int, scale: float = 0.02):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) * scale)


def fan_in(rows: int, columns: int, gain: float = 1.0) -> Weight:
    return Weight(rows, columns, scale=gain * columns**-0.5)


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 for strictly lower triangular a [..., C, C], differentiable.

    The inverse itself is computed without a graph; one Newton step then carries the exact gradient, because
    2T - T(I + a)T has value T and derivative -T da T.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    with torch.no_grad():
        inverse = torch.linalg.solve_triangular(a + eye, eye.expand_as(a), upper=False, unitriangular=True)
    return 2 * inverse - inverse @ (inverse + a @ inverse)


def delta_rule(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """The gated delta rule over whole rows, chunk by chunk (the WY form), from an empty state.

    q, k, v: [B, T, H, D] float32, q and k normalised   beta, g: [B, T, H] float32   ->   [B, T, H, D]
    `dtype` is that of the products over D; the triangular inverse and the state stay float32.
    """
    B, T, H, D = v.shape
    q, k, v = (x.view(B, T // chunk, chunk, H, D).transpose(2, 3) for x in (q, k, v))  # [B, N, H, chunk, D]
    beta, g = (x.view(B, T // chunk, chunk, H).transpose(2, 3) for x in (beta, g))
    gamma = g.cumsum(-1)
    lower = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decay = (gamma[..., :, None] - gamma[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    kd, qd = k.to(dtype), q.to(dtype)
    a = ((kd @ kd.mT).float() * decay * beta[..., None]).tril(-1)
    t = unit_lower_inverse(a).to(dtype)
    u = (t @ (v * beta[..., None]).to(dtype)).float()
    w = t @ (k * (beta * gamma.exp())[..., None]).to(dtype)
    within = ((qd @ kd.mT).float() * decay).to(dtype)
    readers = torch.cat([w, (q * gamma.exp()[..., None]).to(dtype)], dim=-2)  # what reads the incoming state
    writers = (k * (gamma[..., -1:] - gamma).exp()[..., None]).to(dtype).mT.contiguous()  # [B, N, H, D, chunk]
    kept = gamma[..., -1].exp()[..., None, None]
    state = torch.zeros(B, H, D, D)
    corrections, carried = [], []
    for n in range(T // chunk):
        read = readers[:, n] @ state.to(dtype)
        correction = u[:, n] - read[..., :chunk, :].float()
        corrections.append(correction)
        carried.append(read[..., chunk:, :])
        state = state * kept[:, n] + (writers[:, n] @ correction.to(dtype)).float()
    out = torch.stack(carried, 1).float() + (within @ torch.stack(corrections, 1).to(dtype)).float()
    return out.transpose(2, 3).reshape(B, T, H, D)


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class GatedDeltaNet(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.c = c
        keys, values = c.linear_key_heads * c.linear_dim, c.linear_value_heads * c.linear_dim
        self.keys, self.values = keys, values
        self.in_proj_qkv = fan_in(2 * keys + values, c.width)
        self.in_proj_z = fan_in(values, c.width)
        self.in_proj_b = fan_in(c.linear_value_heads, c.width, gain=0.5)
        self.in_proj_a = fan_in(c.linear_value_heads, c.width, gain=0.5)
        self.conv1d = Weight(2 * keys + values, 1, c.conv, scale=0.3)
        with torch.no_grad():
            self.conv1d.weight[..., -1] += 0.7
        # With no input, the decay of head i is 1 - 0.5 * 0.002^(i / (heads - 1)): from 0.5 to 0.999.
        spread = torch.linspace(0, 1, c.linear_value_heads)
        rate = -torch.log(1 - 0.5 * 0.002**spread)
        self.A_log = nn.Parameter(torch.zeros(c.linear_value_heads))
        self.dt_bias = nn.Parameter(torch.log(torch.expm1(rate)))
        self.norm = Weight(c.linear_dim)
        nn.init.ones_(self.norm.weight)
        self.out_proj = fan_in(c.width, values, gain=0.3)

    def forward(self, x: Tensor, position: Tensor, chunk: int) -> Tensor:
        c, (B, T, _) = self.c, x.shape
        heads = c.linear_value_heads
        projections = (self.in_proj_qkv, self.in_proj_z, self.in_proj_b, self.in_proj_a)
        joined = linear(x, torch.cat([p.weight for p in projections]))
        qkv, z, b, a = joined.split([2 * self.keys + self.values, self.values, heads, heads], dim=-1)
        taps = self.conv1d.weight[:, 0].to(x.dtype)
        mixed = qkv * taps[:, -1]
        for back in range(1, c.conv):
            seen = (position >= back)[..., None]  # never the previous sample of the row
            mixed = mixed + F.pad(qkv, (0, 0, back, 0))[:, :T] * taps[:, -1 - back] * seen
        q, k, v = F.silu(mixed).float().split([self.keys, self.keys, self.values], dim=-1)
        q = unit(q.view(B, T, -1, c.linear_dim)) * c.linear_dim**-0.5
        k = unit(k.view(B, T, -1, c.linear_dim))
        groups = heads // c.linear_key_heads
        q, k = (y.repeat_interleave(groups, dim=2) for y in (q, k))
        beta = torch.sigmoid(b.float())
        g = -self.A_log.exp() * F.softplus(a.float() + self.dt_bias)
        g = torch.where((position == 0)[..., None], FORGET, g)
        out = delta_rule(q, k, v.view(B, T, heads, -1), beta, g, chunk, x.dtype)
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + c.eps) * self.norm.weight
        out = out * F.silu(z.float()).view(B, T, heads, -1)
        return linear(out.reshape(B, T, -1).to(x.dtype), self.out_proj.weight)


class GatedAttention(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.c = c
        self.q_proj = fan_in(2 * c.heads * c.head_dim, c.width)
        self.k_proj = fan_in(c.kv_heads * c.head_dim, c.width)
        self.v_proj = fan_in(c.kv_heads * c.head_dim, c.width)
        self.o_proj = fan_in(c.width, c.heads * c.head_dim, gain=0.3)
        self.q_norm = ZeroCentredNorm(c.head_dim, c.eps)
        self.k_norm = ZeroCentredNorm(c.head_dim, c.eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """mask: [B, 1, T, T] bool, true where a query may look."""
        c, (B, T, _) = self.c, x.shape
        joined = linear(x, torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight]))
        query, k, v = joined.split([2 * c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim], dim=-1)
        q, gate = query.view(B, T, c.heads, 2 * c.head_dim).chunk(2, dim=-1)
        q = rotate(self.q_norm(q, torch.float32), rotary).to(x.dtype)
        k = rotate(self.k_norm(k.view(B, T, c.kv_heads, -1), torch.float32), rotary).to(x.dtype)
        k, v = (y.repeat_interleave(c.heads // c.kv_heads, 2) for y in (k, v.view(B, T, c.kv_heads, -1)))
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        out = out.transpose(1, 2) * torch.sigmoid(gate)
        return linear(out.reshape(B, T, -1), self.o_proj.weight)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of the first dims of x [B, T, H, D]; cos, sin: [B, T, 1, rotary / 2]."""
    cos, sin = rotary
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


class Experts(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(c.experts, 2 * c.expert_width, c.width) * c.width**-0.5)
        self.down_proj = nn.Parameter(torch.randn(c.experts, c.width, c.expert_width) * 0.3 * c.expert_width**-0.5)


class SharedExpert(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.gate_proj = fan_in(c.shared_width, c.width)
        self.up_proj = fan_in(c.shared_width, c.width)
        self.down_proj = fan_in(c.width, c.shared_width, gain=0.3)


class MixtureOfExperts(nn.Module):
    """All experts for all tokens, weighted by zero where not chosen: two big products beat grouping by 8 experts."""

    def __init__(self, c: DemoConfig):
        super().__init__()
        self.c = c
        self.gate = Weight(c.experts, c.width)
        self.experts = Experts(c)
        self.shared_expert = SharedExpert(c)
        self.shared_expert_gate = Weight(1, c.width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, T, C] -> the output and the load-balance loss (1 when perfectly even)."""
        c, shared = self.c, self.shared_expert
        scores = F.linear(x.float(), torch.cat([self.gate.weight, self.shared_expert_gate.weight]))
        p = scores[..., : c.experts].softmax(-1)
        best = p
        for _ in range(c.experts_per_token - 1):
            best = torch.where(best >= best.amax(-1, keepdim=True), 0.0, best)
        chosen = p >= best.amax(-1, keepdim=True)
        w = torch.where(chosen, p, 0.0)
        w = w / w.sum(-1, keepdim=True)
        balance = c.experts * (chosen.float().mean((0, 1)) * p.mean((0, 1))).sum() / c.experts_per_token

        routed = linear(x, self.experts.gate_up_proj.flatten(0, 1)).unflatten(-1, (c.experts, 2, c.expert_width))
        hidden = F.silu(routed[..., 0, :]) * routed[..., 1, :] * w[..., None].to(x.dtype)
        out = linear(hidden.flatten(-2), self.experts.down_proj.transpose(0, 1).flatten(1))
        gate, up = linear(x, torch.cat([shared.gate_proj.weight, shared.up_proj.weight])).chunk(2, -1)
        opened = torch.sigmoid(scores[..., c.experts :]).to(x.dtype)
        return out + linear(F.silu(gate) * up * opened, shared.down_proj.weight), balance


class LinearLayer(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.input_layernorm = ZeroCentredNorm(c.width, c.eps)
        self.linear_attn = GatedDeltaNet(c)
        self.post_attention_layernorm = ZeroCentredNorm(c.width, c.eps)
        self.mlp = MixtureOfExperts(c)

    def forward(self, h: Tensor, position: Tensor, chunk: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        h = h + self.linear_attn(self.input_layernorm(h, dtype), position, chunk)
        out, balance = self.mlp(self.post_attention_layernorm(h, dtype))
        return h + out, balance


class AttentionLayer(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.input_layernorm = ZeroCentredNorm(c.width, c.eps)
        self.self_attn = GatedAttention(c)
        self.post_attention_layernorm = ZeroCentredNorm(c.width, c.eps)
        self.mlp = MixtureOfExperts(c)

    def forward(
        self, h: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        h = h + self.self_attn(self.input_layernorm(h, dtype), rotary, mask)
        out, balance = self.mlp(self.post_attention_layernorm(h, dtype))
        return h + out, balance


class Trunk(nn.Module):
    def __init__(self, c: DemoConfig):
        super().__init__()
        self.embed_tokens = Weight(c.vocab, c.width, scale=c.width**-0.5)
        self.layers = nn.ModuleList(
            AttentionLayer(c) if (i + 1) % c.attention_every == 0 else LinearLayer(c) for i in range(c.layers)
        )
        self.norm = ZeroCentredNorm(c.width, c.eps)


class MultiTokenPredictor(nn.Module):
    """Predicts token t+2 from the trunk's hidden state at t and the embedding of token t+1."""

    def __init__(self, c: DemoConfig):
        super().__init__()
        self.pre_fc_norm_embedding = ZeroCentredNorm(c.width, c.eps)
        self.pre_fc_norm_hidden = ZeroCentredNorm(c.width, c.eps)
        self.fc = fan_in(c.width, 2 * c.width)
        self.layers = nn.ModuleList([AttentionLayer(c)])
        self.norm = ZeroCentredNorm(c.width, c.eps)

    def merge(self, embedding: Tensor, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        pair = [self.pre_fc_norm_embedding(embedding, dtype), self.pre_fc_norm_hidden(hidden, dtype)]
        return linear(torch.cat(pair, dim=-1), self.fc.weight).float()


class DemoModel(nn.Module):
    def __init__(self, config: DemoConfig, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.config, self.dtype = config, dtype
        self.model = Trunk(config)
        self.mtp = MultiTokenPredictor(config)
        exponents = torch.arange(config.rotary_dim // 2) / (config.rotary_dim // 2)
        self.register_buffer("inverse_frequencies", config.rope_theta**-exponents, persistent=False)

    def compile_layers(self) -> None:
        """Fuse each layer's elementwise work. All layers of a kind share one compiled graph per shape."""
        for layer in [*self.model.layers, *self.mtp.layers]:
            layer.compile(dynamic=False)

    def forward(
        self, tokens: Tensor, position: Tensor, chunk: int = 32, compiled: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """tokens, position: [B, T], T a multiple of `chunk`.

        -> final hidden states of the trunk [B, T, C] (for token t+1), those of the MTP layer (for token t+2; the last
        position of each sample is meaningless), and the mean load-balance loss. `logits` turns hidden states to logits.
        `compiled` uses the fused layers, each new shape of which takes minutes to compile.
        """
        angles = position[..., None, None].float() * self.inverse_frequencies
        rotary = (angles.cos(), angles.sin())
        sample = (position == 0).cumsum(1)
        mask = ((sample[:, :, None] == sample[:, None, :]).tril())[:, None]
        h = self.model.embed_tokens.weight[tokens]
        balances = []
        for layer in self.model.layers:
            call = layer if compiled else layer.forward
            if isinstance(layer, LinearLayer):
                h, balance = call(h, position, chunk, self.dtype)
            else:
                h, balance = call(h, rotary, mask, self.dtype)
            balances.append(balance)
        final = self.model.norm(h, torch.float32)
        following = self.model.embed_tokens.weight[tokens.roll(-1, 1)]
        x = self.mtp.merge(following, final, self.dtype)
        layer = self.mtp.layers[0]
        x, balance = (layer if compiled else layer.forward)(x, rotary, mask, self.dtype)
        drafted = self.mtp.norm(x, torch.float32)
        return final, drafted, torch.stack([*balances, balance]).mean()

    def logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden.to(self.dtype), self.model.embed_tokens.weight).float()
