"""Which ranks of a job this machine, or this one process, has to start."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .network import first_host, free_port
from .options import Address, Options

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST")


@dataclass(frozen=True)
class Rank:
    """One process of a job: its number in the job and on its machine."""

    rank: int
    local_rank: int


@dataclass(frozen=True)
class Job:
    """The ranks to start here, and how they find the others.

    Attributes:
        world_size: ranks of the whole job.
        ranks: those to start here.
        neighbours: how many ranks of the job share this machine.
        init_method: as torch.distributed takes it; None for a single process.
        port: where rank 0, started here, will listen; None where someone else looks after that.
        starter: who decided.
    """

    world_size: int
    ranks: tuple[Rank, ...]
    neighbours: int
    init_method: str | None
    port: int | None
    starter: str


def from_torchrun(environment: Mapping[str, str]) -> Job | None:
    """Return the one rank that torchrun's variables describe; None without them."""
    given = [name for name in TORCHRUN if name in environment]
    if len(given) < len(TORCHRUN):
        if "RANK" in given and _number(environment, "WORLD_SIZE", 1) > 1:
            missing = ", ".join(name for name in TORCHRUN if name not in given)
            raise ValueError(f"RANK and WORLD_SIZE are set, but not {missing}; please set all of them, or none.")
        return None
    world_size, rank = _number(environment, "WORLD_SIZE", 1), Rank(
        _number(environment, "RANK"), _number(environment, "LOCAL_RANK")
    )  # fmt: skip
    _check(rank, world_size, "RANK", "WORLD_SIZE")
    neighbours = _number(environment, "LOCAL_WORLD_SIZE", 1)
    # env:// and not the address in it: torchrun itself may be listening there
    return Job(world_size, (rank,), neighbours, "env://" if world_size > 1 else None, None, "torchrun")


def from_slurm(environment: Mapping[str, str]) -> Job | None:
    """Return the one rank that SLURM's variables describe; None without them, and where srun started one task only."""
    if any(name not in environment for name in SLURM) or _number(environment, "SLURM_NTASKS") == 1:
        return None
    world_size = _number(environment, "SLURM_NTASKS")
    rank = Rank(_number(environment, "SLURM_PROCID"), _number(environment, "SLURM_LOCALID"))
    _check(rank, world_size, "SLURM_PROCID", "SLURM_NTASKS")
    # as "2(x3),1": two tasks on each of three nodes, then one
    neighbours = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_NTASKS_PER_NODE", "1"))
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    # all tasks must come to the same port, and two steps of a job to different ones
    step = 7 * _number(environment, "SLURM_JOB_ID", 0) + _number(environment, "SLURM_STEP_ID", 0)
    port = _number(environment, "MASTER_PORT", 20000 + step % 10000)
    most = max(int(count.split("(")[0]) for count in neighbours.split(","))
    method = f"tcp://{host}:{port}"
    return Job(world_size, (rank,), most, method, port if rank.rank == 0 else None, "SLURM")


def of_node(nodes: int, node: int, master: Address, processes: int) -> Job:
    """Return the ranks of one of several nodes."""
    ranks = tuple(Rank(node * processes + local, local) for local in range(processes))
    port = master.port if node == 0 else None
    return Job(nodes * processes, ranks, processes, f"tcp://{master.host}:{master.port}", port, "--nodes")


def of_machine(processes: int, port: Callable[[], int] = free_port) -> Job:
    """Return the ranks of a job that has this machine to itself."""
    ranks = tuple(Rank(local, local) for local in range(processes))
    method = f"tcp://127.0.0.1:{port()}" if processes > 1 else None
    return Job(processes, ranks, processes, method, None, "this machine")


def plan(options: Options, environment: Mapping[str, str], gpus: int) -> Job:
    """Return what is to be started here.

    Args:
        options: of the command line.
        environment: with the variables of torchrun or SLURM, if they started this.
        gpus: how many may be used; 0: train on the CPU.
    """
    started = from_torchrun(environment) or from_slurm(environment)
    if started is not None:
        if options.processes is not None or options.nodes > 1:
            raise ValueError(
                f"--processes and --nodes cannot be given under {started.starter}, whose variables make this rank "
                f"{started.ranks[0].rank} of {started.world_size}: it starts every rank itself."
            )
        return started
    processes = options.processes or max(1, gpus)
    if 0 < gpus < processes:
        raise ValueError(f"--processes is {processes}, but the GPUs here are {gpus}; give at most {gpus}, or --cpu.")
    if options.nodes > 1 and options.master is not None and options.node_rank is not None:
        return of_node(options.nodes, options.node_rank, options.master, processes)
    return of_machine(processes)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name) or (str(default) if default is not None else "")
    if not text.isascii() or not text.isdigit():
        raise ValueError(f"The variable {name} is '{text}', but must be a whole number.")
    return int(text)


def _check(rank: Rank, world_size: int, rank_name: str, size_name: str) -> None:
    if rank.rank >= world_size:
        raise ValueError(f"The variable {rank_name} is {rank.rank}, but must be less than {size_name}={world_size}.")
