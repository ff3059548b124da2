"""The ways to compute the feed-forward blocks of many experts, and which one is taken where."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moec_fairseq.moe.feed_forward import Activation, loop
from moec_fairseq.moe.grouped import grouped
from moec_fairseq.moe.padded import padded, padding_pays
from moec_fairseq.moe.segments import Segments
from moec_fairseq.moe.torch_features import HAS_GROUPED_MM

Way = Callable[[Activation, Tensor, Segments, Sequence[Tensor], Tensor | None], Tensor]

WAYS: dict[str, Way] = {"loop": loop, "padded": padded, "grouped": grouped}

# Compute capability -> dtypes for which torch's grouped products are one kernel; for others they are a loop over
# experts that waits for the device.
FAST_GROUPED_MM = {(9, 0): (torch.bfloat16,)}
SIZE_MULTIPLE = 8  # it reads rows of whole 16 bytes
MAX_GROUPS = 1023  # it has a thread for each, in one block


@dataclass(frozen=True)
class Work:
    """What is to be computed, and where.

    Attributes:
        device_type: ``cpu``, ``cuda``, …
        capability: compute capability of a CUDA device.
        dtype: of the products.
        experts: N.
        dim: D.
        ffn_dim: F.
        has_grouped_mm: whether this torch has grouped products for CUDA.
    """

    device_type: str
    capability: tuple[int, int] | None
    dtype: torch.dtype
    experts: int
    dim: int
    ffn_dim: int
    has_grouped_mm: bool = HAS_GROUPED_MM

    @classmethod
    def of(cls, w1_NFD: Tensor) -> "Work":
        """Return the work with these weights."""
        device = w1_NFD.device
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
        experts, ffn_dim, dim = w1_NFD.shape
        return cls(device.type, capability, w1_NFD.dtype, experts, dim, ffn_dim)


def _grouped_is_fast(work: Work) -> bool:
    return (
        work.has_grouped_mm
        and work.capability is not None
        and work.dtype in FAST_GROUPED_MM.get(work.capability, ())
        and work.dim % SIZE_MULTIPLE == work.ffn_dim % SIZE_MULTIPLE == 0
        and work.experts <= MAX_GROUPS
    )


def choose(work: Work, segments: Segments) -> str:
    """Return the name of the way to compute this; only ``padded`` and ``loop`` read counts on the host."""
    if work.device_type == "cpu":
        return "loop"
    if _grouped_is_fast(work):
        return "grouped"
    return "padded" if padding_pays(segments.counts, work.dim, work.ffn_dim, work.dtype) else "loop"
