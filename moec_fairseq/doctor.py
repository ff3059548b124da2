"""What cannot work and what will be slow on this machine, and in a training: one line each, before an hour is lost."""

import os
import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from moec_fairseq.launch.configuration import check_nothing_missing
from moec_fairseq.launch.preflight import OK, SLOW, WRONG, Finding, findings
from moec_fairseq.launch.ranks import planned
from moec_fairseq.util import machine

# with which all tests pass (constraints.txt)
TESTED = {"Python": "3.11", "torch": "2.13", "fairseq-fixed": "0.12.3.1"}
OLDEST = {"Python": "3.10", "torch": "1.13"}
ALLOCATOR = "MALLOC_MMAP_THRESHOLD_"  # what the scripts set


def doctor(config: str | None, overrides: Sequence[str], processes: int | None, nodes: int, configs: Path) -> None:
    """Check this machine, and a training if one is named; the arguments are the options of ``moec doctor``.

    Raises:
        ValueError: something cannot work.
    """
    states = []
    for finding in examined(config, overrides, processes, nodes, configs):
        print(f"{finding.state:6}{finding.subject:12}{finding.text}", flush=True)
        states.append(finding.state)
    if wrong := states.count(WRONG):
        raise ValueError(
            f"{wrong} of {len(states)} checks found what cannot work; the lines that begin with {WRONG} say why"
        )


def examined(
    config: str | None, overrides: Sequence[str], processes: int | None, nodes: int, configs: Path
) -> Iterator[Finding]:
    """Yield what is found; the arguments are those of ``doctor``."""
    yield versions()
    if config is None:
        yield gpus(torch.cuda.device_count(), asked=False)
        if not torch.cuda.is_available():
            yield from of_cpu(1)
        return
    try:
        job = planned(config, overrides, processes, nodes, configs)
        check_nothing_missing(job.configuration)
    except ValueError as error:
        yield Finding(WRONG, "options", str(error).rstrip("."))
        return
    yield Finding(OK, "options", f"all of {config} are known")
    yield gpus(job.gpus, asked=job.configuration.values["common.cpu"])
    if not job.gpus:
        yield from of_cpu(job.here)
    yield from findings(job)


def versions() -> Finding:
    """Compare the versions of what matters with those that are tested."""
    found = {"Python": platform.python_version(), "torch": torch.__version__.partition("+")[0]}
    for name in ("fairseq-fixed", "fairseq"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
        found |= {"CUDA": torch.version.cuda, "NCCL": nccl}
    shown = ", ".join(f"{name} {number}" for name, number in found.items())
    for name, oldest in OLDEST.items():
        if _parts(found[name]) < _parts(oldest):
            return Finding(WRONG, "versions", f"{shown}; {name} must be {oldest} or later")
    tested = ", ".join(f"{name} {number}" for name, number in TESTED.items())
    same = all(_parts(found.get(name, "0"))[: len(_parts(number))] == _parts(number) for name, number in TESTED.items())
    return Finding(OK, "versions", f"{shown} ({'which are tested' if same else f'tested: {tested}'})")


def _parts(number: str) -> list[int]:
    return [int(part) for part in number.split(".") if part.isdecimal()]


def gpus(used: int, asked: bool) -> Finding:
    """Say which GPUs there are, and whether torch can use them.

    Args:
        used: by the training.
        asked: it is to be done without.
    """
    there = machine.gpus()
    names = ", ".join(f"{gpu.name} ({gpu.memory / (1 << 30):.0f} GiB)" for gpu in there)
    if used:
        return Finding(OK, "GPU", f"{used} used{f', of {names}' if names else ''}")
    if there and not torch.version.cuda:
        return Finding(SLOW, "GPU", f"{names}, which torch {torch.__version__} cannot use; install a torch with CUDA")
    if there:
        if asked:
            return Finding(OK, "GPU", f"{names}, not used")
        why = f"torch {torch.__version__} for CUDA {torch.version.cuda} cannot use it"
        return Finding(SLOW, "GPU", f"{names}, but {why}; update the driver, or install a torch for an older CUDA")
    return Finding(
        OK if asked else SLOW, "GPU", "none; on CPUs, small models train in minutes to hours, large ones do not"
    )


def of_cpu(processes: int) -> Iterator[Finding]:
    """Check what decides the speed of training on a CPU.

    Args:
        processes: on this machine.
    """
    cores, threads = machine.cores(), os.environ.get("OMP_NUM_THREADS", "")
    # moec train shares them out
    each = max(1, int(threads) // processes) if threads.isdecimal() else cores
    shown = f"{processes} x {each} on {cores} cores (processes, OMP_NUM_THREADS of each)"
    if processes > cores:
        yield Finding(SLOW, "threads", f"{shown}; give {cores} --processes or fewer")
    elif processes * each > cores:
        yield Finding(SLOW, "threads", f"{shown}; export OMP_NUM_THREADS={cores}, which they share")
    else:
        yield Finding(OK, "threads", shown)
    if platform.libc_ver()[0] == "glibc":
        if ALLOCATOR in os.environ:
            yield Finding(OK, "allocator", "keeps large temporaries")
        else:
            yield Finding(
                SLOW,
                "allocator",
                "returns large temporaries to the system; start with scripts/train.sh, or export what it sets",
            )
