"""What this machine has: cores, memory, GPUs."""

import csv
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

# where a container or a job of a cluster may have a limit of its own
QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)  # microseconds of all cores together in a period, and of the period
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def cores() -> int:
    """Return how many cores this process may use."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in QUOTAS:
        if all(path.is_file() for path in map(Path, files)):
            quota, period = " ".join(Path(path).read_text(encoding="utf-8") for path in files).split()
            if quota.isdecimal():  # or max, or -1
                found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found


def memory() -> int:
    """Return the bytes of memory that there are for all processes of this machine or container."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in map(Path, LIMITS):
        if path.is_file() and (limit := path.read_text(encoding="utf-8").strip()).isdecimal():  # or the word max
            found.append(int(limit))
    return min(found)


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: of its maker.
        memory: in bytes.
        capability: of CUDA, such as 9.0.
    """

    name: str
    memory: int
    capability: float


def gpus() -> list[Gpu]:
    """Return the GPUs that this process may use, as their driver's own tool knows them; none if it is not there.

    torch would have to begin to use them, which takes memory of each for as long as the process lives.
    """
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True)
    if done.returncode != 0:
        return []
    found = [
        # memory that it shares with the cores is [N/A]
        Gpu(name, int(mib) << 20 if mib.isdecimal() else memory(), float(capability))
        for name, mib, capability in csv.reader(done.stdout.splitlines(), skipinitialspace=True)
    ]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or chosen.startswith(("GPU-", "MIG-")):
        return found  # all, or some by other names than their numbers
    numbers = takewhile(lambda number: number.isdecimal() and int(number) < len(found), chosen.split(","))
    return [found[int(number)] for number in numbers]  # CUDA leaves out all from the first that is none, such as -1


if __name__ == "__main__":  # for scripts/env.sh
    print(cores())
