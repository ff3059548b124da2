"""Time and extra peak memory of contenders.

Timings are interleaved: every contender runs once in each round, so that a slow moment of the machine hits them all.
Memory is that of one forward and backward pass in a process of its own.
"""

import gc
import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm


@dataclass(frozen=True)
class Contender:
    """Something that is timed in two parts.

    Attributes:
        forward: the first part; its result is passed to ``backward``.
        backward: the second part; None if there is none.
        reset: restores the initial state; not timed.
    """

    forward: Callable[[], Tensor | None]
    backward: Callable[[Tensor], None] | None = None
    reset: Callable[[], None] = lambda: None


@dataclass
class Times:
    """Seconds of each round."""

    forward: list[float] = field(default_factory=list)
    backward: list[float] = field(default_factory=list)

    @property
    def total(self) -> list[float]:
        """Forward and backward together."""
        return [f + b for f, b in zip(self.forward, self.backward, strict=True)]


@dataclass(frozen=True)
class Ratio:
    """Median, smallest and largest of the ratios of two contenders in the same round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """Print as ``1.05 (0.99–1.10)``."""
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(numerator: list[float], denominator: list[float]) -> Ratio:
    """Compare two contenders round by round."""
    paired = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return Ratio(median(paired), min(paired), max(paired))


class Clock:
    """Seconds between ticks: by CUDA events on a GPU, by the system's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.ticks: list[float | torch.cuda.Event] = []

    def tick(self) -> None:
        """Record a point in time."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.ticks.append(event)
        else:
            self.ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds between the ticks, and forget them."""
        if self.on_gpu:
            torch.cuda.synchronize()
        pairs = list(zip(self.ticks, self.ticks[1:], strict=False))
        self.ticks = []
        return [a.elapsed_time(b) / 1000 if isinstance(a, torch.cuda.Event) else b - a for a, b in pairs]  # type: ignore[arg-type, operator]


def interleave(
    what: str, contenders: Mapping[str, Contender], repeats: int, warmup: int, device: torch.device
) -> dict[str, Times]:
    """Time every contender in ``repeats`` rounds, after ``warmup`` rounds that do not count."""
    times = {name: Times() for name in contenders}
    clock = Clock(device)
    for turn in tqdm(range(warmup + repeats), desc=f"  {what}", unit="round", leave=False):
        for name, contender in contenders.items():
            clock.tick()
            result = contender.forward()
            clock.tick()
            if contender.backward is not None and result is not None:
                contender.backward(result)
            clock.tick()
            forward, backward = clock.seconds()
            contender.reset()
            if turn >= warmup:
                times[name].forward.append(forward)
                times[name].backward.append(backward)
    return times


@dataclass(frozen=True)
class Peak:
    """Bytes above what was in use before the pass: of the process, as the system sees it, and allocated by torch."""

    process: int
    torch: int


def _resident_peak() -> int:
    # getrusage on Linux still counts the parent's memory at the start of this process
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def step(contender: Contender) -> None:
    """Run both parts, and reset."""
    result = contender.forward()
    if contender.backward is not None and result is not None:
        contender.backward(result)
    contender.reset()


# what a step raises where memory is too small, or where torch lacks an operation or (TypeError) has none of its name
FAILURES = (RuntimeError, TypeError)


def problem_of(contender: Contender) -> str:
    """Run both parts once; return why that failed, or nothing."""
    try:
        step(contender)
    except FAILURES as error:
        contender.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return str(error).splitlines()[0]
    return ""


def _cpu_peak_of_torch(contender: Contender) -> int:
    with profile(profile_memory=True, activities=[ProfilerActivity.CPU]) as profiler:
        step(contender)
    changes = [
        (event.start_ns() if hasattr(event, "start_ns") else event.start_us(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    height = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        height += change
        peak = max(peak, height)
    return peak


def peak_of_torch(contender: Contender, device: torch.device) -> int:
    """Return the bytes that torch allocates at most, above what was in use before."""
    if device.type != "cuda":
        return _cpu_peak_of_torch(contender)
    torch.cuda.reset_peak_memory_stats(device)
    allocated = torch.cuda.memory_allocated(device)
    step(contender)
    return torch.cuda.max_memory_allocated(device) - allocated


def kernels(contender: Contender) -> int:
    """Count the kernels that a GPU runs, without copies and memory that is set.

    Raises:
        RuntimeError: the profiler sees none, as where it lacks permission.
    """
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(contender)
        torch.cuda.synchronize()
    events = profiler.profiler.kineto_results.events()
    names = [event.name() for event in events if event.device_type() == DeviceType.CUDA]
    count = sum(not name.startswith(("Memcpy", "Memset")) for name in names)
    if count == 0:
        raise RuntimeError("torch's profiler sees no kernels on this GPU, probably for lack of permission (CUPTI).")
    return count


def _measure(
    make: Callable[[], Contender], device: torch.device, threads: int, queue: "multiprocessing.Queue[Peak]"
) -> None:
    torch.set_num_threads(threads)
    contender = make()
    gc.collect()
    before = _resident_peak()
    step(contender)
    by_process = _resident_peak() - before  # without the memory that the profiler takes
    queue.put(Peak(by_process, peak_of_torch(contender, device)))


def peak(make: Callable[[], Contender], device: torch.device) -> Peak:
    """Measure what ``make`` (picklable) builds, in a new process, in which no memory freed earlier is reused."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Peak] = context.Queue()
    process = context.Process(target=_measure, args=(make, device, torch.get_num_threads(), queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(
            f"The process that measured memory ended with exit code {process.exitcode}; its message is above."
        )
    return queue.get(timeout=10)
