"""Workarounds for what one process computes: whole data, the encoder, the search for NaN."""

from collections.abc import Callable, Sequence
from functools import wraps
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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


class NumpyAsItWas:
    """numpy with the names that fairseq uses and numpy no longer has, in place of ``np`` in fairseq's modules.

    Reason: ``np.int`` and ``np.float`` went with numpy 1.24, ``np.compat`` and the name ``interpolation`` later;
    without them ``--num-batch-buckets``, language models of whole sentences and decoders with a CRF fail.
    """

    int, float = int, float
    compat = SimpleNamespace(long=int)

    def __getattr__(self, name: str) -> Any:
        """Return what numpy still has."""
        return getattr(np, name)

    @staticmethod
    def percentile(values: Any, percents: Any, interpolation: str = "linear") -> Any:
        """Return ``np.percentile``, whose last argument has the same place in all versions, but another name."""
        compute: Any = np.percentile
        return compute(values, percents, None, None, False, interpolation)


def train_adaptive_softmax(get_log_prob: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the adaptive softmax's log-probabilities of all words, (B, L, V), so that they can be trained.

    Reason: fairseq's criterions other than ``adaptive_loss`` ask for all of them; it adds the parts of a rare word's
    probability in place, and the way back stops ("modified by an inplace operation"). Nor does it apply
    ``--adaptive-softmax-dropout`` there. At least in float32, since losses are sums over the vocabulary.
    """

    @wraps(get_log_prob)
    def log_probs(softmax: Any, input: Tensor, target: Tensor | None) -> Tensor:
        if target is not None:  # whoever scores sentences wants the probabilities of their words only
            return get_log_prob(softmax, input, target)

        def normalized(logits: Tensor) -> Tensor:
            return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

        hidden_TD = softmax.dropout_module(input.reshape(-1, input.shape[-1]))
        head = normalized(softmax.head(hidden_TD))
        frequent, *clusters = head.split([softmax.cutoff[0]] + [1] * len(softmax.tail), dim=1)
        rare = [cluster + normalized(tail(hidden_TD)) for cluster, tail in zip(clusters, softmax.tail, strict=True)]
        return torch.cat([frequent, *rare], dim=1).view(*input.shape[:-1], -1)

    return log_probs


def disable_fused_encoder(encoder: Any) -> None:
    """Make the encoder of fairseq 0.12.2 compute step by step at evaluation.

    Reason: its fused path knows no MoE block, and fails under torch ≥ 1.13 ("Mask Type should be defined").
    Later versions of fairseq have no such path. Its copies of the weights get no gradient, for which torch's
    DistributedDataParallel would wait.
    """
    for layer in encoder.layers.children():  # LayerDrop's own iterator leaves some out
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
