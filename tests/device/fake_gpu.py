"""A device "gpu" that computes on the CPU, and notes what would make the host wait, or fail, on a real GPU.

It is one of torch's Python back-ends (PrivateUse1). What waits and what fails is a list made by hand from the sources
of torch's CUDA kernels; a real GPU has the last word (``moec bench gpu``).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_stack
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE, CPU = "gpu", torch.device("cpu")
# CUDA kernels that read a result on the host
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique_dim", "_unique2", "equal", "is_nonzero",
}  # fmt: skip
# views, allocation, metadata: no kernel
FREE = {
    "view", "_unsafe_view", "t", "transpose", "select", "slice", "detach", "alias", "expand", "unsqueeze", "squeeze",
    "permute", "as_strided", "split", "split_with_sizes", "unbind", "empty", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "lift_fresh", "unfold", "diagonal", "chunk", "_reshape_alias", "set_", "resize_",
}  # fmt: skip
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def is_autocast_available(self) -> bool:
        return True


class FakeTensor(torch.Tensor):
    """A tensor on the fake device, which holds one on the CPU."""

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> "FakeTensor":
        self = torch.Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(), dtype=on_cpu.dtype,
            device=f"{DEVICE}:0",
        )  # fmt: skip
        self.on_cpu = on_cpu
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    args_on_cpu, kwargs_on_cpu = tree_map(lambda t: t.on_cpu if isinstance(t, FakeTensor) else t, (args, kwargs))
    to = kwargs_on_cpu.get("device")
    if to is not None:
        kwargs_on_cpu["device"] = CPU
    result = func(*args_on_cpu, **kwargs_on_cpu)
    if to is not None and torch.device(to).type == "cpu":
        return result  # from the device to the host
    on_device = tree_map(
        lambda t: FakeTensor(t) if isinstance(t, torch.Tensor) and not isinstance(t, FakeTensor) else t, result
    )
    return return_and_correct_aliasing(func, args, kwargs, on_device)


def _place() -> str:
    """Return the file and function of ours or of fairseq that has started the current operation."""
    for frame in reversed(extract_stack()):
        for package in ("moec_fairseq", "fairseq"):
            if f"/{package}/" in frame.filename and "/tests/" not in frame.filename:
                return f"{package}/{frame.filename.rpartition(f'/{package}/')[2]}:{frame.name}"
    return "autograd"


class Watch(TorchDispatchMode):
    """Counts, by what and where, while ``on``.

    Attributes:
        waits: where the host waits for the device.
        mixed: operations on tensors of the device and of the host.
        failing: operations whose dtypes CUDA rejects.
        kernels: launches, by operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on = False
        self.waits: Counter[tuple[str, str]] = Counter()
        self.mixed: Counter[tuple[str, str]] = Counter()
        self.failing: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Count in this context."""
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        here = [t for t in tensors if isinstance(t, FakeTensor)]
        to = kwargs.get("device")
        to = None if to is None else torch.device(to).type
        if not here and to != DEVICE:
            return func(*args, **kwargs)
        if self.on:
            name = func._schema.name.split("::")[1]
            self._note_waits(name, args, kwargs, tensors, here, to)
            self._note_dtypes(name, args, here)
            self.kernels[name] += name not in FREE
        return _compute(func, args, kwargs)

    def _note_waits(self, name: str, args: Any, kwargs: Any, tensors: Any, here: Any, to: str | None) -> None:
        host = [t for t in tensors if not isinstance(t, FakeTensor)]
        crosses = (
            name == "copy_" and host and here or name == "_to_copy" and to not in (None, DEVICE if here else "cpu")
        )
        if crosses:
            self.waits["copy", _place()] += 1
        elif any(t.dim() for t in host):
            self.mixed[name, _place()] += 1
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        by_mask = any(isinstance(t, torch.Tensor) and t.dtype in (torch.bool, torch.uint8) for t in masks)
        unknown_size = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or by_mask or unknown_size:
            self.waits[name, _place()] += 1

    def _note_dtypes(self, name: str, args: Any, here: Any) -> None:
        if name == "native_layer_norm":
            dtypes = {t.dtype for t in (args[0], *args[2:4]) if t is not None}
        elif name == "native_layer_norm_backward":
            dtypes = {t.dtype for t in (args[0], args[1], args[5]) if t is not None}
        elif name in PRODUCTS:
            dtypes = {t.dtype for t in here if t.is_floating_point()}
        else:
            return
        if len(dtypes) > 1:
            self.failing[f"{name} of {', '.join(sorted(map(str, dtypes)))}", _place()] += 1


class Factories(TorchFunctionMode):
    """``torch.tensor``, ``new_tensor`` and ``tolist`` bypass dispatch modes: each is a host tensor and a copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None and torch.device(kwargs["device"]).type == DEVICE:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor and isinstance(args[0], FakeTensor):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        if func is torch.Tensor.tolist and isinstance(args[0], FakeTensor):
            return args[0].detach().to("cpu").tolist()
        return func(*args, **kwargs)


def autocast_as_cuda() -> list[torch.library.Library]:
    """Let autocast on the device do what it does on CUDA, for the operations of a Transformer; keep the result."""
    rest = torch.library.Library("_", "IMPL")
    rest.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    without = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def register(name: str, dtype: torch.dtype | None) -> None:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def cast(*args: Any, **kwargs: Any) -> Any:
            to = dtype or torch.get_autocast_dtype(DEVICE)

            def converted(t: Any) -> Any:
                is_here = isinstance(t, torch.Tensor) and t.is_floating_point() and t.device.type == DEVICE
                return t.to(to) if is_here else t

            with torch._C._ExcludeDispatchKeyGuard(without):
                return operation(*tree_map(converted, args), **tree_map(converted, kwargs))

        aten.impl(name, cast, "AutocastPrivateUse1")

    for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul"):
        register(name, None)
    for name in ("layer_norm", "softmax.int", "log_softmax.int"):
        register(name, torch.float32)
    return [rest, aten]


def set_up() -> list[torch.library.Library]:
    """Make the device; keep the result as long as it is used."""
    _setup_privateuseone_for_python_backend(DEVICE, _Module())
    return autocast_as_cuda()
