"""Runs the ranks of a training under torch's elastic launcher, and says in one sentence why one has failed.

Torch starts, watches and stops the ranks. Their logs stay ours: torch's are new files in a new folder at every start,
and its copy of them on the screen has a prefix before every line. Nor may torch handle signals that are ignored: under
nohup it would stop the training when its terminal is closed.
"""

import logging
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from types import FrameType
from typing import TextIO

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import api as torch_processes
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from moec_fairseq.launch.configuration import Configuration, check_nothing_missing, configure, user_dir
from moec_fairseq.launch.preflight import Job, refuse
from moec_fairseq.util.files import alone_with, find_yaml
from moec_fairseq.util.processes import Reader, last_words

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of torchrun, for each rank
HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)  # by torch
KILLED_AFTER = 30  # seconds that torch gives a rank to end before it kills it

# what torch says in a rank whose partner has gone
LOST_PARTNER = re.compile(
    r"Connection (closed|reset) by|Broken pipe|Connection refused|Socket is not connected|DistBackendError|NCCL"
)


def train(
    config: str,
    overrides: Sequence[str],
    processes: int | None,
    nodes: int,
    node_rank: int,
    master: str | None,
    logs: Path | None,
    rank_timeout: int,
    dry_run: bool,
    configs: Path,
    read: Reader | None = None,
) -> None:
    """Train with a YAML file in one process or many, and wait for them; ``moec train --help`` explains the options.

    Where the variables of torchrun are there, this process becomes the rank that they name.

    Args:
        read: takes the lines of the lowest rank here as they come, which its log has, too; shows them unless given.

    Raises:
        ValueError: an option is wrong, or another training writes the same logs.
        RuntimeError: a rank has failed; names it and the reason. The others have been stopped.
        KeyboardInterrupt: by Ctrl-C or SIGTERM; all ranks have been stopped.
    """
    if rank_timeout < 1:
        raise ValueError(f"--rank-timeout is {rank_timeout}, but must be 1 second or more.")
    configuration = configure(find_yaml("configuration", config, configs), overrides)
    gpus = 0 if configuration.values["common.cpu"] else torch.cuda.device_count()
    is_rank = all(name in os.environ for name in VARIABLES)
    if is_rank and (processes is not None or nodes != 1 or logs is not None):
        raise ValueError(
            "--processes, --nodes and --logs are for starting without torchrun, which has started this process as one "
            "of its own; leave them out, and give torchrun --nproc-per-node, --nnodes and --log-dir."
        )
    here = 1 if is_rank else max(1, gpus) if processes is None else processes
    if not is_rank:
        _check_numbers(here, gpus, nodes, node_rank, master)
    check_nothing_missing(configuration)
    environment = {"HYDRA_FULL_ERROR": "1", "PYTHONWARNINGS": "ignore"}  # or hydra's last words would hide the reason
    if threads := os.environ.get("OMP_NUM_THREADS"):
        environment["OMP_NUM_THREADS"] = str(max(1, int(threads) // here))
    if gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # where fairseq sees a GPU it clips gradients there, cpu or not
    world_size = int(os.environ["WORLD_SIZE"]) if is_rank else nodes * here
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_rank else here
    job = Job(configuration, _own_overrides(configuration, world_size, gpus), world_size, local, gpus)
    rank = _rank_command(job, rank_timeout)
    method = [text.replace("method=", "_") for text in overrides if text.startswith("method=")]
    logs = logs or Path("logs", "".join([configuration.path.stem, *method]))
    command = rank if is_rank else torchrun_command(rank, here, nodes, node_rank, master, logs, rank_timeout)
    if dry_run:
        print(shlex.join([*(f"{name}={value}" for name, value in environment.items()), *command]))
        return
    if not is_rank or os.environ["RANK"] == "0":  # one of them is enough to stop all
        refuse(job)
    os.environ.update(environment)
    if is_rank:
        os.execv(rank[0], rank)
    numbers = range(node_rank * here, (node_rank + 1) * here)
    print(f"{world_size} process(es), ranks {', '.join(map(str, numbers))} here; logs in {logs}", flush=True)
    run(command, [logs / f"rank-{number}.log" for number in numbers], read or _show)


def planned(config: str, overrides: Sequence[str], processes: int | None, nodes: int, configs: Path) -> Job:
    """Return a training of so many processes on each of so many machines like this one, which is not started.

    Raises:
        ValueError: an option is wrong.
    """
    configuration = configure(find_yaml("configuration", config, configs), overrides)
    gpus = 0 if configuration.values["common.cpu"] else torch.cuda.device_count()
    here = max(1, gpus) if processes is None else processes
    _check_numbers(here, gpus, nodes, 0, "any:0")
    return Job(configuration, _own_overrides(configuration, nodes * here, gpus), nodes * here, here, gpus)


def _check_numbers(processes: int, gpus: int, nodes: int, node_rank: int, master: str | None) -> None:
    if processes < 1:
        raise ValueError(f"--processes is {processes}, but must be 1 or more.")
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if nodes == 1 < tasks:
        raise ValueError(
            f"srun has started {tasks} of this command, each of which would train a model of its own; let srun start "
            "one torchrun for each machine, or this command with --nodes, --node-rank and --master."
        )
    if 0 < gpus < processes:
        raise ValueError(
            f"--processes is {processes}, but this machine has {gpus} GPU(s), one for each process; give fewer, or "
            "common.cpu=true."
        )
    if not 0 <= node_rank < nodes:
        raise ValueError(f"--node-rank is {node_rank}, but must be from 0 to {nodes - 1} for --nodes {nodes}.")
    if nodes > 1 and master is None:
        raise ValueError(
            f"--nodes {nodes} needs --master HOST:PORT, the same on all machines, where machine 0 listens."
        )
    if master is not None and not re.fullmatch(r".+:\d+", master):
        raise ValueError(f"--master is {master!r}, but must be HOST:PORT, such as 10.0.0.1:29500.")


def _own_overrides(configuration: Configuration, world_size: int, gpus: int) -> list[str]:
    """Return the options that all ranks are given beside those of the user."""
    own = [
        "common.reset_logging=true",  # lines as those of fairseq-train, with time and name
        f"distributed_training.distributed_world_size={world_size}",
    ]
    if gpus == 0:
        own += ["common.cpu=true", "common.fp16=false"]  # half precision is for GPUs
    if world_size > 1:
        own += [
            "distributed_training.distributed_init_method=env://",
            "distributed_training.distributed_no_spawn=true",
            f"distributed_training.distributed_backend={'nccl' if gpus else 'gloo'}",
        ]
        if gpus == 0 and configuration.values["distributed_training.ddp_backend"] == "pytorch_ddp":
            own.append("distributed_training.ddp_backend=legacy_ddp")  # fairseq's default is for GPUs
    return own


def _rank_command(job: Job, rank_timeout: int) -> list[str]:
    """Return the command of a rank, the same for all; overrides of the user come last and win."""
    for_hydra = [
        user_dir(),
        # stay in the user's folder, which relative paths are meant from
        "hydra.run.dir=.",
        "hydra.output_subdir=null",
        "hydra/job_logging=stdout",  # no file of hydra's own
    ]
    worker = [sys.executable, "-m", "moec_fairseq.launch.worker", str(rank_timeout)]
    file = ["--config-dir", str(job.configuration.path.parent), "--config-name", job.configuration.path.stem]
    return [*worker, *file, *for_hydra, *job.own, *job.configuration.overrides]


def torchrun_command(
    rank: Sequence[str], processes: int, nodes: int, node_rank: int, master: str | None, logs: Path, timeout: int
) -> list[str]:
    """Return the command that runs ``rank`` in each process of this machine, with a log for each."""
    host, _, port = (master or f"127.0.0.1:{_free_port()}").rpartition(":")
    return [
        "torchrun", "--nnodes", str(nodes), "--nproc_per_node", str(processes), "--node_rank", str(node_rank),
        "--master_addr", host, "--master_port", port, "--rdzv_conf", f"timeout={timeout}", "--monitor_interval", "0.2",
        "--no_python", "sh", "-c", 'exec "$@" >>"$0/rank-$RANK.log" 2>&1 </dev/null', str(logs), *rank,
    ]  # fmt: skip


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(command: Sequence[str], logs: Sequence[Path], read: Reader) -> None:
    """Run torchrun until all ranks of this machine have ended.

    Args:
        command: as ``torchrun_command`` returns it.
        logs: of these ranks, in order; they are appended to.
        read: takes the lines of the first of them.

    Raises:
        ValueError: another training writes the same logs.
        RuntimeError: a rank has failed; names it and the reason. The others have been stopped.
        KeyboardInterrupt: by Ctrl-C or SIGTERM; all ranks have been stopped.
    """
    with _torch_in_charge(), ExitStack() as stack:
        for log in logs:
            otherwise = (
                f"another training is writing {log}; wait for it, or give this one a --logs DIR and a "
                "checkpoint.save_dir of its own."
            )
            stack.enter_context(alone_with(log, otherwise))
            log.touch()
        starts = {log: log.stat().st_size for log in logs}
        scratch = stack.enter_context(TemporaryDirectory())  # for error files, which torch leaves
        nowhere, ended = stack.enter_context(open(os.devnull, "w")), Event()
        reader = Thread(target=read, args=(_lines(logs[0], starts[logs[0]], ended), nowhere), daemon=True)
        reader.start()
        stack.callback(reader.join, KILLED_AFTER)  # at most: a blocked screen must not keep the training from ending
        stack.callback(ended.set)
        try:
            torchrun.run(torchrun.parse_args(["--log_dir", scratch, *command[1:]]))
            return
        except ChildFailedError as error:
            failures = error.failures
        except RuntimeError as error:  # of torch's store, whose message has many lines
            raise RuntimeError(f"the machines of this training have not met: {str(error).splitlines()[0]}") from error
    number = culprit(failures)
    (log,) = (log for log in logs if log.name == f"rank-{number}.log")
    raise RuntimeError(
        f"Rank {number} {_ending(failures[number], log, starts[log])} (its log is {log}); all were stopped. "
        "When that is fixed, start again: training resumes from its last checkpoint, if there is one."
    )


@contextmanager
def _torch_in_charge() -> Iterator[None]:
    """Keep torch quiet, let SIGTERM interrupt as Ctrl-C does, and ignore what was ignored before, as nohup asks for."""
    before = {number: signal.getsignal(number) for number in HANDLED}

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if before[signal.Signals(signum)] != signal.SIG_IGN:
            raise KeyboardInterrupt

    level, handler = logging.root.manager.disable, torch_processes._terminate_process_handler
    logging.disable(logging.CRITICAL)
    torch_processes._terminate_process_handler = interrupt  # which torch sets for all of them
    signal.signal(signal.SIGTERM, interrupt)  # until then
    try:
        yield
    finally:
        torch_processes._terminate_process_handler = handler
        logging.disable(level)
        for number, mine in before.items():
            signal.signal(number, mine)


def _lines(log: Path, start: int, ended: Event) -> Iterator[str]:
    """Yield the lines that are added to a log as they come, until it has ended."""
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(start)
        rest, is_last = "", False
        while not is_last:
            is_last = ended.wait(0.1)
            *lines, rest = (rest + file.read()).split("\n")
            yield from (f"{line}\n" for line in lines)
        if rest:
            yield rest


def _show(lines: Iterable[str], _: TextIO) -> None:
    try:
        for line in lines:
            sys.stdout.buffer.write(line.encode())
            sys.stdout.buffer.flush()
    except OSError:
        pass  # the terminal has gone; the log has it all


def culprit(failures: Mapping[int, ProcessFailure]) -> int:
    """Return the rank that failed first: one that a signal ended, else one that does not just miss another.

    Args:
        failures: by rank, in the order in which torch has seen them; those after the first may be ranks that torch has
            stopped itself.
    """
    first, *_ = failures.values()

    def order(rank: int) -> tuple[bool, bool, bool]:
        failure = failures[rank]
        has_error = isinstance(failure.message, dict)
        is_stopped = failure.exitcode == -signal.SIGTERM or failure.timestamp >= first.timestamp + KILLED_AFTER
        return (
            failure is not first and is_stopped and not has_error,
            failure.exitcode > 0 or has_error,
            bool(LOST_PARTNER.search(str(failure.message))),
        )

    return min(failures, key=order)


def _ending(failure: ProcessFailure, log: Path, start: int) -> str:
    if isinstance(failure.message, dict):  # of its error file
        return f"failed with exit code {max(failure.exitcode, 1)}: {failure.message['message'].splitlines()[0]}"
    if failure.exitcode == -signal.SIGKILL:
        return "was killed (SIGKILL), probably because the memory ran out"
    if failure.exitcode < 0:
        return f"was ended by {signal.Signals(-failure.exitcode).name}"
    return f"failed with exit code {failure.exitcode}: {last_words(log, start)}"
