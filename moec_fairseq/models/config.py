"""Options of the MoEC Transformer."""

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.transformer import TransformerConfig
from omegaconf import II

from moec_fairseq.models.layers import LAYOUTS
from moec_fairseq.models.placement import kept_layers
from moec_fairseq.moe.exchange import DISPATCHERS
from moec_fairseq.moe.expert_dropout import SCOPES
from moec_fairseq.moe.router import SCORES

# sizes that are those of another option unless they are given, as in fairseq's base_architecture
FOLLOWS = {
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_input_dim": "decoder_embed_dim",
    "decoder_output_dim": "decoder_embed_dim",
}


def _flat_fields() -> list[tuple[str, Any, Any]]:
    """Spell out fairseq's nested TransformerConfig: ``encoder.layers`` becomes ``encoder_layers``."""
    flat = []
    for outer in fields(TransformerConfig()):
        if outer.name.startswith("_"):
            continue
        value = getattr(TransformerConfig(), outer.name)
        # a nested group is given as its class in fairseq 0.12.2, as an object later
        value = value() if isinstance(value, type) else value
        nested = isinstance(value, FairseqDataclass)
        for inner in fields(value) if nested else [outer]:
            if inner.name.startswith("_"):
                continue
            name = f"{outer.name}_{inner.name}" if nested else inner.name
            default = inner.default if inner.default_factory is MISSING else inner.default_factory()
            kind = inner.type
            if name in FOLLOWS:
                kind, default = Optional[int], None
            elif name.endswith("layers_to_keep"):
                kind = Any  # fairseq says a list, but reads a string
            flat.append((name, kind, field(default=default, metadata=dict(inner.metadata))))
    return flat


# fairseq's command line cannot read nested options, and its hydra entry no legacy ones; both read flat ones.
FlatTransformerConfig: Any = make_dataclass("FlatTransformerConfig", _flat_fields(), bases=(FairseqDataclass,))


@dataclass
class MoECTransformerConfig(FlatTransformerConfig):
    """fairseq's Transformer options, and those of the MoE blocks."""

    moe_expert_count: int = field(
        default=8,
        metadata={
            "help": "experts in each MoE layer; 0 leaves out the MoE layers, 1 makes them dense (same active size)"
        },
    )
    moec_cluster_count: int = field(default=2, metadata={"help": "clusters that the experts of a layer form"})
    encoder_moe_layers: Optional[str] = field(
        default=None,
        metadata={"help": "encoder layers that get an MoE block: a comma list from 1, or none; default: the middle"},
    )
    decoder_moe_layers: Optional[str] = field(
        default=None,
        metadata={"help": "decoder layers that get an MoE block: a comma list from 1, or none; default: the middle"},
    )
    moe_freq: int = field(
        default=0,
        metadata={"help": "put an MoE block on every n-th layer of encoder and decoder, instead of naming the layers"},
    )
    moec_layout: ChoiceEnum(list(LAYOUTS)) = field(  # type: ignore[valid-type]
        default="inserted",
        metadata={"help": "MoE block inserted after the layer, or in the place of the layer's feed-forward block"},
    )
    moec_router: ChoiceEnum(list(SCORES)) = field(  # type: ignore[valid-type]
        default="cosine", metadata={"help": "score of a token and an expert"}
    )
    moec_router_dim: int = field(
        default=32, metadata={"help": "dimension of the low-rank router; 0: model dimension, without reduction"}
    )
    moe_gating_use_fp32: bool = field(
        default=True, metadata={"help": "do the routing arithmetic in float32 whatever the model's dtype (default)"}
    )
    moec_sublayers: int = field(default=3, metadata={"help": "residual feed-forward blocks in an expert"})
    moec_expert_ffn_embed_dim: int = field(
        default=0, metadata={"help": "hidden dimension of the experts; 0: that of encoder or decoder"}
    )
    moe_capacity_factor: float = field(
        default=2.0,
        metadata={"help": "while training an expert takes at most this many times the tokens of the local batch"},
    )
    moec_expert_dropout: float = field(
        default=0.5, metadata={"help": "share of the experts of every cluster that is switched off while training"}
    )
    moec_expert_dropout_interval: int = field(
        default=250, metadata={"help": "number of updates after which the dropped experts are drawn anew"}
    )
    moec_expert_dropout_scope: ChoiceEnum(list(SCOPES)) = field(  # type: ignore[valid-type]
        default="cluster", metadata={"help": "drop inside each cluster, or over all experts at once (ablation)"}
    )
    moec_dispatch: ChoiceEnum(list(DISPATCHERS)) = field(  # type: ignore[valid-type]
        default="exact",
        metadata={
            "help": "how tokens reach the experts of other processes: all of them, or at most the capacity in messages "
            "of equal size"
        },
    )
    moec_evaluation: ChoiceEnum(["gathered", "exchanged"]) = field(  # type: ignore[valid-type]  # noqa: F821
        default="gathered",
        metadata={
            "help": "where the experts of several processes are at evaluation: all in every process, or, where their "
            "memory is too small for that, where they are in training (no --eval-bleu then)"
        },
    )
    moec_token_shuffle: bool = field(
        default=False,
        metadata={
            "help": "send tokens to random processes before they are routed, which breaks up batches of like tokens"
        },
    )
    seed: int = II("common.seed")

    def kept_layers(self) -> dict[str, list[int]]:
        """Return the layers of encoder and decoder that pruning (``encoder_layers_to_keep``) leaves, from 0.

        Raises:
            ValueError: layers that do not exist or repeat.
        """
        return {
            side: kept_layers(getattr(self, f"{side}_layers_to_keep"), getattr(self, f"{side}_layers"), side)
            for side in ("encoder", "decoder")
        }

    def transformer_config(self) -> Any:
        """Return fairseq's nested configuration of the Transformer around the MoE blocks, with the layers it keeps.

        Raises:
            ValueError: layers to keep that do not exist or repeat.
        """
        flat = Namespace(**{f.name: getattr(self, f.name) for f in fields(FlatTransformerConfig)})
        for name, other in FOLLOWS.items():
            if getattr(flat, name) is None:
                setattr(flat, name, getattr(flat, other))
        for side, kept in self.kept_layers().items():
            setattr(flat, f"{side}_layers", len(kept))
            setattr(flat, f"{side}_layers_to_keep", None)
        # set in training on several ranks (see compat), where fairseq's decoder would add BASE layers
        flat.base_layers = 0
        return TransformerConfig.from_namespace(flat)


def add_options(parser: ArgumentParser) -> None:
    """Add the options to fairseq's parser, without defaults, so that those of the architecture hold."""
    # fairseq would turn a switch that is on by default into one that switches off, so this one is added here
    parser.add_argument(
        "--moe-gating-use-fp32",
        action=BooleanOptionalAction,
        help="do the routing arithmetic in float32 whatever the model's dtype (default)",
    )
    gen_parser_from_dataclass(parser, MoECTransformerConfig(), delete_default=True)
