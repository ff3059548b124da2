"""Count what a GPU would launch, on the CPU, and forbid what would make the host wait for it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# nothing but memory and shapes, and what only the host computes
FREE = {
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_unsafe_view", "_reshape_alias"),
    *("promote_types", "result_type", "scalar_tensor"),
}


def is_kernel(operator: Any) -> bool:
    """Whether an operator of aten computes, and is not just a view."""
    is_view = any(argument.alias_info and not argument.alias_info.is_write for argument in operator._schema.arguments)
    return not is_view and operator._schema.name.split("::")[1] not in FREE


class Kernels(TorchDispatchMode):
    """Counts kernels by name, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_kernel(operator):
            self.counts[operator._schema.name.split("::")[1]] += 1
        return operator(*args, **(kwargs or {}))


class NothingFromHost(TorchFunctionMode):
    """Rejects tensors made of values of the host, which a GPU waits for."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor), function
        return function(*args, **(kwargs or {}))


@contextmanager
def no_synchronisation() -> Iterator[torch.device]:
    """Yield a device whose tensors have no values: what reads one fails, and so does a copy from the host."""
    with NothingFromHost():
        yield torch.device("meta")
