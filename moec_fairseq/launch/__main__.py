"""Train with a YAML file of configs/, in one process or many."""

import argparse
import os
import shlex
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch
from yaml import YAMLError

from moec_fairseq.cli.named import find_yaml
from moec_fairseq.launch.command import rank_command
from moec_fairseq.launch.configuration import check_data, check_nothing_missing, configure
from moec_fairseq.launch.job import (
    Job,
    from_options,
    from_slurm,
    from_torchrun,
    is_started_by_srun,
    is_started_by_torchrun,
)
from moec_fairseq.launch.watch import run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/train.sh", description=__doc__)
    parser.add_argument("config", metavar="CONFIG", help="path of a YAML file, or a name in configs/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values of the YAML file to replace")
    parser.add_argument("--configs", type=Path, default=Path("configs"), help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, metavar="W", help="processes here (default: one for each GPU, or 1)")
    parser.add_argument("--nodes", type=int, default=1, metavar="M", help="machines of the job (default: 1)")
    parser.add_argument("--node-rank", type=int, default=0, metavar="K", help="number of this machine, from 0")
    parser.add_argument("--master", metavar="HOST:PORT", help="where rank 0 listens; needed with --nodes")
    parser.add_argument(
        "--logs", type=Path, metavar="DIR", help="one log for each rank (default: logs/ and the name of CONFIG)"
    )
    parser.add_argument(
        "--patience",
        type=int,
        default=1800,
        metavar="SECONDS",
        help="how long ranks wait for lost ones (default: 1800)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the commands and run nothing")
    return parser


def _job(options: argparse.Namespace, gpus: int) -> Job:
    for is_started, starter, make in (
        (is_started_by_torchrun, "torchrun", from_torchrun),
        (is_started_by_srun, "srun", from_slurm),
    ):
        if is_started(os.environ):
            if options.processes is not None or options.nodes != 1:
                raise ValueError(
                    f"--processes and --nodes are for starting without {starter}, which has started this process as "
                    "one of its own; leave them out, and tell it how many there are."
                )
            return make(os.environ)
    processes = options.processes if options.processes is not None else max(1, gpus)
    if 0 < gpus < processes:
        raise ValueError(
            f"--processes is {processes}, but this machine has {gpus} GPU(s), one for each process; give fewer, or "
            "common.cpu=true."
        )
    job = from_options(processes, options.nodes, options.node_rank, options.master)
    if job.world_size > 1 and job.master is None:
        job = replace(job, master=f"127.0.0.1:{_free_port()}")
    return job


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def main() -> None:
    """Start the ranks of this machine and wait for them."""
    options = _parser().parse_intermixed_args()
    if options.patience < 1:
        raise ValueError(f"--patience is {options.patience}, but must be 1 second or more.")
    configuration = configure(find_yaml("configuration", options.config, options.configs), options.overrides)
    gpus = 0 if configuration.values["common.cpu"] else torch.cuda.device_count()
    job = _job(options, gpus)
    check_nothing_missing(configuration)
    commands = {rank: rank_command(job, rank, configuration, gpus, options.patience) for rank in job.ranks}
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", "1")) // len(job.ranks))
    # with torchrun's own variables torch would look for its agent's store at our port
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    # hydra's own last words would be how to see the reason
    environment = inherited | {"OMP_NUM_THREADS": str(threads), "HYDRA_FULL_ERROR": "1"}
    if gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""  # where fairseq sees a GPU it clips gradients there, cpu or not
    if options.dry_run:
        for command in commands.values():
            print(f"OMP_NUM_THREADS={threads} {shlex.join(command)}")
        return
    check_data(configuration)
    logs = options.logs or Path("logs") / configuration.path.stem
    print(f"{job.world_size} process(es), ranks {', '.join(map(str, job.ranks))} here; logs in {logs}", flush=True)
    run(commands, logs, environment)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except (ValueError, RuntimeError, OSError, YAMLError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted; all ranks were stopped. Start again to go on from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
