"""Workarounds for what one process computes: whole data, the encoder, mixed precision, the search for NaN."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from typing import Any

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer

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


def attention_of_products() -> Any:
    """Return a context in which attention is computed from products of matrices.

    Reason: on a CPU without units for bfloat16 matrices, the way back through torch's own attention takes eight times
    as long in bfloat16 as in float32, more than all that mixed precision wins.
    """
    choices: Any = getattr(torch.nn, "attention", None)
    if not hasattr(choices, "sdpa_kernel"):  # torch < 2.3
        return nullcontext()
    return choices.sdpa_kernel(choices.SDPBackend.MATH)


def amp_on_cpu(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``--amp`` work on a CPU, too: forward passes of training in mixed precision, with bfloat16.

    Reason: fairseq asks for the mixed precision of CUDA, whatever the device; on a CPU the option does nothing.
    bfloat16 has the range of float32, so the loss is not scaled.
    """

    @wraps(train_step)
    def step(task: Any, sample: Any, model: Any, criterion: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        def in_bfloat16(*inputs: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16), attention_of_products():
                return criterion(*inputs)

        mixed = isinstance(optimizer, AMPOptimizer) and next(model.parameters()).device.type == "cpu"
        return train_step(task, sample, model, in_bfloat16 if mixed else criterion, optimizer, *args, **kwargs)

    return step


def look_for_nan_forward(init: Callable[..., None]) -> Callable[..., None]:
    """Let fairseq's search for the module that makes NaN look at forward passes only.

    Reason: its backward hooks fail under torch ≥ 2 on any Transformer, whose encoder returns a dictionary of lists
    (StopIteration), and that error hides the real one.
    """

    @wraps(init)
    def forward_only(detector: Any, model: Any, forward: bool = True, backward: bool = True) -> None:
        init(detector, model, forward, backward=False)

    return forward_only
