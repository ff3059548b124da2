"""Workarounds for what one process computes: whole data, the encoder, the search for NaN."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

Batches = Callable[..., list[Any]]

FUSED_WEIGHTS = {
    f"{part}_{kind}" for part in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias")
}  # parameters of an encoder layer itself, beside those of its parts


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
    Later versions of fairseq have no such path. Its copies of the weights get no gradient, for which torch's
    DistributedDataParallel would wait.
    """
    for layer in encoder.layers:
        layer.can_use_fastpath = False
        for name, parameter in layer.named_parameters(recurse=False):
            parameter.requires_grad_(name not in FUSED_WEIGHTS)


def look_for_nan_forward(init: Callable[..., None]) -> Callable[..., None]:
    """Let fairseq's search for the module that makes NaN look at forward passes only.

    Reason: its backward hooks fail under torch ≥ 2 on any Transformer, whose encoder returns a dictionary of lists
    (StopIteration), and that error hides the real one.
    """

    @wraps(init)
    def forward_only(detector: Any, model: Any, forward: bool = True, backward: bool = True) -> None:
        init(detector, model, forward, backward=False)

    return forward_only
