"""The text network: embeddings, hybrid layers, head, and the MTP layer. Token ids in, logits out.

It follows mlx-lm's model protocol (`model(ids, cache=...)`, `.layers`, `make_cache()`), so that its tools run on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_qwen35.caches.delta_state import DeltaState
from mlx_qwen35.caches.kv import KVCache
from mlx_qwen35.caches.rows import AttentionCache, LayerCache, SequenceCache, SequenceKV
from mlx_qwen35.models.attention import Attention
from mlx_qwen35.models.config import LINEAR, ModelConfig
from mlx_qwen35.models.delta_net import GatedDeltaNet
from mlx_qwen35.models.layers import MLP, RMSNorm
from mlx_qwen35.models.moe import SparseMoE
from mlx_qwen35.models.rotary import Rotary
from mlx_qwen35.models.windows import Window, attention_parts, delta_grouped, positions_of, see


class DecoderLayer(nn.Module):
    """Mixer and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: ModelConfig, kind: str) -> None:
        super().__init__()
        self.is_linear = kind == LINEAR
        if self.is_linear:
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = Attention(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        if config.experts:
            self.mlp = SparseMoE(config.hidden_size, config.experts)
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def __call__(
        self, x: mx.array, cache: AttentionCache | DeltaState | None = None, positions: mx.array | None = None
    ) -> mx.array:
        """x: [B, T, C] -> [B, T, C]"""
        normed = self.input_layernorm(x)
        if self.is_linear:
            assert cache is None or isinstance(cache, DeltaState)
            return self._feed_forward(x, self.linear_attn(normed, cache))
        assert not isinstance(cache, DeltaState)
        return self._feed_forward(x, self.self_attn(normed, cache, positions))

    def packed(
        self, x: mx.array, added: mx.array | None, parts: Sequence[Any], angles: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Windows of several sequences.

        x: [1, N, C], the residual stream, to which `added` is yet to be added: that is one launch with the norm
        parts: as this kind of layer sees the windows   angles: [N, dims] -> the same pair after this layer
        """
        x, normed = self.input_layernorm.of_sum(x, added)
        if self.is_linear:
            mixed = self.linear_attn.packed(normed, parts)
        else:
            mixed = self.self_attn.packed(normed, parts, angles)
        x, normed = self.post_attention_layernorm.of_sum(x, mixed)
        return x, self.mlp(normed)

    def _feed_forward(self, x: mx.array, mixed: mx.array) -> mx.array:
        x, normed = self.post_attention_layernorm.of_sum(x, mixed)
        return x + self.mlp(normed)


class Trunk(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [DecoderLayer(config, kind) for kind in config.layer_types]
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.rotary = Rotary(config.rotary)

    def __call__(self, x: mx.array, cache: Sequence[LayerCache] | None, positions: mx.array | None) -> mx.array:
        """Embeddings x: [B, T, C] -> hidden states after the final norm, [B, T, C]"""
        caches: Sequence[Any] = cache or [None] * len(self.layers)
        for layer, own in zip(self.layers, caches):
            x = layer(x, own, positions)
        return self.norm(x)

    def packed(self, x: mx.array, windows: Sequence[Window]) -> mx.array:
        """Windows of several sequences.   x: [1, N, C] -> the same; the windows' caches move on."""
        groups, angles, added = delta_grouped(windows), self.rotary.angles(positions_of(windows)), None
        for i, layer in enumerate(self.layers):
            parts = [group.part(i) for group in groups] if layer.is_linear else attention_parts(windows, i)
            x, added = layer.packed(x, added, parts, angles)
        return self.norm.of_sum(x, added)[1]


class LanguageModel(nn.Module):
    """The trunk and its head; a tied head is the embedding itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = Trunk(config)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)


class MTP(nn.Module):
    """Multi-token prediction: from the hidden state at t and token t + 1, the hidden state that predicts t + 2.

    One full-attention decoder layer with a KV cache of its own; embeddings and head are the trunk's.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C, eps = config.hidden_size, config.norm_eps
        self.pre_fc_norm_embedding = RMSNorm(C, eps)
        self.pre_fc_norm_hidden = RMSNorm(C, eps)
        self.fc = nn.Linear(2 * C, C, bias=False)
        self.layers = [DecoderLayer(config, "full_attention")]
        self.norm = RMSNorm(C, eps)

    def __call__(
        self,
        hidden: mx.array,
        next_embeddings: mx.array,
        cache: AttentionCache | None = None,
        positions: mx.array | None = None,
    ) -> mx.array:
        """hidden: [B, T, C], the trunk's (or, chained, this module's) output for positions t
        next_embeddings: [B, T, C], of the tokens at t + 1   positions: those of t -> [B, T, C], after its own norm
        """
        joined = [self.pre_fc_norm_embedding(next_embeddings), self.pre_fc_norm_hidden(hidden)]
        x = self.fc(mx.concatenate(joined, axis=-1))
        return self.norm(self.layers[0](x, cache, positions))

    def packed(self, hidden: mx.array, windows: Sequence[Window]) -> mx.array:
        """Pairs of several sequences.   hidden: [N, C]   windows: the embeddings of the tokens after them, each beside
        the KV of this layer alone -> [N, C], after its own norm
        """
        embeddings = mx.concatenate([w.embeddings for w in windows if w.embeddings is not None])
        joined = [self.pre_fc_norm_embedding(embeddings), self.pre_fc_norm_hidden(hidden)]
        layer = self.layers[0]
        angles = layer.self_attn.rotary.angles(positions_of(windows))
        x = self.fc(mx.concatenate(joined, axis=-1))[None]
        x, added = layer.packed(x, None, attention_parts(windows, 0), angles)
        return self.norm.of_sum(x, added)[1].squeeze(0)


class Model(nn.Module):
    """A Qwen3.5 text network with random weights; `weights.load_model` fills it from a checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config)
        if config.mtp_layers:
            self.mtp = MTP(config)

    @property
    def layers(self) -> list[DecoderLayer]:
        return self.language_model.model.layers

    def make_cache(self, kv: Callable[[], SequenceKV] = KVCache) -> SequenceCache:
        """One empty cache a layer. kv: makes those of attention layers"""
        return [DeltaState() if layer.is_linear else kv() for layer in self.layers]

    def __call__(
        self,
        ids: mx.array | None,
        cache: Sequence[LayerCache] | None = None,
        input_embeddings: mx.array | None = None,
        positions: mx.array | None = None,
    ) -> mx.array:
        """ids: [B, T] -> logits [B, T, V], of every position. See `hidden_states` for the arguments."""
        return self.logits(self.hidden_states(ids, cache, input_embeddings, positions))

    def hidden_states(
        self,
        ids: mx.array | None,
        cache: Sequence[LayerCache] | None = None,
        input_embeddings: mx.array | None = None,
        positions: mx.array | None = None,
    ) -> mx.array:
        """The window's hidden states after the final norm, [B, T, C]; `cache` moves on by T tokens.

        ids: [B, T], or input_embeddings: [B, T, C] in their place
        positions: [3, B, T], the (t, h, w) position of each token; None for text that continues the cache
        """
        if input_embeddings is None:
            if ids is None:
                raise ValueError("a window needs ids or input_embeddings but got neither")
            input_embeddings = self.embed(ids)
        return self.language_model.model(input_embeddings, cache, positions)

    def step(self, windows: Sequence[Window]) -> mx.array:
        """One step of several sequences, each with a window of its own length.

        Returns the hidden states after the final norm of all windows in their order, [N, C]. Windows that are no
        drafts are committed at once; of a draft, `windows.commit` says how much stays. Windows of equal length should
        be neighbours: they are computed together.
        """
        rows = [self.embed(w.ids) if w.embeddings is None else w.embeddings for w in windows]
        hidden = self.language_model.model.packed(mx.concatenate(rows)[None], windows).squeeze(0)
        see(windows, hidden, rows)
        return hidden

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Around all that is computed for sequences, steps and what their caches do between them."""
        return nullcontext()

    def feed(self, hidden: mx.array, embeddings: mx.array, kv: AttentionCache) -> mx.array:
        """Pairs of one sequence into the MTP layer's KV.   hidden, embeddings: [n, C] -> [n, C], as `MTP`"""
        return self.mtp.packed(hidden, [Window.of_embeddings(embeddings, kv)])

    def embed(self, ids: mx.array) -> mx.array:
        """ids: [...] -> [..., C]"""
        return self.language_model.model.embed_tokens(ids)

    def logits(self, hidden: mx.array) -> mx.array:
        """hidden: [..., C], after the final norm -> [..., V]. Rows past the tokenizer's last id mean nothing."""
        if self.config.tie_embeddings:
            return self.language_model.model.embed_tokens.as_linear(hidden)
        return self.language_model.lm_head(hidden)
