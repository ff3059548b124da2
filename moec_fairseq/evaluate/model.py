"""The one model that is evaluated: a checkpoint, or the mean of several, all ranks in one file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moec_fairseq.checkpoint import settings
from moec_fairseq.checkpoint.files import find_files
from moec_fairseq.checkpoint.loading import load_state
from moec_fairseq.checkpoint.selection import last_checkpoints

AVERAGE = 10


def chosen_checkpoints(path: Path, average: int | None, best: bool, kind: str | None) -> list[Path]:
    """Return the checkpoints to take the mean of.

    Args:
        path: the ``save_dir`` of a training, or one checkpoint.
        average: how many; None: ``AVERAGE``.
        best: take ``checkpoint_best.pt`` instead.
        kind: ``epoch`` or ``update``, where the folder has both.

    Raises:
        ValueError: there are none, or fewer.
    """
    if not path.is_dir():
        return [path]
    if best:
        if average is not None:
            raise ValueError(f"--best and --average {average} were both given; give one of them")
        return [path / "checkpoint_best.pt"]
    try:
        return last_checkpoints(path, AVERAGE if average is None else average, kind)
    except ValueError as error:
        raise ValueError(f"{str(error).replace('--last', '--average').rstrip('.')}; or give --best") from error


def fingerprint(checkpoints: list[Path]) -> list[Any]:
    """Return what changes when one of the files does: name, size and time of each."""
    files = [file for path in checkpoints for file in find_files(path).ranks.values()]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@dataclass(frozen=True)
class ModelFacts:
    """What a checkpoint says of itself.

    Attributes:
        data: the binary data of its training.
        source: language it translates from; None if the file does not say so.
        target: language it translates to, likewise.
        facts: for the signature: seed, experts, updates and the like, by name.
    """

    data: Path
    source: str | None
    target: str | None
    facts: dict[str, Any]


def model_facts(path: Path) -> ModelFacts:
    """Read what a checkpoint, one file, says of itself."""
    state = load_state(path, optimizer=False)
    task, model, common = (settings.group(state, name) for name in ("task", "model", "common"))
    facts = {
        "arch": model.get("_name") or model.get("arch"),
        "experts": settings.num_experts(state),
        "clusters": model.get("moec_cluster_count", 0),
        "seed": common.get("seed"),
        "updates": settings.num_updates(state),
    }
    return ModelFacts(Path(str(task.get("data", ""))), task.get("source_lang"), task.get("target_lang"), facts)
