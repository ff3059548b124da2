"""MoEC RoBERTa: fairseq's RoBERTa with MoE blocks in some layers of its encoder."""

from argparse import ArgumentParser, Namespace
from typing import Any

from fairseq.models import register_model
from fairseq.models.roberta.model import RobertaModel

from moec_fairseq.models.config import MoECRobertaConfig, add_options
from moec_fairseq.models.moe_model import MoEModel
from moec_fairseq.models.placement import kept_layers

NAME = "moec_roberta"


@register_model(NAME, dataclass=MoECRobertaConfig)
class MoECRobertaModel(MoEModel, RobertaModel):
    """RoBERTa with MoE blocks whose experts form clusters (Xie et al., AAAI 2023, section 4.3).

    The layers are initialised as in BERT. Experts keep their own initialisation: W2 = 0 makes a new block the identity,
    and the scale of W1, 1/√(3D), is BERT's 0.02 at the size of RoBERTa base.
    """

    stacks = {"encoder": "encoder.sentence_encoder"}
    criterions = "moec_masked_lm or moec_sentence_prediction"

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Add the options of the model to fairseq's parser."""
        add_options(parser, MoECRobertaConfig())

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "MoECRobertaModel":
        """Build RoBERTa, then put the MoE blocks in their layers.

        Raises:
            ValueError: option values that do not exist or do not fit together.
        """
        config = MoECRobertaConfig(**{key: cfg[key] for key in cfg if key != "_name"})
        options = config.completed()
        if options.max_positions is None:
            options.max_positions = task.max_positions()
        args = Namespace(**vars(options))
        kept = kept_layers(options.encoder_layers_to_keep, options.encoder_layers, "encoder")
        args.encoder_layers, args.encoder_layers_to_keep = len(kept), None
        model: MoECRobertaModel = super().build_model(args, task)
        model.give_experts(options, {"encoder": kept}, task)
        model.options = {name: value for name, value in vars(options).items() if getattr(config, name, "") is None}
        return model
