"""The one model that is evaluated: a checkpoint, or the mean of several, all ranks in one file."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.files import find_files
from moec_fairseq.checkpoint.loading import load_state
from moec_fairseq.checkpoint.selection import last_checkpoints
from moec_fairseq.evaluate.multilingual import Multilingual, multilingual

AVERAGE = 10


@dataclass(frozen=True)
class Selection:
    """Checkpoints whose mean is evaluated.

    Attributes:
        name: which of their folder they are, in a word.
        paths: NAME.pt of each.
        folder: where they are.
    """

    name: str
    paths: list[Path]
    folder: Path

    @property
    def system(self) -> str:
        """Return what to call the system in tables: the last two folders of a training."""
        return "/".join(self.folder.resolve().parts[-2:])

    def fingerprint(self) -> list[Any]:
        """Return what changes when one of the files does: name, size and time of each."""
        files = [file.resolve() for path in self.paths for file in find_files(path).ranks.values()]
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def select(path: Path, average: int | None, best: bool, kind: str | None) -> Selection:
    """Return the checkpoints that were asked for.

    Args:
        path: the ``save_dir`` of a training, or one checkpoint.
        average: how many of the last; None: ``AVERAGE``, or as many as there are.
        best: take ``checkpoint_best.pt`` instead.
        kind: ``epoch`` or ``update``, where the folder has both.

    Raises:
        ValueError: there are none, or fewer.
    """
    if (best or not path.is_dir()) and (average, kind) != (None, None):
        raise ValueError(f"--average and --by are for several checkpoints, but only one was asked for: {path}")
    if not path.is_dir():
        return Selection(path.name.removesuffix(".pt"), [path], path.parent)
    if best:
        return Selection("best", [path / "checkpoint_best.pt"], path)
    wanted = AVERAGE if average is None else average
    try:
        paths = last_checkpoints(path, wanted, kind, or_fewer=average is None)
    except ValueError as error:
        raise ValueError(f"{str(error).replace('--last', '--average').rstrip('.')}; or give --best") from error
    return Selection(f"last{len(paths)}", paths, path)


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint says of itself.

    Attributes:
        data: the binary data of its training; of several folders the first, in which fairseq, too, looks for test data.
        source: language it translates from; None if the file does not say so.
        target: language it translates to, likewise.
        longest_source: most pieces of a source that it takes.
        cuts_sources: training cut longer ones.
        written: when the file was, in ns.
        signature: seed, experts, updates and the like, by name.
        several: what it was told of several pairs of languages; None for a model of one pair.
    """

    data: Path
    source: str | None
    target: str | None
    longest_source: int
    cuts_sources: bool
    written: int
    signature: dict[str, Any]
    several: Multilingual | None = None


def first_folder(data: Path) -> Path:
    """Return the first of several folders of binary data, given with colons between them as fairseq takes them."""
    return Path(str(data).split(os.pathsep)[0])


def model_facts(path: Path) -> ModelFacts:
    """Read what a checkpoint, one file, says of itself.

    Raises:
        ValueError: it says what no training has written.
    """
    written = path.stat().st_mtime_ns
    state = load_state(path, optimizer=False)
    task, model, common = (settings.group(state, name) for name in ("task", "model", "common"))
    signature = {
        "arch": model.get("_name") or model.get("arch"),
        "experts": settings.num_experts(state),
        "clusters": model.get("moec_cluster_count", 0),
        "seed": common.get("seed"),
        "updates": settings.num_updates(state),
    }
    several = multilingual(task)
    # such a word takes a position, but fairseq cuts a source before it puts one in, and then finds it too long
    word_before = several is not None and several.mark is not None and not several.replaces_end
    return ModelFacts(
        first_folder(Path(str(task.get("data", "")))),
        task.get("source_lang"),
        task.get("target_lang"),
        min(int(group.get("max_source_positions") or 1024) for group in (task, model)) - word_before,  # 1024: fairseq's
        bool(task.get("truncate_source")) and not word_before,
        written,
        signature,
        several,
    )
