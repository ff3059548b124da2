"""Optimizers, registered with fairseq."""

from moec_fairseq.optim import fused_adam as fused_adam
