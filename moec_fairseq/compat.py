"""Every workaround for fairseq and torch versions, each with its reason. Importing applies the global ones."""

import argparse
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from fairseq.data import data_utils

Batches = Callable[..., list[Any]]


def allow_fairseq_checkpoints() -> None:
    """Let torch's safe loader read fairseq checkpoints.

    Reason: a fairseq checkpoint holds an ``argparse.Namespace``, and after ``--eval-bleu`` numpy arrays; torch ≥ 2.6
    loads with ``weights_only=True`` and refuses them. Naming these keeps loading safe, where ``weights_only=False``
    would let a checkpoint run code.
    """
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)  # torch < 2.5 has none and needs none
    if add_safe_globals is not None:
        # the functions that numpy's pickles name have moved between its versions
        array, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
        dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
        add_safe_globals([argparse.Namespace, array, scalar, np.ndarray, np.dtype, *dtypes])


def keep_last_batch(batch_by_size: Batches) -> Batches:
    """Make fairseq's batching return every sentence.

    Reason: fairseq-fixed leaves out the last batch where its number of sentences is no multiple of
    ``--required-batch-size-multiple`` (8 by default), also at validation and generation, without a word: translations
    are missing, and scores are those of fewer sentences. fairseq 0.12.2 keeps it.
    """

    @wraps(batch_by_size)
    def all_batches(indices: Sequence[int], *args: Any, **kwargs: Any) -> list[Any]:
        batches = list(batch_by_size(indices, *args, **kwargs))
        kept = sum(len(batch) for batch in batches)
        return [*batches, indices[kept:]] if kept < len(indices) else batches

    return all_batches


def disable_fused_encoder(encoder: Any) -> None:
    """Make the encoder of fairseq 0.12.2 compute step by step at evaluation.

    Reason: its fused path knows no MoE block, and fails under torch ≥ 1.13 ("Mask Type should be defined").
    Later versions of fairseq have no such path.
    """
    for layer in encoder.layers:
        layer.can_use_fastpath = False


allow_fairseq_checkpoints()
data_utils.batch_by_size = keep_last_batch(data_utils.batch_by_size)
