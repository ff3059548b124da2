"""Branches for versions: all that the oldest and the newest supported environments do differently.

====================================  =================================================================================
where                                 what differs, and the branch for it
====================================  =================================================================================
fairseq 0.12.2 (Python 3.10)          evaluates in a fused encoder that knows no MoE block: ``disable_fused_encoder``
fairseq 0.12.2                        loads no layer without feed-forward block: ``models.layers.ReplacedEncoderLayer``
fairseq 0.12.2                        does not say how long masked_lm's blocks are: ``models.moec_roberta``
fairseq 0.12.2                        keeps the batches of its first epoch: ``checkpoints.EpochBatches``
fairseq 0.12.2                        gives nested options as classes: ``models.config``
fairseq-fixed 0.12.3.1 (from 3.11)    leaves out the last batch: ``data.keep_last_batch``
hydra 1.0 (fairseq 0.12.2)            has ``compose`` in ``hydra.experimental``, and no ``++``: ``compose``, ``launch``
torch < 2.0                           has no context for tensors without memory: ``shapes_only``
torch < 2.1                           reads checkpoints at once, not as they are used: ``load_options``
torch < 2.3                           cannot choose how attention is computed: ``attention_as_matmul``
torch < 2.4                           asks for autocast by other names: ``moe.torch_features.autocast_dtype``
torch < 2.5                           cannot be told what a safe checkpoint may hold: ``load_options``
torch < 2.8, ROCm, Windows            has no fast grouped products: ``moe.torch_features.HAS_GROUPED_MM``
torch 1.13                            sends no bfloat16 by gloo: ``gloo_takes_bfloat16``
torch 1.13; on a CPU also < 2.4       has no fused Adam: ``FUSED_ADAMW``, ``FUSED_ADAMW_DEVICES``
numpy ≥ 1.24                          lacks names that fairseq uses: ``data.NumpyAsItWas``
Python < 3.10.12, < 3.11.4            does not filter archives by itself: ``untrusted.InsideTarFile`` takes effect above
====================================  =================================================================================
"""

import argparse
import inspect
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

try:
    from hydra import compose as compose
    from hydra import initialize_config_dir as initialize_config_dir
except ImportError:
    from hydra.experimental import compose as compose  # type: ignore[assignment]
    from hydra.experimental import initialize_config_dir as initialize_config_dir  # type: ignore[assignment]

HAS_MMAP = "mmap" in inspect.signature(torch.load).parameters
HAS_SAFE_GLOBALS = hasattr(torch.serialization, "add_safe_globals")
FUSED_ADAMW = getattr(torch, "_fused_adamw_", None)
# kinds of devices that it has a kernel for
FUSED_ADAMW_DEVICES = frozenset(
    device
    for device in ("cpu", "cuda")
    if FUSED_ADAMW and torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_adamw_", device.upper())
)
# parameters of an encoder layer itself, beside those of its parts, in fairseq 0.12.2
FUSED_WEIGHTS = {f"{part}_{kind}" for part in ("in_proj", "out_proj", "fc1", "fc2") for kind in ("weight", "bias")}


def allow_fairseq_checkpoints() -> None:
    """Let torch's safe loader read fairseq checkpoints.

    Reason: a fairseq checkpoint holds an ``argparse.Namespace``, and after ``--eval-bleu`` numpy arrays; torch ≥ 2.6
    loads with ``weights_only=True`` and refuses them. Naming these keeps loading safe, where ``weights_only=False``
    would let a checkpoint run code.
    """
    if HAS_SAFE_GLOBALS:
        # the functions that numpy's pickles name have moved between its versions
        functions: list[Any] = [np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]]
        dtypes = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
        torch.serialization.add_safe_globals([argparse.Namespace, *functions, np.ndarray, np.dtype, *dtypes])


def load_options(path: Path) -> dict[str, Any]:
    """Return how ``torch.load`` reads a checkpoint safely, and without its tensors in memory, where it can do so.

    Versions that cannot be told what a checkpoint of fairseq may hold load as fairseq does.
    """
    mapped = {"mmap": zipfile.is_zipfile(path)} if HAS_MMAP else {}
    return mapped | ({"weights_only": True} if HAS_SAFE_GLOBALS else {})


def shapes_only() -> Any:
    """Return a context in which new tensors have shape and device, but no values, and take no memory.

    torch 1.13 has none that is complete: there they are as always. (On the device ``meta``, fairseq cannot initialise
    RoBERTa, which is done on a CPU.)
    """
    if not hasattr(torch, "compile"):
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode  # which takes a second to import

    return FakeTensorMode(allow_non_fake_inputs=True)


def attention_as_matmul() -> Any:
    """Return a context in which attention is computed as plain matrix products.

    Reason: on a CPU without units for bfloat16 matrices, the backward pass of torch's own attention takes eight times
    as long in bfloat16 as in float32, more than all that mixed precision wins.
    """
    choices: Any = getattr(torch.nn, "attention", None)
    if not hasattr(choices, "sdpa_kernel"):
        return nullcontext()
    return choices.sdpa_kernel(choices.SDPBackend.MATH)


def gloo_takes_bfloat16() -> bool:
    """Whether this version of torch sends bfloat16 by gloo; all processes must ask together."""
    try:
        if dist.is_initialized():
            dist.all_reduce(torch.zeros(1, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


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
