"""Interleaved timings: every contender once in each round, so that a slow moment of the machine hits them all."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor
from tqdm import tqdm


@dataclass(frozen=True)
class Contender:
    """Something that is timed in two parts.

    Attributes:
        forward: the first part; what it returns goes to ``backward``.
        backward: the second part; None if there is none.
        reset: brings back the start, not timed.
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
    """Seconds between ticks: CUDA events on a GPU, the clock of the system elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.ticks: list[float | torch.cuda.Event] = []

    def tick(self) -> None:
        """Mark a moment."""
        if self.on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.ticks.append(event)
        else:
            self.ticks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Return the seconds between the ticks, and start anew."""
        if self.on_gpu:
            torch.cuda.synchronize()
        pairs = list(zip(self.ticks, self.ticks[1:], strict=False))
        self.ticks = []
        return [a.elapsed_time(b) / 1000 if isinstance(a, torch.cuda.Event) else b - a for a, b in pairs]  # type: ignore[arg-type, operator]


def interleave(
    what: str, contenders: Mapping[str, Contender], repeats: int, warmup: int, device: torch.device
) -> dict[str, Times]:
    """Time every contender ``repeats`` times after ``warmup`` rounds that do not count."""
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
