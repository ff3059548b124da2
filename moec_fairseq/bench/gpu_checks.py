"""Whether a GPU does what a CPU does, and how often its host waits for it: the parts of the gpu suite that check."""

import math
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from itertools import product
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import walk_stack

import torch
from fairseq.logging import metrics
from torch import Tensor
from torch.nn import functional as F

from moec_fairseq.bench.contenders import (
    GATE_LOSS_WEIGHT,
    Shape,
    computed_by,
    dense,
    moec_layer,
    training,
    with_gate_loss,
)
from moec_fairseq.bench.measure import FAILURES, kernels, problem_of, step
from moec_fairseq.bench.models import PRECISIONS, RECIPE, build, hardware, quiet, sparse, write_corpus
from moec_fairseq.bench.report import Found, Target
from moec_fairseq.bench.sizes import GpuSizes, ModelSizes
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.ways import WAYS
from moec_fairseq.util.processes import run_fairseq
from moec_fairseq.util.progress import history

MOST_WAITS = 2  # of ours in a training step, beside the log's; tests/device holds the same for each precision
MOST_WAITS_OF_LOG = 1
MOST_KERNELS = 120  # of a layer with losses and metrics, forward and backward
WARNING = "called a synchronizing CUDA operation"
OURS, THEIRS = "moec_fairseq/", "fairseq/"
LOGGING = ("reduce_metrics", "get_smoothed_values")  # of fairseq: what they call is for the log
# largest difference of a tensor from that of the CPU, relative to its norm
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
LAST_DIGIT = 1e-3  # of the losses that fairseq logs


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as ``bfloat16``."""
    return str(dtype).rpartition(".")[2]


def _place() -> str:
    """Return the file and function of ours or of fairseq that runs now, the innermost of those that called each other.

    The benchmark itself does not count. What no function in Python has called is autograd's.
    """
    places = [
        f"{frame.f_globals.get('__name__', '').replace('.', '/')}.py:{frame.f_code.co_name}"
        for frame, _ in walk_stack(sys._getframe(1))
    ]
    own = [place for place in places if place.startswith((OURS, THEIRS)) and not place.startswith(f"{OURS}bench/")]
    for_log = any(place.endswith(LOGGING) for place in places)
    return (own or ["autograd"])[0] + (" (log)" if for_log else "")


@contextmanager
def noted_waits() -> Iterator[Counter[str]]:
    """Count where the host waits for the GPU, by file and function; torch warns of it in this context."""
    waits: Counter[str] = Counter()

    def note(message: Warning | str, *_: object) -> None:
        if WARNING in str(message):
            waits[_place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


def synchronisations(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Count where the host waits in a training step: forward, backward, clipping, optimizer, log.

    Raises:
        RuntimeError: torch does not warn.
    """
    with noted_waits() as waits:
        torch.ones((), device=device).item()
    if not waits:
        raise RuntimeError("this torch does not warn when the host waits, so that nothing can be counted")
    of_log = 0
    for precision, options in PRECISIONS.items():
        with TemporaryDirectory() as folder:
            setup = build(Path(folder), (*sparse(8), "--optimizer", "fused_adam", *options), sizes.tiny, device)
        with quiet(), metrics.aggregate("train_inner"):
            for _ in range(3):  # what is made once is made here
                setup.trainer.train_step(setup.batches[:1])
            with noted_waits() as waits:
                setup.trainer.train_step(setup.batches[:1])
                metrics.get_smoothed_values("train_inner")
        ours = {place: count for place, count in waits.items() if place.startswith(OURS)}
        logged = sum(count for place, count in ours.items() if place.endswith("(log)"))
        yield Target(f"synchronisations of ours in a step, {precision}", sum(ours.values()) - logged, MOST_WAITS)
        of_log = max(of_log, logged)
        yield f"{precision}: {', '.join(f'{place} {n}' for place, n in waits.most_common()) or 'none'}"
    yield Target("synchronisations of ours for the log", of_log, MOST_WAITS_OF_LOG)


def kernel_counts(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Count the kernels of a layer, forward and backward, for two numbers of experts."""
    shape = Shape(sizes.dim, sizes.ffn_dim, sizes.tokens[1], device.type, torch.bfloat16)
    many, few = sizes.experts[:2]
    counts = {}
    for experts, way in product((few, many), (None, *WAYS)):
        contender = training(moec_layer(shape, experts), partial(in_way, way), shape)
        if problem := problem_of(contender):  # else, what is made once has been made
            yield f"{experts} experts, {way or 'chosen'}: {problem}"
        else:
            counts[experts, way] = kernels(contender)
    for experts in (few, many):
        yield Target(f"kernels of a layer, {experts} experts, bfloat16", counts[experts, None], MOST_KERNELS)
        by_way = (f"{way or 'chosen'} {count}" for (own, way), count in counts.items() if own == experts)
        yield f"{experts} experts: {', '.join(by_way)}"
    yield Target(f"kernels of {many} − of {few} experts", abs(counts[many, None] - counts[few, None]), 0)
    contender = dense(shape)
    step(contender)
    yield f"dense: {kernels(contender)}"


def in_way(way: str | None, layer: MoELayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run a layer with its experts computed in one way; None: the one chosen for the device."""
    with computed_by(way):
        return with_gate_loss(layer, x)


Results = dict[str, Tensor]


def _results(layer: MoELayer, x: Tensor, direction: Tensor, way: str | None) -> Results:
    """Return the outputs and all gradients on the CPU, in float64."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    outputs, loss = in_way(way, layer, x)
    ((outputs * direction).sum() + GATE_LOSS_WEIGHT * loss).backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    found = {"outputs": outputs.detach(), "gradient of tokens": x.grad, **gradients}
    return {name: tensor.cpu().double() for name, tensor in found.items() if tensor is not None}


def errors(ours: Results, reference: Results) -> dict[str, float]:
    """Return the norm of each difference, relative to the norm of the reference; infinity where it is not a number."""
    found = {name: float((ours[name] - own).norm() / own.norm().clamp(min=1e-12)) for name, own in reference.items()}
    return {name: error if math.isfinite(error) else math.inf for name, error in found.items()}


def equality(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Compare outputs and gradients of a layer with those of float32 on the CPU, from the same rounded numbers."""
    experts, tokens = sizes.experts[1], sizes.tokens[1]
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.Generator().manual_seed(2)
    worst: dict[tuple[str, torch.dtype], float] = {}
    for dtype, skew in product(sizes.dtypes, (None, float(experts))):  # as the router finds; all tokens to one expert
        shape = Shape(sizes.dim, sizes.ffn_dim, tokens, device.type, dtype)
        torch.manual_seed(1)
        # the gradient of relu would jump where a rounding error changes a sign
        layer = moec_layer(shape, experts, skew, activation=F.gelu).to(dtype)
        x, direction = (torch.randn(tokens // 4, 4, sizes.dim, generator=source).to(dtype) for _ in range(2))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=source).to(dtype))
        reference = _results(deepcopy(layer).float(), x.float(), direction.float(), None)
        layer, x, direction = layer.to(device), x.to(device), direction.to(device)
        for way in WAYS:
            what = f"{way}, {name_of(dtype)}, {'routed' if skew is None else 'all to one expert'}"
            try:
                found = errors(_results(layer, x, direction, way), reference)
            except FAILURES as error:
                yield f"{what}: {str(error).splitlines()[0]}"
                continue
            name, difference = max(found.items(), key=itemgetter(1))
            worst[way, dtype] = max(difference, worst.get((way, dtype), 0))
            yield f"{what}: {name} {difference:.1e}"
    for (way, dtype), difference in worst.items():
        yield Target(f"difference from the CPU, {way}, {name_of(dtype)}", difference, TOLERANCES[dtype])


UPDATES, SAVED = 10, 5


def _train(data: Path, folder: Path, options: tuple[str, ...], sizes: ModelSizes) -> dict[int, float]:
    log = folder / "log"
    run_fairseq(
        "train", data, *RECIPE, "--arch", sizes.arch, *sparse(8), "--optimizer", "fused_adam", *options,
        "--max-tokens", sizes.max_tokens, "--lr", 1e-3, "--max-update", UPDATES, "--save-interval-updates", SAVED,
        "--save-dir", folder, "--valid-subset", "train", "--disable-validation", "--num-workers", 0,
        "--log-format", "json", "--log-interval", 1, log=log,
    )  # fmt: skip
    train, _ = history(log.read_text(encoding="utf-8").splitlines())
    return {update: row["loss"] for update, row in train.items()}


def _difference_when_resumed(folder: Path, precision: str, sizes: ModelSizes, device: torch.device) -> float:
    """Return the largest difference of a loss after a training has been resumed in the middle."""
    options = (*PRECISIONS[precision], *hardware(device))
    undisturbed, resumed = folder / precision, folder / f"{precision}-resumed"
    resumed.mkdir()
    undisturbed.mkdir()
    whole = _train(folder, undisturbed, options, sizes)
    shutil.copy(next(undisturbed.glob(f"checkpoint_*_{SAVED}.pt")), resumed / "checkpoint_last.pt")
    rest = _train(folder, resumed, options, sizes)
    if list(whole) != [*range(1, UPDATES + 1)] or list(rest) != [*range(SAVED + 1, UPDATES + 1)]:
        raise ValueError(f"updates {[*whole]} were made, and {[*rest]} when it was resumed after update {SAVED}")
    if not all(map(math.isfinite, (*whole.values(), *rest.values()))):
        raise ValueError("a loss is not finite")
    return max(abs(whole[update] - loss) for update, loss in rest.items())


def resuming(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Train by fairseq-train in all precisions at a time, and once more from the checkpoint in the middle.

    Raises:
        ValueError: a training fails.
    """
    failures = []
    with TemporaryDirectory() as name, ThreadPoolExecutor(len(sizes.trained)) as pool:
        write_corpus(Path(name), sizes.tiny, UPDATES)
        found: Callable[..., float] = partial(_difference_when_resumed, Path(name), sizes=sizes.tiny, device=device)
        running = {precision: pool.submit(found, precision) for precision in sizes.trained}
        for precision, future in running.items():
            try:
                difference = future.result()
            except ValueError as error:
                failures.append(f"--{precision}: {error}")
            else:
                yield Target(f"difference of losses after resuming, --{precision}", difference, LAST_DIGIT)
    if failures:
        raise ValueError("; ".join(failures))
