"""Every workaround for fairseq and torch versions, each with its reason. Importing applies the global ones."""

import argparse
from typing import Any

import torch


def allow_fairseq_checkpoints() -> None:
    """Let torch's safe loader read fairseq checkpoints.

    Reason: a fairseq checkpoint holds an ``argparse.Namespace``; torch ≥ 2.6 loads with ``weights_only=True`` and
    refuses it. Naming that one class keeps loading safe, where ``weights_only=False`` would let a checkpoint run code.
    """
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)  # torch < 2.5 has none and needs none
    if add_safe_globals is not None:
        add_safe_globals([argparse.Namespace])


def disable_fused_encoder_layer(layer: Any) -> None:
    """Make an encoder layer of fairseq 0.12.2 compute step by step at evaluation.

    Reason: its fused path knows no MoE block, and fails under torch ≥ 1.13 ("Mask Type should be defined").
    Later versions of fairseq have no such path.
    """
    layer.can_use_fastpath = False


allow_fairseq_checkpoints()
