"""Registers the MoEC criterions with fairseq."""

from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyCriterion
from moec_fairseq.criterions.moec_masked_lm import MoECMaskedLmCriterion
from moec_fairseq.criterions.moec_sentence_prediction import MoECSentencePredictionCriterion

__all__ = [
    "MoECLabelSmoothedCrossEntropyCriterion",
    "MoECMaskedLmCriterion",
    "MoECSentencePredictionCriterion",
]
