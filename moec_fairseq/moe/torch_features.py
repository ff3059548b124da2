"""What only some versions of torch have."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# Public from torch 2.10 on, private in 2.8 and 2.9. Builds for Windows lack the kernel; those for ROCm, whose devices
# report compute capabilities, too, have another one.
_GROUPED_MM: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
HAS_GROUPED_MM = _GROUPED_MM is not None and torch.version.cuda is not None and sys.platform == "linux"

# from torch 2.4 on, autocast is asked for a type of device
_AUTOCAST_BY_DEVICE = hasattr(torch, "get_autocast_dtype")


def grouped_mm(a: Tensor, b: Tensor, ends_N: Tensor) -> Tensor:
    """Return one matrix product for each group.

    Args:
        a: (A, K); with a two-dimensional b (M, A).
        b: (N, K, M), or (A, K).
        ends_N: end of each group in A, int32.

    Returns:
        (A, M), or (N, M, K).
    """
    return _GROUPED_MM(a, b, offs=ends_N)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype to which autocast converts the operands of products; None where it is off."""
    torch_: Any = torch
    if _AUTOCAST_BY_DEVICE:
        return torch_.get_autocast_dtype(device_type) if torch_.is_autocast_enabled(device_type) else None
    if device_type == "cpu":
        return torch_.get_autocast_cpu_dtype() if torch_.is_autocast_cpu_enabled() else None
    return torch_.get_autocast_gpu_dtype() if torch_.is_autocast_enabled() else None
