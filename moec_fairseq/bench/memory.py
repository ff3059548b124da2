"""Extra peak memory of one forward and backward pass, in a process of its own."""

import gc
import multiprocessing
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from moec_fairseq.bench.report import Row
from moec_fairseq.bench.timing import Contender


@dataclass(frozen=True)
class Peak:
    """Bytes above what was there before the pass: by the system's account of the process, and by torch's."""

    process: int
    torch: int


def _resident_peak() -> int:
    # getrusage on Linux still counts what the parent had when it started this process
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _step(contender: Contender) -> None:
    result = contender.forward()
    if contender.backward is not None and result is not None:
        contender.backward(result)
    contender.reset()


def _cpu_peak_of_torch(contender: Contender) -> int:
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        _step(contender)
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


def _measure(
    make: Callable[[], Contender], device: torch.device, threads: int, queue: "multiprocessing.Queue[Peak]"
) -> None:
    torch.set_num_threads(threads)
    contender = make()
    gc.collect()
    before = _resident_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        _step(contender)
        by_torch = torch.cuda.max_memory_allocated(device) - allocated
        by_process = _resident_peak() - before
    else:
        _step(contender)
        by_process = _resident_peak() - before
        by_torch = _cpu_peak_of_torch(contender)
    queue.put(Peak(by_process, by_torch))


def peak(make: Callable[[], Contender], device: torch.device) -> Peak:
    """Measure what ``make`` (picklable) builds, in a fresh process, where no memory that was freed before hides it."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Peak] = context.Queue()
    process = context.Process(target=_measure, args=(make, device, torch.get_num_threads(), queue))
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"The process that measured memory ended with {process.exitcode}; its message is above.")
    return queue.get(timeout=10)


def with_peaks(rows: Sequence[Row], makers: Mapping[str, Callable[[], Contender]], device: torch.device) -> list[Row]:
    """Return the rows with the memory that ``makers`` of the same names take."""
    peaks = {name: peak(make, device) for name, make in makers.items()}
    return [
        replace(row, process_bytes=peaks[row.contender].process, torch_bytes=peaks[row.contender].torch) for row in rows
    ]
