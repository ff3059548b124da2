"""The command ``moec checkpoint prune``: a model with fewer experts, chosen by what they are worth on data."""

from pathlib import Path
from tempfile import TemporaryDirectory

from moec_fairseq.checkpoint.curve import draw_curve
from moec_fairseq.checkpoint.fewer_experts import Choice, Pruning
from moec_fairseq.checkpoint.names import listed, whole_path
from moec_fairseq.checkpoint.sharded import open_checkpoint
from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.translate import data_beside, find_checkpoint, in_one_file
from moec_fairseq.launch.configuration import as_typed
from moec_fairseq.moe.clusters import ExpertClusters

# options of a checkpoint that depend on the number of experts
ADJUSTED = (
    ("model", "moe_expert_count"),
    ("model", "moec_cluster_count"),
    ("model", "moec_expert_dropout"),
    ("criterion", "moec_variance"),
)


def prune(
    model: Path,
    keep: int | None,
    share: float | None,
    by: str,
    scope: str,
    merge: bool,
    curve: bool,
    data: Path | None,
    subset: str,
    max_tokens: int,
    cpu: bool,
    out: Path,
) -> None:
    """Write a model with fewer experts, or evaluate a row of them; the arguments are the options of the command.

    Args:
        model: a checkpoint, the ``save_dir`` of a training, or the folder of the quickstart.
        keep: experts of each layer that stay.
        share: of the experts that stays, instead; rounded down to what can be.
        by: see ``Choice``.
        scope: likewise.
        merge: likewise.
        curve: evaluate models of all experts, half of them, and so on to one, instead of writing one.
        data: binary data, or the folder of ``moec prepare``; None: those of the training.
        subset: part of the data on which experts are compared, and models evaluated.
        max_tokens: of a batch.
        cpu: do not use a GPU.
        out: the new NAME.pt; for ``curve`` the folder of its results.

    Raises:
        ValueError: something is wrong with what was given.
    """
    if [keep, share, curve or None].count(None) != 2:
        raise ValueError("it is not clear how many experts are to stay; give one of --keep, --share and --curve")
    checkpoint = find_checkpoint(model)
    source = open_checkpoint(checkpoint, optimizer=False)
    if source.num_experts == 0:
        raise ValueError(f"{source.path} has no experts; give a model with some")
    choice = Choice(by, scope, merge)
    with TemporaryDirectory(prefix="moec-prune-") as folder:

        def open(file: Path | None) -> ModelOnData:
            trained_on = Path(str(group(source.load(0), "task").get("data", "")))
            beside = data or data_beside(checkpoint, trained_on)
            return ModelOnData(file or in_one_file(checkpoint, Path(folder)), beside, max_tokens, cpu)

        pruning = Pruning(source, choice, open, subset)
        if curve:
            draw_curve(pruning, out, data, max_tokens, cpu)
            return
        kept = _number(keep, share, choice, pruning.clusters)
        files = pruning.write(kept, whole_path(out))
        print(f"{source.path} -> {listed(files)}: {kept} of {source.num_experts} experts")
        if kept < source.num_experts:
            _show(pruning, kept, files[0])


def _number(keep: int | None, share: float | None, choice: Choice, clusters: ExpertClusters) -> int:
    """Return how many experts are to stay.

    Raises:
        ValueError: so many cannot.
    """
    sizes = choice.sizes(clusters)
    if share is not None:
        if not 0 < share <= 1:
            raise ValueError(f"--share is {share}, but must be above 0, and 1 or less")
        return max(size for size in sizes if size <= max(1, share * clusters.num_experts + 1e-9))
    assert keep is not None
    if keep not in sizes:
        hint = " (or --scope layer)" if 0 < keep <= clusters.num_experts else ""
        raise ValueError(
            f"--keep is {keep}, but {clusters.num_experts} experts in {clusters.num_clusters} clusters can become "
            f"{', '.join(map(str, sizes))}; give one of these{hint}"
        )
    return keep


def _show(pruning: Pruning, keep: int, file: Path) -> None:
    """Print which experts stay, and what a training that goes on needs."""
    for name, experts in pruning.kept(keep).items():
        print(f"  {name}: {', '.join(map(str, experts))}")
    state = load_state(file, optimizer=False)
    options = {f"{part}.{name}": group(state, part).get(name) for part, name in ADJUSTED}
    given = {name: value for name, value in options.items() if value is not None}
    print("train it further with moec train, the options of its training, and these:")
    print(f"  {as_typed({'checkpoint.finetune_from_model': file, **given})}")
