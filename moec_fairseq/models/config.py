"""Options of the MoEC models: fairseq's, and those of the MoE blocks."""

from argparse import SUPPRESS, ArgumentParser, BooleanOptionalAction, Namespace
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models.roberta.model import RobertaModel, base_architecture
from fairseq.models.transformer import TransformerConfig
from omegaconf import II

from moec_fairseq.checkpoint.state import saved_options
from moec_fairseq.models.layers import LAYOUTS
from moec_fairseq.models.placement import kept_layers
from moec_fairseq.moe.exchange import DISPATCHERS
from moec_fairseq.moe.expert_dropout import SCOPES
from moec_fairseq.moe.router import SCORES

# sizes that default to those of another option, as in fairseq's base_architecture
FOLLOWS = {
    "decoder_embed_dim": "encoder_embed_dim",
    "decoder_ffn_embed_dim": "encoder_ffn_embed_dim",
    "decoder_input_dim": "decoder_embed_dim",
    "decoder_output_dim": "decoder_embed_dim",
}


def _flat_fields() -> list[tuple[str, Any, Any]]:
    """Flatten fairseq's nested TransformerConfig: ``encoder.layers`` becomes ``encoder_layers``."""
    flat = []
    for outer in fields(TransformerConfig()):
        if outer.name.startswith("_"):
            continue
        value = getattr(TransformerConfig(), outer.name)
        # a nested group is a class in fairseq 0.12.2, an object later
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
                kind = Any  # declared as a list in fairseq, but read as a string
            flat.append((name, kind, field(default=default, metadata=dict(inner.metadata))))
    return flat


# fairseq's command line cannot read nested options, its hydra entry point no legacy ones; both read flat ones.
FlatTransformerConfig: Any = make_dataclass("FlatTransformerConfig", _flat_fields(), bases=(FairseqDataclass,))


@dataclass
class MoEOptions(FairseqDataclass):
    """Options of the MoE blocks, in every model."""

    moe_expert_count: int = field(
        default=8,
        metadata={"help": "experts per MoE layer; 0: no MoE layers; 1: dense layers of the same active size"},
    )
    moec_cluster_count: int = field(default=2, metadata={"help": "clusters of experts per MoE layer"})
    encoder_moe_layers: Optional[str] = field(
        default=None,
        metadata={"help": "encoder layers with an MoE block: numbers from 1, or none (default: the middle layer)"},
    )
    moe_freq: int = field(
        default=0,
        metadata={"help": "put an MoE block on every n-th layer of each stack, instead of listing the layers"},
    )
    moec_layout: ChoiceEnum(list(LAYOUTS)) = field(  # type: ignore[valid-type]
        default="inserted",
        metadata={"help": "whether MoE blocks are inserted after a layer or replace its feed-forward block"},
    )
    moec_router: ChoiceEnum(list(SCORES)) = field(  # type: ignore[valid-type]
        default="cosine", metadata={"help": "score of a token and an expert embedding"}
    )
    moec_router_dim: int = field(
        default=32, metadata={"help": "dimension of the low-rank router; 0: the model dimension, without projection"}
    )
    moe_gating_use_fp32: bool = field(
        default=True, metadata={"help": "compute the routing in float32 whatever the model's dtype (default)"}
    )
    moec_sublayers: int = field(default=3, metadata={"help": "residual feed-forward blocks per expert"})
    moec_expert_ffn_embed_dim: int = field(
        default=0, metadata={"help": "hidden dimension of the experts; 0: that of the encoder or decoder"}
    )
    moec_expert_norm: ChoiceEnum(["layer", "none"]) = field(  # type: ignore[valid-type]  # noqa: F821
        default="layer",
        metadata={
            "help": "LayerNorm in the blocks of experts, or none: with --moec-layout replaced, a block is then that of "
            "a dense Transformer, as moec checkpoint upcycle makes it"
        },
    )
    moec_activation_dropout: float = field(
        default=0.0, metadata={"help": "dropout after the activation inside the experts"}
    )
    moe_capacity_factor: float = field(
        default=2.0,
        metadata={"help": "in training, an expert takes at most this many times the tokens of the local batch"},
    )
    moec_expert_dropout: float = field(
        default=0.5, metadata={"help": "fraction of the experts of each cluster that is dropped in training"}
    )
    moec_expert_dropout_interval: int = field(
        default=250, metadata={"help": "number of updates after which the dropped experts are redrawn"}
    )
    moec_expert_dropout_scope: ChoiceEnum(list(SCOPES)) = field(  # type: ignore[valid-type]
        default="cluster", metadata={"help": "drop experts within each cluster, or among all experts (ablation)"}
    )
    moec_dispatch: ChoiceEnum(list(DISPATCHERS)) = field(  # type: ignore[valid-type]
        default="exact",
        metadata={
            "help": "how tokens reach the experts of other processes: all tokens (exact), or at most the capacity, in "
            "messages of equal size"
        },
    )
    moec_evaluation: ChoiceEnum(["gathered", "exchanged"]) = field(  # type: ignore[valid-type]  # noqa: F821
        default="gathered",
        metadata={
            "help": "experts of several processes at evaluation: gathered in every process, or, if memory is too small "
            "for that, left where they are in training (excludes --eval-bleu)"
        },
    )
    moec_token_shuffle: bool = field(
        default=False,
        metadata={
            "help": "send tokens to random processes before they are routed, which breaks up batches of similar tokens"
        },
    )
    seed: int = II("common.seed")


@dataclass
class MoECTransformerConfig(MoEOptions, FlatTransformerConfig):
    """fairseq's Transformer options, and those of the MoE blocks."""

    decoder_moe_layers: Optional[str] = field(
        default=None,
        metadata={"help": "decoder layers with an MoE block: numbers from 1, or none (default: the middle layer)"},
    )

    def kept_layers(self) -> dict[str, list[int]]:
        """Return the layers of encoder and decoder that pruning (``encoder_layers_to_keep``) keeps, from 0.

        Raises:
            ValueError: layers that do not exist or repeat.
        """
        return {
            side: kept_layers(getattr(self, f"{side}_layers_to_keep"), getattr(self, f"{side}_layers"), side)
            for side in ("encoder", "decoder")
        }

    def transformer_config(self) -> Any:
        """Return fairseq's nested configuration of the Transformer without MoE blocks, reduced to the layers to keep.

        Raises:
            ValueError: layers to keep that do not exist or repeat; options that fairseq's translation models have in
                name only.
        """
        for option in ("adaptive_input", "tie_adaptive_weights", "tie_adaptive_proj"):
            if getattr(self, option):
                raise ValueError(
                    f"--{option.replace('_', '-')} is for language models, fairseq's translation models have no "
                    "adaptive input; leave it out (--adaptive-softmax-cutoff works without it)."
                )
        flat = Namespace(**{f.name: getattr(self, f.name) for f in fields(FlatTransformerConfig)})
        for name, other in FOLLOWS.items():
            if getattr(flat, name) is None:
                setattr(flat, name, getattr(flat, other))
        for side, kept in self.kept_layers().items():
            setattr(flat, f"{side}_layers", len(kept))
            setattr(flat, f"{side}_layers_to_keep", None)
        # set when training on several ranks (see compat); fairseq's decoder would add BASE layers
        flat.base_layers = 0
        return TransformerConfig.from_namespace(flat)


def _roberta_parser() -> ArgumentParser:
    parser = ArgumentParser(add_help=False, argument_default=SUPPRESS)  # as fairseq's
    RobertaModel.add_args(parser)
    return parser


def _roberta_fields() -> list[tuple[str, Any, Any]]:
    """Return the options of fairseq's RoBERTa, which it adds to a parser, and of the MoE blocks; None: not given."""
    found = []
    for action in _roberta_parser()._actions:
        kind: Any = bool if action.const is True else ChoiceEnum(action.choices) if action.choices else action.type
        found.append((action.dest, Optional[kind or str], action.help))
    found += [(f.name, Optional[f.type], f.metadata["help"]) for f in fields(MoEOptions) if "help" in f.metadata]
    return [(name, kind, field(default=None, metadata={"help": text})) for name, kind, text in found]


FlatRobertaConfig: Any = make_dataclass("FlatRobertaConfig", _roberta_fields(), bases=(FairseqDataclass,))


@dataclass
class MoECRobertaConfig(FlatRobertaConfig):
    """fairseq's RoBERTa options, and those of the MoE blocks.

    An option that is not given has the value of the checkpoint that training starts from, or else its default.
    """

    base_layers: int = 0  # set when training on several ranks (see compat)
    seed: int = II("common.seed")
    finetune_from_model: Optional[str] = II("checkpoint.finetune_from_model")
    restore_file: Optional[str] = II("checkpoint.restore_file")

    def completed(self) -> Namespace:
        """Return the values of all options; ``max_positions`` may be None, for what the task says."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        defaults = vars(_roberta_parser().parse_args([]))
        defaults |= {f.name: f.default for f in fields(MoEOptions) if f.name in given}
        start = self.finetune_from_model if self.restore_file in (None, "checkpoint_last.pt") else self.restore_file
        saved = {name: value for name, value in saved_options(start).items() if name in given}
        completed = Namespace()
        for values in (given, saved, defaults):
            for name, value in values.items():
                if value is not None and not hasattr(completed, name):
                    setattr(completed, name, value)
        base_architecture(completed)
        for name in given.keys() - vars(completed).keys():
            setattr(completed, name, None)
        return completed


def add_options(parser: ArgumentParser, config: FairseqDataclass) -> None:
    """Add the options to fairseq's parser, without defaults, so that those of the architecture apply."""
    # fairseq would turn a flag that is on by default into one that disables, so this one is added here
    parser.add_argument(
        "--moe-gating-use-fp32",
        action=BooleanOptionalAction,
        help="compute the routing in float32 whatever the model's dtype (default)",
    )
    gen_parser_from_dataclass(parser, config, delete_default=True)
