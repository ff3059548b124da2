"""fairseq's Transformer layers with an MoE block."""

from typing import Any

from fairseq.modules.transformer_layer import TransformerDecoderLayerBase, TransformerEncoderLayerBase
from torch import Tensor, nn

from moec_fairseq.moe.layer import MoELayer


class MoEFeedForward(nn.Module):
    """The MoE block in the place of a layer's first linear map: returns what the block adds to its input.

    The FFN is written out in fairseq's ``forward``, which hands it no padding mask, so the mask is set before.
    """

    def __init__(self, moe: MoELayer) -> None:
        super().__init__()
        self.moe = moe
        self.padding_mask_BL: Tensor | None = None

    def forward(self, hidden_LBD: Tensor) -> Tensor:
        """Return what the block adds; fairseq adds it to its own residual."""
        padding_mask_BL, self.padding_mask_BL = self.padding_mask_BL, None
        return self.moe.difference(hidden_LBD, padding_mask_BL)


def _replace_feed_forward(layer: Any, moe: MoELayer) -> None:
    layer.fc1 = MoEFeedForward(moe)
    layer.activation_fn = nn.Identity()
    layer.activation_dropout_module = nn.Identity()
    layer.fc2 = nn.Identity()


class InsertedEncoderLayer(TransformerEncoderLayerBase):
    """A Transformer encoder layer, followed by an MoE block."""

    def __init__(self, cfg: Any, moe: MoELayer) -> None:
        super().__init__(cfg)
        self.moe = moe

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Map (L, B, D) to (L, B, D)."""
        return self.moe(super().forward(x, encoder_padding_mask, attn_mask), encoder_padding_mask)


class ReplacedEncoderLayer(TransformerEncoderLayerBase):
    """A Transformer encoder layer whose feed-forward block is an MoE block."""

    def __init__(self, cfg: Any, moe: MoELayer) -> None:
        super().__init__(cfg)
        _replace_feed_forward(self, moe)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor | None, attn_mask: Tensor | None = None) -> Tensor:
        """Map (L, B, D) to (L, B, D)."""
        self.fc1.padding_mask_BL = encoder_padding_mask
        return super().forward(x, encoder_padding_mask, attn_mask)


class InsertedDecoderLayer(TransformerDecoderLayerBase):
    """A Transformer decoder layer, followed by an MoE block."""

    def __init__(self, cfg: Any, moe: MoELayer) -> None:
        super().__init__(cfg)
        self.moe = moe

    def forward(self, x: Tensor, *args: Any, self_attn_padding_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Map (L, B, D) to (L, B, D); the other results and arguments are those of fairseq's layer."""
        x, *rest = super().forward(x, *args, self_attn_padding_mask=self_attn_padding_mask, **kwargs)
        return (self.moe(x, self_attn_padding_mask), *rest)


class ReplacedDecoderLayer(TransformerDecoderLayerBase):
    """A Transformer decoder layer whose feed-forward block is an MoE block."""

    def __init__(self, cfg: Any, moe: MoELayer) -> None:
        super().__init__(cfg)
        _replace_feed_forward(self, moe)

    def forward(self, x: Tensor, *args: Any, self_attn_padding_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """Map (L, B, D) to (L, B, D); the other results and arguments are those of fairseq's layer."""
        self.fc1.padding_mask_BL = self_attn_padding_mask
        return super().forward(x, *args, self_attn_padding_mask=self_attn_padding_mask, **kwargs)


# layout -> (encoder layer, decoder layer)
LAYOUTS: dict[str, tuple[Any, Any]] = {
    "inserted": (InsertedEncoderLayer, InsertedDecoderLayer),
    "replaced": (ReplacedEncoderLayer, ReplacedDecoderLayer),
}
