"""The MoEC Transformer: fairseq's Transformer with MoE blocks in some layers."""

from argparse import ArgumentParser
from typing import Any

from fairseq.models import register_model
from fairseq.models.transformer import TransformerModelBase

from moec_fairseq.models.config import MoECTransformerConfig, add_options
from moec_fairseq.models.moe_model import MoEModel

NAME = "moec_transformer"


@register_model(NAME, dataclass=MoECTransformerConfig)
class MoECTransformerModel(MoEModel, TransformerModelBase):
    """Transformer with MoE blocks whose experts form clusters (Xie et al., AAAI 2023, arXiv 2207.09094)."""

    stacks = {"encoder": "encoder", "decoder": "decoder"}
    criterions = "moec_label_smoothed_cross_entropy"
    origins = "moec_transformer or transformer"

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the options of the model to fairseq's parser."""
        add_options(parser, MoECTransformerConfig())

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MoECTransformerModel":
        """Build the Transformer, then put the MoE blocks in their layers.

        Raises:
            ValueError: option values that do not exist or do not fit together.
        """
        config = MoECTransformerConfig(**{key: cfg[key] for key in cfg if key != "_name"})
        model: MoECTransformerModel = super().build_model(config.transformer_config(), task)
        model.give_experts(config, config.kept_layers(), task)
        return model
