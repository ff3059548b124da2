"""The trainings of a study, some at a time.

Every cell is a process of its own, ``python -m moec_fairseq.study.trainings FOLDER``, so that one that fails takes no
other along.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from tqdm import tqdm

from moec_fairseq.__main__ import ROOT, parse, run
from moec_fairseq.data.multilingual import MANY
from moec_fairseq.evaluate.model import OTHERWISE, targets_of_data
from moec_fairseq.evaluate.pipeline import scorers
from moec_fairseq.launch.configuration import check_data, check_nothing_missing, configure, quoted
from moec_fairseq.study.grid import Cell, Study, by_key, read_study
from moec_fairseq.study.report import write_report
from moec_fairseq.util.files import alone_with, find_yaml
from moec_fairseq.util.machine import cores
from moec_fairseq.util.processes import last_words, start_module
from moec_fairseq.util.progress import progress_bar, start_at
from moec_fairseq.util.stages import Stages

OWN = ("checkpoint.save_dir", "common.log_format")  # options that a study sets itself
LAST_UPDATE = re.compile(r'num_updates": "(\d+)"')
GPUS = "GPUs of each training (--jobs)"  # of which the size of an update depends
POLL = 0.5  # seconds between two looks at the trainings


def study(study: str, overrides: Sequence[str], jobs: int, out: Path | None, report: bool) -> None:
    """Do all trainings of a study that are not done yet, and report; the arguments are the options of ``moec study``.

    Raises:
        ValueError: something is wrong with what was given, or a cell was trained with other options before.
        RuntimeError: trainings have failed; names them. All others have been done.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}, but must be 1 or more.")
    wanted = read_study(find_yaml("study", study, ROOT / "configs" / "studies"))
    folder = (out or Path("studies", wanted.path.stem)).absolute()
    cells = wanted.cells(folder, overrides)
    if report:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder} to report on; give the --out of the study.")
        write_report(wanted, cells, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with alone_with(folder, f"another moec study is at work in {folder}; wait for it, or give another --out."):
        print(f"{wanted.path.stem}: checking {len(cells)} trainings", flush=True)
        todo = [cell for cell in cells if _prepare(wanted, cell, jobs)]
        run_cells(cells, todo, jobs, sys.stdout)
    write_report(wanted, cells, folder)
    if failed := [cell.folder.name for cell in cells if cell.note()["state"] == "failed"]:
        raise RuntimeError(
            f"{len(failed)} of {len(cells)} trainings failed: {', '.join(failed)}; {folder / 'cells.md'} says why, and "
            "the same command tries them again"
        )


def _prepare(study: Study, cell: Cell, jobs: int) -> bool:
    """Check the options of a cell and note them; return whether it has still to be done.

    Raises:
        ValueError: one is wrong, or the cell was trained with other ones before.
    """
    for key in by_key(cell.overrides).keys() & OWN:
        raise ValueError(f"{key} cannot be given, because a study sets it itself.")
    own = ["common.log_format=json", f"checkpoint.save_dir={quoted(cell.folder)}"]
    overrides = [*cell.overrides, *own]
    configuration = configure(find_yaml("configuration", study.config, ROOT / "configs"), overrides)
    check_nothing_missing(configuration)
    check_data(configuration)
    _check_scores(study, configuration.values)
    leaves = {key: value for key, value in configuration.values.items() if not isinstance(value, dict)}
    del leaves["checkpoint.save_dir"]  # the folder may be moved
    settings = json.loads(json.dumps(leaves, default=str))
    if gpus := gpus_of_each(jobs):
        settings[GPUS] = gpus
    before = cell.note()
    if before["state"] == "finished" or any(cell.folder.glob("checkpoint*.pt")):
        _check_same(cell, before["settings"], settings)
    else:
        cell.log.unlink(missing_ok=True)  # of an attempt that has left nothing to go on with
    finished = before["state"] == "finished"
    if finished and before["evaluate"] == study.evaluate:
        return False
    state = "unfinished" if finished else before["state"]  # its scores are of another evaluation
    cell.write(
        state=state, config=str(configuration.path), overrides=overrides, settings=settings, evaluate=study.evaluate
    )
    return True


def _check_scores(study: Study, values: Mapping[str, Any]) -> None:
    """Raise ValueError if what the scores of a cell need is missing, before it is trained."""
    if study.evaluate is None or values.get("task._name") in OTHERWISE:
        return
    options = parse(["evaluate", "--checkpoints", "x", *study.evaluate])
    target = options["target_lang"] or values.get("task.target_lang")
    if target in (None, MANY):
        targets = targets_of_data(Path(str(values.get("task.data"))))
    else:
        targets = [str(target)]
    for language in targets:
        scorers(language, options)


def _check_same(cell: Cell, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ValueError(
                f"{cell.folder} was trained with {key}={before.get(key)}, but now it is {now.get(key)}; give another "
                "--out, or remove that folder."
            )


def run_cells(cells: Sequence[Cell], todo: Sequence[Cell], jobs: int, screen: TextIO) -> None:
    """Do what is to be done, ``jobs`` cells at a time; failures are noted, and the others go on.

    Args:
        cells: all of the study.
        todo: those that are not done yet.
        jobs: K.
        screen: shows the progress of all of them together, in updates.
    """
    waiting, running = deque(todo), dict[int, tuple[Cell, subprocess.Popen[str], int]]()  # by slot
    updates, failed = {cell: _updates(cell) for cell in cells}, 0
    expected = {cell: max(updates[cell], cell.note()["settings"]["optimization.max_update"]) for cell in cells}
    for cell in set(cells) - set(todo):
        expected[cell] = updates[cell]  # some have ended early
    with progress_bar(sum(expected.values()), "updates", screen) as bar:
        start_at(bar, sum(updates.values()))
        bar.smoothing = 0  # cells differ in speed: the mean tells most about those to come
        try:
            while waiting or running:
                for slot in range(jobs):
                    if waiting and slot not in running:
                        cell = waiting.popleft()
                        size = cell.output.stat().st_size if cell.output.exists() else 0
                        running[slot] = (cell, start_cell(cell, share_of_machine(slot, jobs)), size)
                time.sleep(POLL)
                for slot, (cell, process, size) in list(running.items()):
                    now = _updates(cell)
                    bar.initial += min(0, now - updates[cell])  # it went on from a checkpoint: the rest is done again
                    updates[cell] = now
                    expected[cell] = max(expected[cell], updates[cell])
                    if process.poll() is not None:
                        del running[slot]
                        expected[cell] = updates[cell]
                        how = _end(cell, process.returncode, size)
                        failed += process.returncode != 0
                        tqdm.write(f"  {cell.folder.name}: {how}", file=bar.fp)
                done = f"{len(cells) - len(waiting) - len(running) - failed} of {len(cells)} trainings done"
                bar.set_postfix_str(done + (f", {failed} failed" if failed else ""), refresh=False)
                bar.total = sum(expected.values())
                bar.update(sum(updates.values()) - bar.n)
        finally:
            for _, process, _ in running.values():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def share_of_machine(slot: int, jobs: int) -> dict[str, str]:
    """Return the variables that give one of ``jobs`` trainings at a time its share of threads and GPUs."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores())
    share = {"OMP_NUM_THREADS": str(max(1, threads // jobs))}
    if gpus := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
        devices, each = visible.split(","), gpus_of_each(jobs)
        first = slot * each % len(devices)
        share["CUDA_VISIBLE_DEVICES"] = ",".join(devices[first : first + each])
    return share


def gpus_of_each(jobs: int) -> int:
    """Return how many GPUs each of ``jobs`` trainings has: the same number, or their batches would differ in size."""
    gpus = torch.cuda.device_count()
    return max(1, gpus // jobs) if gpus else 0


def start_cell(cell: Cell, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    """Start the process of a cell; its output is appended to that of earlier ones."""
    cell.write(state="unfinished", reason="")
    with cell.output.open("a", encoding="utf-8") as output:
        return start_module("moec_fairseq.study.trainings", cell.folder, output=output, environment=environment)


def run_cell(folder: Path) -> None:
    """Train and evaluate a cell, in its process."""
    note = Cell(folder, {}, []).note()
    words = ["train", note["config"], *note["overrides"], "--logs", folder]
    Stages(folder).do("training", note["settings"], lambda: run(words))
    if note["evaluate"] is not None:
        run(["evaluate", "--checkpoints", folder, "--out", folder / "evaluation", *note["evaluate"]])


def _updates(cell: Cell) -> int:
    """Return the last update that a training has logged."""
    if not cell.log.exists():
        return 0
    with cell.log.open("rb") as log:
        log.seek(max(0, cell.log.stat().st_size - 10_000))
        found = LAST_UPDATE.findall(log.read().decode("utf-8", errors="replace"))
    return int(found[-1]) if found else 0


def _end(cell: Cell, returncode: int, start: int) -> str:
    """Note how a cell has ended, and return it in words."""
    if returncode == 0:
        cell.write(state="finished")
        return "finished"
    killed = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else ""
    reason = killed or last_words(cell.output, start)
    cell.write(state="failed", reason=reason)
    return f"failed: {reason} (all it said is in {cell.output})"


if __name__ == "__main__":
    run_cell(Path(sys.argv[1]))
