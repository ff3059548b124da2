"""fairseq's Transformer layers with an MoE block.

fairseq builds all layers of a stack with its own arguments; some of them are then given a block and change their
class. These classes call fairseq's ``forward`` by another name and repeat its arguments and annotations, because
TorchScript reads those and does not support ``super()``.
"""

from types import FunctionType
from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from moec_fairseq.compat.versions import FUSED_WEIGHTS
from moec_fairseq.moe.layer import MoELayer


def _renamed(function: Any, name: str) -> Any:
    """Return a function under the name of the method that it becomes: TorchScript identifies methods by name."""
    copy = FunctionType(function.__code__, function.__globals__, name, function.__defaults__)
    copy.__annotations__ = function.__annotations__
    return copy


def _insert(layer: Any, moe: MoELayer) -> None:
    layer.moe = moe
    # with activation checkpointing a layer has its own forward, which recomputes fairseq's part only
    if "forward" in vars(layer):
        layer.without_block = vars(layer).pop("forward")


class MoEFeedForward(nn.Module):
    """The MoE block in place of a layer's first linear map: returns what the block adds to its input.

    fairseq's ``forward`` inlines the FFN and passes it no padding mask, so the mask is set beforehand.
    """

    padding_mask_BL: Tensor | None

    def __init__(self, moe: MoELayer) -> None:
        super().__init__()
        self.moe = moe
        self.padding_mask_BL = None

    def forward(self, hidden_LBD: Tensor) -> Tensor:
        """Return what the block adds; fairseq adds it to its own residual."""
        padding_mask_BL = self.padding_mask_BL
        self.padding_mask_BL = None
        return self.moe.residual(hidden_LBD, padding_mask_BL)


def _replace_feed_forward(layer: Any, moe: MoELayer) -> None:
    for name in FUSED_WEIGHTS:
        layer._parameters.pop(name, None)
    layer.fc1 = MoEFeedForward(moe)
    layer.activation_fn = nn.Identity()
    layer.activation_dropout_module = nn.Identity()
    layer.fc2 = nn.Identity()
    # no activation checkpointing: recomputing a router would record its tokens twice
    vars(layer).pop("forward", None)


class InsertedEncoderLayer(TransformerEncoderLayerBase):
    """A Transformer encoder layer, followed by an MoE block."""

    take_block = _insert
    without_block = _renamed(TransformerEncoderLayerBase.forward, "without_block")

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Map (L, B, D) to (L, B, D)."""
        return self.moe(self.without_block(x, encoder_padding_mask, attn_mask), encoder_padding_mask)


class ReplacedEncoderLayer(TransformerEncoderLayerBase):
    """A Transformer encoder layer whose feed-forward block is an MoE block."""

    take_block = _replace_feed_forward
    around_block = _renamed(TransformerEncoderLayerBase.forward, "around_block")
    _load_from_state_dict = nn.Module._load_from_state_dict  # that of fairseq 0.12.2 wants a linear map as fc1

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Map (L, B, D) to (L, B, D)."""
        self.fc1.padding_mask_BL = encoder_padding_mask
        return self.around_block(x, encoder_padding_mask, attn_mask)


# what a decoder layer returns: hidden states, attention weights, state of its self-attention
DecoderResults = tuple[Tensor, Tensor | None, list[Tensor | None] | None]


class InsertedDecoderLayer(TransformerDecoderLayerBase):
    """A Transformer decoder layer, followed by an MoE block."""

    take_block = _insert
    without_block = _renamed(TransformerDecoderLayerBase.forward, "without_block")

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> DecoderResults:
        """Map (L, B, D) to (L, B, D); the other results and arguments are those of fairseq's layer."""
        x, attention, state = self.without_block(
            x,
            encoder_out,
            encoder_padding_mask,
            incremental_state,
            prev_self_attn_state,
            prev_attn_state,
            self_attn_mask,
            self_attn_padding_mask,
            need_attn,
            need_head_weights,
        )
        return self.moe(x, self_attn_padding_mask), attention, state


class ReplacedDecoderLayer(TransformerDecoderLayerBase):
    """A Transformer decoder layer whose feed-forward block is an MoE block."""

    take_block = _replace_feed_forward
    around_block = _renamed(TransformerDecoderLayerBase.forward, "around_block")

    def forward(
        self,
        x: Tensor,
        encoder_out: Tensor | None = None,
        encoder_padding_mask: Tensor | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        prev_self_attn_state: list[Tensor] | None = None,
        prev_attn_state: list[Tensor] | None = None,
        self_attn_mask: Tensor | None = None,
        self_attn_padding_mask: Tensor | None = None,
        need_attn: bool = False,
        need_head_weights: bool = False,
    ) -> DecoderResults:
        """Map (L, B, D) to (L, B, D); the other results and arguments are those of fairseq's layer."""
        self.fc1.padding_mask_BL = self_attn_padding_mask
        return self.around_block(
            x,
            encoder_out,
            encoder_padding_mask,
            incremental_state,
            prev_self_attn_state,
            prev_attn_state,
            self_attn_mask,
            self_attn_padding_mask,
            need_attn,
            need_head_weights,
        )


# layout -> fairseq's layer -> the same with a block
LAYOUTS: dict[str, dict[Any, Any]] = {
    "inserted": {
        TransformerEncoderLayerBase: InsertedEncoderLayer,
        TransformerDecoderLayerBase: InsertedDecoderLayer,
    },
    "replaced": {
        TransformerEncoderLayerBase: ReplacedEncoderLayer,
        TransformerDecoderLayerBase: ReplacedDecoderLayer,
    },
}


def give_block(layer: Any, moe: MoELayer, layout: str) -> None:
    """Turn a layer that fairseq has built into one with an MoE block; everything else about it stays.

    Raises:
        ValueError: the layer is wrapped for fully sharded data parallelism.
    """
    if type(layer) not in LAYOUTS[layout]:
        raise ValueError(
            "--ddp-backend fully_sharded would shard the layers with experts a second time; "
            "give --ddp-backend legacy_ddp or pytorch_ddp."
        )
    layer.__class__ = LAYOUTS[layout][type(layer)]
    layer.take_block(moe)
