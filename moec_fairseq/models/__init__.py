"""Registers the MoEC models and their architectures with fairseq."""

from moec_fairseq.models import architectures as architectures
from moec_fairseq.models.moec_roberta import MoECRobertaModel
from moec_fairseq.models.moec_transformer import MoECTransformerModel

__all__ = ["MoECRobertaModel", "MoECTransformerModel"]
