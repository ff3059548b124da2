"""Fast matrix products of a few tokens with large weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The number of tokens of an expert varies from batch to batch; it is rounded up to this many significant bits.
SIGNIFICANT_BITS = 5


def _onednn_product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, None, "none", [], "")
    return result


def _onednn_works() -> bool:
    """Whether this torch has oneDNN's product of float32 matrices, a private operator, with the expected interface."""
    try:
        return torch.equal(_onednn_product(torch.ones(3, 2), torch.tensor([[1.0, 2.0]])), torch.full((3, 1), 3.0))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False


HAS_ONEDNN = _onednn_works()


def product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Return a·bᵀ, (M, N).

    torch computes float32 products on CPU with MKL, which first copies the weights into its own layout. With a few
    dozen tokens per expert that takes about as long as the product itself; oneDNN spends less time on it.
    """
    if HAS_ONEDNN and a_MK.dtype == b_NK.dtype == torch.float32 and a_MK.device.type == "cpu" and a_MK.numel():
        return _onednn_product(a_MK, b_NK)
    return a_MK @ b_NK.t()


def pad_for_products(x_MK: Tensor) -> Tensor:
    """Return x with rows of zeros appended, at most one per 16 rows, so that only a few values of M occur.

    On CPU oneDNN compiles code for every new shape, which takes 10 times as long as the product for one expert.
    """
    rows = x_MK.shape[0]
    step = 1 << max(rows.bit_length() - SIGNIFICANT_BITS, 0)
    missing = -rows % step if x_MK.device.type == "cpu" else 0
    return F.pad(x_MK, (0, 0, 0, missing)) if missing else x_MK
