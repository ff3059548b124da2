"""Models from the flags of fairseq-train, without all that fairseq does around them."""

from argparse import Namespace

from fairseq import options
from fairseq.models.transformer import TransformerModel

from moec_fairseq.models import MoECTransformerModel
from moec_fairseq.models.config import MoECTransformerConfig
from tests.batches import dictionary_of


def task_of():
    dictionary = dictionary_of("abcdefgh")
    return Namespace(source_dictionary=dictionary, target_dictionary=dictionary)


def parsed(arch, *flags):
    """Return what fairseq-train makes of the flags and the preset."""
    return options.parse_args_and_arch(options.get_training_parser(), input_args=["data", "--arch", arch, *flags])


def ours(arch, *flags, task=None):
    config = MoECTransformerConfig.from_namespace(parsed(arch, *flags))
    return MoECTransformerModel.build_model(vars(config) | {"seed": 1}, task or task_of())


def stock(arch, *flags, task=None):
    return TransformerModel.build_model(parsed(arch, *flags), task or task_of())
