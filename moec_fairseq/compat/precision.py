"""Workarounds for mixed and half precision."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import wraps
from importlib.util import find_spec
from typing import Any

import torch
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import Tensor


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


def bf16_without_tpu(override_module_args: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``--bf16`` and ``--memory-efficient-bf16`` mean bfloat16 on the device that there is.

    Reason: fairseq's command line takes them for the wish for a TPU, on a machine with a GPU, too, and stops with an
    AttributeError about ``xla_device`` where torch_xla is not installed.
    """

    @wraps(override_module_args)
    def override(args: Any) -> Any:
        if getattr(args, "bf16", False) and find_spec("torch_xla") is None:
            args.tpu = False
        return override_module_args(args)

    return override


def half_if_memory_efficient(init: Callable[..., None]) -> Callable[..., None]:
    """Let ``common.memory_efficient_bf16`` switch on bfloat16, and ``…_fp16`` float16.

    Reason: fairseq's own help says so, but only its command line does it; ``fairseq-hydra-train`` trains in float32
    without a word. (float16 is for GPUs: the same YAML file trains in float32 on a CPU, as scripts/train.sh has it.)
    """

    @wraps(init)
    def switched(trainer: Any, cfg: Any, *args: Any, **kwargs: Any) -> None:
        cfg.common.bf16 |= cfg.common.memory_efficient_bf16
        cfg.common.fp16 |= cfg.common.memory_efficient_fp16 and not cfg.common.cpu
        init(trainer, cfg, *args, **kwargs)

    return switched


def save_full_precision(state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Save parameters as the optimizer has them.

    Reason: with ``--bf16`` the optimizer keeps a copy of each parameter in float32, of which the model has the rounded
    value. fairseq saves the rounded ones (in float32), and a training that is started again goes on from those, with
    all parameters rounded to two or three digits, not as if it had never stopped.
    """

    @wraps(state_dict)
    def state(trainer: Any) -> Any:
        saved = state_dict(trainer)
        copies = {id(parameter): copy.data for parameter, copy in _copies(trainer.optimizer)}
        for name, parameter in trainer.get_model().state_dict(keep_vars=True).items():
            if id(parameter) in copies:
                saved["model"][name] = copies[id(parameter)]
        return saved

    return state


def _copies(optimizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield parameters and the copies in float32 that the optimizer keeps of them, each apart from the others."""
    if isinstance(optimizer, FP16Optimizer) and not optimizer.has_flat_params:
        yield from zip(optimizer.fp16_params, optimizer.fp32_params, strict=True)


def keep_full_precision(load_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    """Note what was loaded, until the optimizer's copies are made (see ``save_full_precision``)."""

    @wraps(load_state_dict)
    def load(model: Any, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        result = load_state_dict(model, state_dict, *args, **kwargs)
        for name, parameter in model.state_dict(keep_vars=True).items():
            if isinstance(parameter, torch.nn.Parameter) and parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.loaded = state_dict.get(name)  # type: ignore[attr-defined]
        return result

    return load


def copy_full_precision(build_optimizer: Callable[..., None]) -> Callable[..., None]:
    """Make the optimizer's copies of what was loaded (see ``save_full_precision``)."""

    @wraps(build_optimizer)
    def build(trainer: Any) -> None:
        build_optimizer(trainer)
        copies = {id(parameter): copy.data for parameter, copy in _copies(trainer.optimizer)}
        for parameter in trainer.get_model().parameters():
            loaded, copy = vars(parameter).pop("loaded", None), copies.get(id(parameter))
            # unless the parameter has changed since
            if loaded is not None and copy is not None and torch.equal(loaded.to(parameter), parameter.data):
                copy.copy_(loaded)

    return build
