"""The gpu suite: everything that only a GPU can tell, in one call of at most nine minutes.

Each part runs in a process that is replaced when the part fails, ends it, or takes too long: after an error, a process
can use the GPU no more. What a part has found before is kept.
"""

import gc
import logging
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic
from typing import NamedTuple

import torch

from moec_fairseq.bench import gpu_checks, layer, models
from moec_fairseq.bench.contenders import Shape, dense, fairscale_layer, moec_layer, training, with_aux_loss
from moec_fairseq.bench.gpu_checks import in_way, name_of
from moec_fairseq.bench.measure import Contender, interleave, peak_of_torch, problem_of
from moec_fairseq.bench.report import Found, Outcome, Row, Target, rows_of
from moec_fairseq.bench.sizes import GpuSizes
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.ways import WAYS
from moec_fairseq.util.processes import begin_worker

SECONDS, SECONDS_OF_PART = 540, 150
SLOWER_THAN_DENSE = 1.5  # at most, a layer
SPEED_OF_DENSE = 0.8  # at least, a training step
DROPOUT = 0.5


def _time(case: str, contenders: dict[str, Contender], experts: int, shape: Shape, sizes: GpuSizes) -> Iterator[Found]:
    """Time the contenders, a dense block first, and measure their memory; those that fail are left out, and named."""
    device = torch.device(shape.device)
    problems = {name: problem_of(contender) for name, contender in contenders.items()}
    yield from (f"{case}, {name}: {problem}" for name, problem in problems.items() if problem)
    baseline = next(iter(contenders))
    if problems[baseline]:
        raise RuntimeError(f"{case}: there is nothing to compare with")
    running = {name: contender for name, contender in contenders.items() if not problems[name]}
    times = interleave(case, running, sizes.repeats, sizes.warmup, device)
    meant = {name: (0 if name == baseline else experts, shape.tokens) for name in running}
    for row in rows_of("layer", case, times, meant):
        yield replace(row, torch_bytes=peak_of_torch(running[row.contender], device))


def _shape(sizes: GpuSizes, device: torch.device, dtype: torch.dtype, tokens: int) -> Shape:
    return Shape(sizes.dim, sizes.ffn_dim, tokens, device.type, dtype)


def _ours(layer: MoELayer, experts: int, shape: Shape, suffix: str = "") -> dict[str, Contender]:
    """Return our layer, and the same in each way to compute its experts."""
    ways = {f"{way or 'moec'} {experts}{suffix}": partial(in_way, way) for way in (None, *WAYS)}
    return {name: training(layer, run, shape) for name, run in ways.items()}


def layers(sizes: GpuSizes, device: torch.device, dtype: torch.dtype) -> Iterator[Found]:
    """Compare a dense block, our layer, its ways to compute experts, and fairscale's layer.

    Experts get equally many tokens. fairscale's layer takes half precision by autocast only.
    """
    suffix = "" if dtype == torch.bfloat16 else f" {name_of(dtype)}"
    for experts in sizes.experts:
        ours = moec_layer(_shape(sizes, device, dtype, 0), experts, skew=1)
        theirs = fairscale_layer(_shape(sizes, device, dtype, 0), experts)
        for tokens in sizes.tokens:
            shape = _shape(sizes, device, dtype, tokens)
            contenders = {f"dense{suffix}": dense(shape), **_ours(ours, experts, shape, suffix)}
            if tokens <= sizes.fairscale_tokens:
                mixed = replace(shape, autocast=True)
                contenders[f"fairscale {experts}{suffix}"] = training(theirs, with_aux_loss, mixed)
            case = f"{experts} experts, {tokens} tokens, {name_of(dtype)}"
            has_target = tokens == sizes.tokens[0] and experts in sizes.experts[:2] and dtype == torch.bfloat16
            for found in _time(case, contenders, experts, shape, sizes):
                yield found
                if has_target and isinstance(found, Row) and found.contender == f"moec {experts}":
                    yield Target(f"time of the layer / dense, {case}", found.time_ratio.median, SLOWER_THAN_DENSE)


def uneven(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Compare the same where one expert gets several times the mean, and with expert dropout; bfloat16."""
    shape = _shape(sizes, device, torch.bfloat16, sizes.tokens[0])
    for experts in sizes.experts[:2]:
        variants = {f"skew {skew:g}": moec_layer(shape, experts, skew) for skew in sizes.skews}
        variants[f"dropout {DROPOUT}"] = moec_layer(shape, experts, 1, DROPOUT)
        for variant, ours in variants.items():
            contenders = {"dense": dense(shape), **_ours(ours, experts, shape, f" {variant}")}
            case = f"{experts} experts, {shape.tokens} tokens, bfloat16, {variant}"
            yield from _time(case, contenders, experts, shape, sizes)


def parts_of_layer(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Time router, dispatch, experts, losses and metrics one by one, in bfloat16."""
    for experts in sizes.experts[:2]:
        shape = _shape(sizes, device, torch.bfloat16, sizes.tokens[0])
        yield from layer.parts(shape, experts, sizes.repeats, sizes.warmup)


def adam(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Compare ``adam`` with ``fused_adam`` in training steps of whole models."""
    yield from models.train(sizes.model, device)[0]


def training_steps(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Compare training steps of sparse and dense models, all with ``fused_adam``."""
    fused = replace(sizes.model, options=(*sizes.model.options, "--optimizer", "fused_adam"))
    for row in models.train(fused, device)[0]:
        yield row
        if row.baseline == "dense" and row.contender in {f"moec {experts}" for experts in fused.experts}:
            speed = 1 / row.time_ratio.median
            yield Target(f"speed of a training step / dense, {row.experts} experts", speed, SPEED_OF_DENSE, False)


def beam_search(sizes: GpuSizes, device: torch.device) -> Iterator[Found]:
    """Compare beam search of sparse and dense models."""
    yield from models.generate(sizes.model, device)[0]


class Part(NamedTuple):
    """A part of the suite, and whether it needs a GPU."""

    run: Callable[[GpuSizes, torch.device], Iterator[Found]]
    needs_gpu: bool = False


PARTS = {
    "synchronisations": Part(gpu_checks.synchronisations, needs_gpu=True),
    "kernels": Part(gpu_checks.kernel_counts, needs_gpu=True),
    "equality with the CPU": Part(gpu_checks.equality),
    "save and resume": Part(gpu_checks.resuming),
    "layer, bfloat16": Part(partial(layers, dtype=torch.bfloat16)),
    "uneven experts, dropout": Part(uneven),
    "training step": Part(training_steps),
    "adam": Part(adam),
    "parts of the layer": Part(parts_of_layer),
    "beam search": Part(beam_search),
    "layer, float16": Part(partial(layers, dtype=torch.float16), needs_gpu=True),
}


def _serve(connection: Connection, sizes: GpuSizes, device: torch.device) -> None:
    """Run the parts that arrive; send what each finds, and the outcome last."""
    begin_worker(os.getppid())
    logging.disable(logging.INFO)  # of fairseq
    while True:
        outcome = Outcome("")
        try:
            for found in connection.recv()(sizes, device):
                connection.send(found)
        except Exception:
            outcome = Outcome("", state="failed", message=traceback.format_exc())
        connection.send(outcome)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


class _Worker:
    """A process that runs parts."""

    def __init__(self, sizes: GpuSizes, device: torch.device) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, sizes, device), daemon=True)
        self.process.start()
        theirs.close()

    def run(self, name: str, part: Part, seconds: float) -> Outcome:
        """Run a part for at most so many seconds."""
        outcome, start = Outcome(name), monotonic()
        try:
            self.connection.send(part.run)
            while not isinstance(outcome_or_found := self._receive(start + seconds), Outcome):
                outcome.take(outcome_or_found)
            outcome.state, outcome.message = outcome_or_found.state, outcome_or_found.message
        except TimeoutError:
            outcome.state, outcome.message = "failed", f"still at it after {seconds:.0f} s"
        except (EOFError, OSError):
            self.process.join()
            outcome.state, outcome.message = "failed", f"the process ended with exit code {self.process.exitcode}"
        outcome.seconds = monotonic() - start
        return outcome

    def _receive(self, end: float) -> Found | Outcome:
        if not self.connection.poll(max(0, end - monotonic())):
            raise TimeoutError
        return self.connection.recv()

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run(
    sizes: GpuSizes,
    device: torch.device,
    parts: Mapping[str, Part] = PARTS,
    seconds: float = SECONDS,
    seconds_of_part: float = SECONDS_OF_PART,
) -> Iterator[Outcome]:
    """Run the parts one after the other, whether or not others fail.

    Args:
        sizes: of what is measured.
        device: where.
        parts: what runs.
        seconds: for all of them together.
        seconds_of_part: for each of them.
    """
    end = monotonic() + seconds
    worker = None
    try:
        for name, part in parts.items():
            left = min(seconds_of_part, end - monotonic())
            if part.needs_gpu and device.type != "cuda":
                yield Outcome(name, state="needs a GPU")
            elif left <= 0:
                yield Outcome(name, state=f"left out: the {seconds:.0f} s were over")
            else:
                print(f"{name} ...", flush=True)
                worker = worker or _Worker(sizes, device)
                outcome = worker.run(name, part, left)
                if outcome.state == "failed":
                    worker.end()
                    worker = None
                yield outcome
    finally:
        if worker is not None:
            worker.end()


def drawn(rows: list[Row], sizes: GpuSizes) -> list[Row]:
    """Return the rows of the picture: of one number of tokens, or of one number of experts."""
    return [row for row in rows if row.tokens == sizes.tokens[0] or row.experts in (0, sizes.experts[0])]
