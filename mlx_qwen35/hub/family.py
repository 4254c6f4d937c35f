"""The released sizes of Qwen3.5: what each network holds, and what it weighs. Arithmetic on a table; no files.

Every number follows from the dimensions in `FAMILY`; the totals equal the published ones to the last
parameter. Knows nothing of downloads or of this machine.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

HEAD_DIM = 256
LINEAR_HEAD_DIM = 128
LINEAR_KEY_HEADS = 16
CONV_KERNEL = 4
VOCABULARY = 248_320
NATIVE_CONTEXT = 262_144
FULL_ATTENTION_EVERY = 4
VISION_TOWERS = {"S": (12, 768, 3072), "M": (24, 1024, 4096), "L": (27, 1152, 4304)}  # depth, width, inner


@dataclass(frozen=True)
class FamilyEntry:
    """One released size. Parameter counts are numbers of weights; sizes are bytes."""

    short: str
    hub_id: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    linear_value_heads: int
    intermediate: int  # the dense feed-forward width, or 0
    experts: int  # 0 for the dense sizes
    experts_per_token: int
    expert_width: int  # of a routed expert and of the shared one
    tied: bool
    vision: str
    thinks_by_default: bool

    @property
    def name(self) -> str:
        return self.hub_id.partition("/")[2]

    @property
    def full_layers(self) -> int:
        return self.layers // FULL_ATTENTION_EVERY

    @property
    def linear_layers(self) -> int:
        return self.layers - self.full_layers

    @property
    def conv_dim(self) -> int:
        return LINEAR_HEAD_DIM * (2 * LINEAR_KEY_HEADS + self.linear_value_heads)

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The keys of config.json's text_config that sizes depend on."""
        config: dict[str, Any] = {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "full_attention_interval": FULL_ATTENTION_EVERY,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": HEAD_DIM,
            "linear_num_key_heads": LINEAR_KEY_HEADS,
            "linear_num_value_heads": self.linear_value_heads,
            "linear_key_head_dim": LINEAR_HEAD_DIM,
            "linear_value_head_dim": LINEAR_HEAD_DIM,
            "linear_conv_kernel_dim": CONV_KERNEL,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": NATIVE_CONTEXT,
            "mtp_num_hidden_layers": 1,
        }
        if not self.experts:
            return config | {"intermediate_size": self.intermediate}
        return config | {
            "num_experts": self.experts,
            "num_experts_per_tok": self.experts_per_token,
            "moe_intermediate_size": self.expert_width,
            "shared_expert_intermediate_size": self.expert_width,
        }

    @property
    def embedding_parameters(self) -> int:
        """Token embedding, and the output head where it is not tied to it."""
        return VOCABULARY * self.hidden * (1 if self.tied else 2)

    @property
    def text_parameters(self) -> int:
        """The language model without embedding, head, MTP layer and vision tower."""
        layers = self.full_layers * self._attention + self.linear_layers * self._delta_net
        return layers + self.layers * self._feed_forward + (2 * self.layers + 1) * self.hidden

    @property
    def mtp_parameters(self) -> int:
        """The multi-token-prediction layer: one attention layer, the joining matrix and its norms."""
        return self._attention + self._feed_forward + 2 * self.hidden * self.hidden + 5 * self.hidden

    @property
    def vision_parameters(self) -> int:
        depth, width, inner = VISION_TOWERS[self.vision]
        block = 4 * width * width + 2 * width * inner + 9 * width + inner
        patches = 3 * 2 * 16 * 16 * width + width + 2304 * width
        merged = 4 * width
        merger = 2 * width + merged * merged + merged + merged * self.hidden + self.hidden
        return patches + depth * block + merger

    @property
    def parameters(self) -> int:
        """Everything in the released repository."""
        language = self.text_parameters + self.embedding_parameters
        return language + self.mtp_parameters + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Weights read for one token, output head included."""
        idle = (self.experts - self.experts_per_token) * 3 * self.hidden * self.expert_width
        return self.text_parameters + VOCABULARY * self.hidden - self.layers * max(0, idle)

    def weight_bytes(self, bits: int, group_size: int = 64, mtp: bool = False) -> int:
        """Bytes of the language model at 16, 8 or 4 bits a weight.

        As the converter writes it: matrices quantized with a 16-bit scale and bias for each group, routers and
        shared-expert gates at 8 bits, norms, convolutions and decays at 16. Without the vision tower, and
        without the MTP layer unless `mtp`.
        """
        total = self.text_parameters + self.embedding_parameters + (self.mtp_parameters if mtp else 0)
        if bits == 16:
            return 2 * total
        layers = self.layers + (1 if mtp else 0)
        routers = layers * (self.experts + 1) * self.hidden if self.experts else 0
        small = self.linear_layers * self._delta_net_small + (self.full_layers + mtp) * 2 * HEAD_DIM
        small += (2 * layers + 1 + (3 if mtp else 0)) * self.hidden
        matrices = total - routers - small
        quantized = matrices * (bits + 32 / group_size) + routers * (8 + 32 / 64)
        return round(quantized / 8) + 2 * small

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values at 16 bits."""
        return 2 * self.full_layers * 2 * self.kv_heads * HEAD_DIM

    @property
    def mtp_kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.kv_heads * HEAD_DIM

    @property
    def recurrent_state_bytes(self) -> int:
        """The float32 DeltaNet state of one sequence."""
        return 4 * self.linear_layers * self.linear_value_heads * LINEAR_HEAD_DIM * LINEAR_HEAD_DIM

    @property
    def conv_tail_bytes(self) -> int:
        """The last three rows before the convolution, at 16 bits, for one sequence."""
        return 2 * self.linear_layers * (CONV_KERNEL - 1) * self.conv_dim

    @property
    def _attention(self) -> int:
        queries, keys = self.heads * HEAD_DIM, self.kv_heads * HEAD_DIM
        return self.hidden * (3 * queries + 2 * keys) + 2 * HEAD_DIM

    @property
    def _delta_net(self) -> int:
        values = self.linear_value_heads * LINEAR_HEAD_DIM
        projections = self.conv_dim + 2 * values + 2 * self.linear_value_heads
        return self.hidden * projections + self._delta_net_small

    @property
    def _delta_net_small(self) -> int:
        """Convolution, A_log, dt_bias and the gated norm: never quantized."""
        return CONV_KERNEL * self.conv_dim + 2 * self.linear_value_heads + LINEAR_HEAD_DIM

    @property
    def _feed_forward(self) -> int:
        if not self.experts:
            return 3 * self.hidden * self.intermediate
        # router, shared-expert gate, and three matrices for each expert and the shared one
        return self.hidden * (self.experts + 1 + 3 * self.expert_width * (self.experts + 1))


def _dense(
    short: str, hidden: int, layers: int, heads: tuple[int, int, int], inner: int, tied: bool, vision: str
) -> FamilyEntry:
    hub_id, thinks = f"Qwen/Qwen3.5-{short.upper()}", short not in ("0.8b", "2b")
    return FamilyEntry(short, hub_id, hidden, layers, *heads, inner, 0, 0, 0, tied, vision, thinks)


def _experts(
    short: str, hidden: int, layers: int, heads: tuple[int, int, int], experts: tuple[int, int, int]
) -> FamilyEntry:
    hub_id = f"Qwen/Qwen3.5-{short.upper()}"
    return FamilyEntry(short, hub_id, hidden, layers, *heads, 0, *experts, False, "L", True)


FAMILY: dict[str, FamilyEntry] = {
    entry.short: entry
    for entry in (
        # heads: query, key/value, DeltaNet value; experts: all, chosen, width
        _dense("0.8b", 1024, 24, (8, 2, 16), 3584, True, "S"),
        _dense("2b", 2048, 24, (8, 2, 16), 6144, True, "M"),
        _dense("4b", 2560, 32, (16, 4, 32), 9216, True, "M"),
        _dense("9b", 4096, 32, (16, 4, 32), 12288, False, "L"),
        _dense("27b", 5120, 64, (24, 4, 48), 17408, False, "L"),
        _experts("35b-a3b", 2048, 40, (16, 2, 32), (256, 8, 512)),
        _experts("122b-a10b", 3072, 48, (32, 2, 64), (256, 8, 1024)),
        _experts("397b-a17b", 4096, 60, (32, 2, 64), (512, 10, 1024)),
    )
}
