"""The mean of the parameters of several checkpoints."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from moec_fairseq.checkpoint.assemble import assemble
from moec_fairseq.checkpoint.files import listed, whole_path
from moec_fairseq.checkpoint.loading import State
from moec_fairseq.checkpoint.optimizer import first_names
from moec_fairseq.checkpoint.selection import last_checkpoints
from moec_fairseq.checkpoint.settings import set_rank
from moec_fairseq.checkpoint.shards import Checkpoint, check_same_layout, open_checkpoint, shard_of
from moec_fairseq.checkpoint.writing import output_paths, write_together

_ONE_MODEL = "only checkpoints of the same model can be averaged"


def average(
    checkpoints: Sequence[Path],
    out: Path,
    last: int | None = None,
    folder: Path | None = None,
    kind: str | None = None,
    merge: bool = False,
) -> None:
    """Write the mean of the parameters; the optimizer's state and moving averages are left out.

    Args:
        checkpoints: NAME.pt, NAME or NAME-rank-R.pt of each; the numbers of their ranks may differ.
        out: NAME.pt of the mean; it has as many ranks as the last checkpoint.
        last: instead of ``checkpoints``, the last so many of ``folder``.
        folder: see ``last``.
        kind: ``epoch`` or ``update``, where ``folder`` holds numbered checkpoints of both kinds.
        merge: write one file, however many ranks there are.

    Raises:
        ValueError: files are missing or do not fit together, or the checkpoints are of different models.
    """
    paths = _chosen(checkpoints, last, folder, kind)
    sources = [open_checkpoint(path, optimizer=False) for path in paths]
    _check_one_model(sources)
    files = output_paths(whole_path(out), 1 if merge else len(sources[-1].ranks))
    write_together(_means(sources, files))
    print(f"mean of {', '.join(str(source.path) for source in sources)} -> {listed(files)}")


def _chosen(checkpoints: Sequence[Path], last: int | None, folder: Path | None, kind: str | None) -> list[Path]:
    if checkpoints and (last, folder, kind) == (None, None, None):
        return list(checkpoints)
    if not checkpoints and last is not None and folder is not None:
        return last_checkpoints(folder, last, kind)
    raise ValueError("it is not clear what to average; give either checkpoints, or both --last N and --dir DIR.")


def _check_one_model(sources: Sequence[Checkpoint]) -> None:
    """Raise ValueError unless all have the same tensors, tied in the same way."""
    first = sources[0].load(0)
    for source in sources[1:]:
        state = source.load(0)
        if source.num_experts != sources[0].num_experts:
            raise ValueError(
                f"{source.path} has {source.num_experts} experts, but {sources[0].path} {sources[0].num_experts}; "
                f"{_ONE_MODEL}."
            )
        try:
            for content in (state, first):
                content.pop("extra_state", None)  # moving averages
            check_same_layout(state, first, _ONE_MODEL)
            if first_names(state["model"]) != first_names(first["model"]):
                raise ValueError(f"other parameters are tied than in the first file; {_ONE_MODEL}.")
        except ValueError as error:
            raise ValueError(f"{source.path}: {error}") from error


def _means(sources: Sequence[Checkpoint], files: list[Path]) -> Iterator[tuple[Path, State]]:
    for rank, file in enumerate(tqdm(files, desc="write", unit="file", disable=None)):
        shard = shard_of(sources[0].num_experts, len(files), rank)
        state = assemble(sources[-1], shard.experts)
        state["model"].update(_mean((assemble(source, shard.experts)["model"] for source in sources), len(sources)))
        for stale in ("ema", "ema_fp32_params"):
            (state.get("extra_state") or {}).pop(stale, None)
        set_rank(state, shard, len(sources[-1].ranks))
        yield file, state


def _mean(models: Iterator[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """Return the mean of each tensor, added up in float32 or better; integers are those of the last model."""
    sums: dict[str, Tensor] = {}
    for model in models:
        names = first_names(model)
        for name in set(names.values()):
            value = model[name]
            if not value.is_floating_point():
                sums[name] = value
            elif name in sums:
                sums[name] += value
            else:
                sums[name] = value.to(torch.promote_types(value.dtype, torch.float32), copy=True)
    means = {name: (s / count).to(model[name].dtype) if s.is_floating_point() else s for name, s in sums.items()}
    return {name: means[first] for name, first in names.items()}
