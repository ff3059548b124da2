"""A training that is done once: resumed until it is finished, and replaced when its settings change."""

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from moec_fairseq.__main__ import ROOT
from moec_fairseq.launch.configuration import configure, quoted
from moec_fairseq.launch.ranks import train
from moec_fairseq.util.files import alone_with, find_yaml, write_json
from moec_fairseq.util.progress import follow

CONFIGS = ROOT / "configs"


def train_once(
    config: str,
    overrides: Sequence[str],
    save_dir: Path,
    inputs: Any,
    max_update: int | None = None,
    schedule: Sequence[str] = (),
) -> None:
    """Train in one process with its progress on one line, or resume a training with the same settings.

    Args:
        config: a name in configs/.
        overrides: KEY=VALUE that make it another training when they change.
        save_dir: for checkpoints, log and a note; what a training with other settings has left there is removed.
        inputs: what the result depends on beside the configuration; something JSON can hold.
        max_update: last update, which may grow when a training goes on; None: as configured.
        schedule: KEY=VALUE that may change then, too.

    Raises:
        ValueError: an option is wrong.
        RuntimeError: the training has failed.
    """
    # JSON is what the line of progress reads
    overrides = [*overrides, f"checkpoint.save_dir={quoted(save_dir)}", "common.log_format=json"]
    options = configure(find_yaml("configuration", config, CONFIGS), overrides).values
    last = options["optimization.max_update"] if max_update is None else max_update
    schedule = [*schedule, *([] if max_update is None else [f"optimization.max_update={max_update}"])]
    note = save_dir / "settings.json"
    with alone_with(save_dir / "training"):
        before = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
        settings = {"data": inputs, "options": options}
        now: dict[str, Any] = json.loads(json.dumps({"settings": settings, "max_update": last}, default=str))
        if before == now | {"finished": True} and (save_dir / "checkpoint_best.pt").is_file():
            print("training: done before")
            return
        if before.get("settings") != now["settings"] or before["max_update"] > last:
            for path in save_dir.iterdir():
                if path.name != ".training.lock":  # which keeps others away as long as it is there
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(note, now | {"finished": False})
        train(
            config=config,
            overrides=[*overrides, *schedule],
            configs=CONFIGS,
            processes=1,
            nodes=1,
            node_rank=0,
            master=None,
            logs=save_dir,
            rank_timeout=1800,
            dry_run=False,
            read=partial(_show, total=last),
        )
        write_json(note, now | {"finished": True})


def _show(lines: Iterable[str], log: TextIO, total: int) -> None:
    follow(lines, "train", total, log, sys.stdout)
