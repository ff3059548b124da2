"""Which ranks of a job run on this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """The part of a job that this launcher starts.

    Attributes:
        world_size: processes of the whole job.
        ranks: numbers of the processes started here; the n-th of them uses GPU ``first_device`` + n.
        master: HOST:PORT where rank 0 listens; None for a job of one process.
        first_device: GPU of the first process.
    """

    world_size: int
    ranks: range
    master: str | None = None
    first_device: int = 0


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        given = environment.get(name)
        raise ValueError(f"{name} is {given!r} in the environment, but must be a number.") from None


def from_torchrun(environment: Mapping[str, str]) -> Job:
    """Return the one rank that torchrun has started."""
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    port = _number(environment, "MASTER_PORT")
    if "TORCHELASTIC_RUN_ID" in environment:
        port += 1  # torchrun itself listens on the given one
    master = f"{environment['MASTER_ADDR']}:{port}"
    return Job(world_size, range(rank, rank + 1), master, _number(environment, "LOCAL_RANK"))


def first_host(node_list: str) -> str:
    """Return the first host of a list as SLURM writes it: ``gpu[07-09,12],cpu1`` is gpu07."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", node_list)
    if match is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {node_list!r}, but must name a host.")
    return match[1] + (match[2] or "") + (match[3] or "")


def from_slurm(environment: Mapping[str, str]) -> Job:
    """Return the one rank that srun has started; the port is made of the job's number."""
    rank, world_size = _number(environment, "SLURM_PROCID"), _number(environment, "SLURM_STEP_NUM_TASKS")
    hosts = environment.get("SLURM_STEP_NODELIST", "")
    port = 20000 + _number(environment, "SLURM_JOB_ID") % 20000
    return Job(world_size, range(rank, rank + 1), f"{first_host(hosts)}:{port}", _number(environment, "SLURM_LOCALID"))


def from_options(processes: int, nodes: int, node_rank: int, master: str | None) -> Job:
    """Return the ranks of one of ``nodes`` machines that start ``processes`` each.

    Raises:
        ValueError: numbers that do not fit, or no master for several machines.
    """
    if processes < 1:
        raise ValueError(f"--processes is {processes}, but must be 1 or more.")
    if not 0 <= node_rank < nodes:
        raise ValueError(f"--node-rank is {node_rank}, but must be from 0 to {nodes - 1} for --nodes {nodes}.")
    if nodes > 1 and master is None:
        raise ValueError(f"--nodes {nodes} needs --master HOST:PORT, the same on all machines: where rank 0 listens.")
    if master is not None and not re.fullmatch(r".+:\d+", master):
        raise ValueError(f"--master is {master!r}, but must be HOST:PORT, such as 10.0.0.1:29500.")
    first = node_rank * processes
    return Job(nodes * processes, range(first, first + processes), master)


def is_started_by_torchrun(environment: Mapping[str, str]) -> bool:
    """Whether the variables of torchrun are there."""
    return all(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def is_started_by_srun(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several tasks of srun (the script that sbatch runs is none, but has a SLURM_PROCID)."""
    return "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1
