"""Registers the MoEC criterion with fairseq."""

from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyCriterion

__all__ = ["MoECLabelSmoothedCrossEntropyCriterion"]
