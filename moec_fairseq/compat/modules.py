"""What single parts of fairseq do: LayerDrop, torch's DDP, gathering, adaptive softmax, amp, the search for NaN."""

from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fairseq.distributed import utils as distributed_utils
from fairseq.modules import AdaptiveSoftmax, LayerDropModuleList
from fairseq.nan_detector import NanDetector
from fairseq.utils import move_to_cpu
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_layers = LayerDropModuleList.__iter__
_get_log_prob = AdaptiveSoftmax.get_log_prob
_detect_nan = NanDetector.__init__


def seed_layer_drop(model: nn.Module, seed: int, update: int) -> None:
    """Make the layers that are dropped in an update a function of seed and update (see ``drop_same_layers``)."""
    stacks = [module for module in model.modules() if isinstance(module, LayerDropModuleList)]
    for number, stack in enumerate(stacks):
        # RandomState, because numpy promises never to change its stream; each forward pass takes the next draw
        stack.draws = np.random.RandomState([seed % 2**32, number, update])


def drop_same_layers(stack: Any) -> Iterator[nn.Module]:
    """Yield the layers that are not dropped, the same on all ranks (``--encoder-layerdrop``, ``--decoder-layerdrop``).

    Reason: fairseq draws them from torch's generator, whose state differs between ranks, as dropout draws from it for
    batches of different shapes. A rank that drops a layer with experts would leave the others waiting for its tokens
    forever.
    """
    if not stack.training or not hasattr(stack, "draws"):
        return _layers(stack)
    return compress(nn.ModuleList.__iter__(stack), stack.draws.random_sample(len(stack)) > stack.p)


def ddp_of_its_device(
    module: nn.Module, device_ids: Any = None, output_device: Any = None, **options: Any
) -> DistributedDataParallel:
    """Return torch's DistributedDataParallel of a module (``--ddp-backend pytorch_ddp``), on a CPU, too.

    Reason: fairseq names a GPU also where there is none, and torch refuses it ("device_ids and output_device arguments
    only work with single-device/multiple-device GPU modules").
    """
    if next(module.parameters()).device.type == "cpu":
        device_ids = output_device = None
    return DistributedDataParallel(module, device_ids, output_device, **options)


def gather_on_its_device(data: Any, group: Any = None, max_size: int = 16384) -> list[Any]:
    """Return what each process has given, by rank, also where there is no GPU, and of any size.

    Reason: logging outputs that cannot be added up, such as predictions, travel in a buffer on a GPU ("type
    torch.cuda.ByteTensor not available") of 16 KiB, which some 800 predictions of numbers fill.
    """
    values = [None] * distributed_utils.get_world_size(group)
    dist.all_gather_object(values, move_to_cpu(data), group)
    return values


def unscale_once(optimizer: Any) -> None:
    """Make an update with ``--amp``, with gradients that are divided by the loss scale once.

    Reason: clipping divides them, and torch's scaler notes so for torch's optimizer; but fairseq steps with its wrapper
    of that, for which nothing is noted, so that the scaler divides again. A gradient of 3.0 was used as 4.6e-5 with a
    scale of 65 536: Adam's ε was as much larger, and whether a gradient overflows was looked for in its remains.
    """
    optimizer.scaler.step(optimizer.optimizer)
    optimizer.scaler.update()


def train_adaptive_softmax(softmax: Any, input: Tensor, target: Tensor | None) -> Tensor:
    """Return the adaptive softmax's log-probabilities of all words, (B, L, V), so that they can be trained.

    Reason: fairseq's criterions other than ``adaptive_loss`` ask for all of them; fairseq adds the parts of a rare
    word's probability in place, and the backward pass fails ("modified by an inplace operation"). Nor does it apply
    ``--adaptive-softmax-dropout`` there. At least in float32, since losses are sums over the vocabulary.
    """
    if target is not None:  # who scores sentences wants the probabilities of their words only
        return _get_log_prob(softmax, input, target)

    def normalized(logits: Tensor) -> Tensor:
        return F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))

    hidden_TD = softmax.dropout_module(input.reshape(-1, input.shape[-1]))
    head = normalized(softmax.head(hidden_TD))
    frequent, *clusters = head.split([softmax.cutoff[0]] + [1] * len(softmax.tail), dim=1)
    rare = [cluster + normalized(tail(hidden_TD)) for cluster, tail in zip(clusters, softmax.tail, strict=True)]
    return torch.cat([frequent, *rare], dim=1).view(*input.shape[:-1], -1)


def detect_nan_forward(detector: Any, model: Any, forward: bool = True, backward: bool = True) -> None:
    """Let fairseq's search for the module that makes NaN look at forward passes only.

    Reason: its backward hooks fail under torch ≥ 2 on any Transformer, whose encoder returns a dictionary of lists
    (StopIteration), and that error hides the real one.
    """
    _detect_nan(detector, model, forward, backward=False)
