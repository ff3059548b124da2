"""How good a model stays with fewer and fewer experts: a table and a picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure

from moec_fairseq.__main__ import run
from moec_fairseq.checkpoint.fewer_experts import Choice, Pruning
from moec_fairseq.checkpoint.state import load_state, parameters
from moec_fairseq.evaluate.model import OTHERWISE, task_of
from moec_fairseq.evaluate.scores import Score, markdown_table, mean_scores, write_table
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.util.files import alone_with
from moec_fairseq.util.stages import Stages

LOSS, SIZE = "loss (bits per token)", "size (MB)"
PANELS = (("BLEU", "chrF"), (LOSS,), (SIZE,))

Row = dict[str, Any]


def halves(choice: Choice, clusters: ExpertClusters) -> list[int]:
    """Return all experts, half of them, and so on to one; rounded down to what can be kept."""
    sizes = choice.sizes(clusters)
    found = [clusters.num_experts]
    while found[-1] > 1:
        found.append(max(size for size in sizes if size <= found[-1] // 2))
    return found


def draw_curve(pruning: Pruning, out: Path, data: Path | None, max_tokens: int, cpu: bool) -> None:
    """Evaluate the model with all experts, half of them, and so on; write a table and a picture, and show the table.

    What was evaluated before is not evaluated again.

    Args:
        pruning: the model, and how its experts are chosen.
        out: folder of the results.
        data: of the model; None: those of the training.
        max_tokens: of a batch.
        cpu: do not use a GPU.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in pruning.source.ranks]
    settings = [files, asdict(pruning.choice), pruning.subset, data and str(data.resolve())]
    with alone_with(out):
        rows = []
        for keep in halves(pruning.choice, pruning.clusters):

            def evaluate(keep: int = keep) -> Row:
                return _evaluated(pruning, keep, data, max_tokens, cpu)

            rows.append(Stages(out).do(f"{keep} of {pruning.clusters.num_experts} experts", settings, evaluate))
        shown = [{column: _text(value) for column, value in row.items()} for row in rows]
        compact = [{column: text for column, text in row.items() if "signature" not in column} for row in shown]
        write_table(out / "curve.csv", shown, compact)
        draw(rows, out / "curve.png")
    print(f"\n{markdown_table(compact)}\n\n{out}: curve.csv, curve.md, curve.png")


def _evaluated(pruning: Pruning, keep: int, data: Path | None, max_tokens: int, cpu: bool) -> Row:
    """Return what is to be known of the model with so many experts; the model itself is not kept."""
    with TemporaryDirectory(prefix="moec-prune-") as scratch:
        file = Path(scratch, "model.pt")
        pruning.write(keep, file)
        state = load_state(file, optimizer=False)
        row: Row = {
            "experts": keep,
            "clusters": pruning.choice.clusters_of(pruning.clusters, keep).num_clusters,
            "parameters": sum(tensor.numel() for tensor in parameters(state["model"]).values()),
            SIZE: file.stat().st_size / 1e6,
            LOSS: pruning.open(file).loss(pruning.subset, f"{keep} experts"),
        }
        if str(task_of(state)) in OTHERWISE:
            return row
        run([
            "evaluate", "--checkpoints", file, "--subset", pruning.subset, "--out", Path(scratch, "evaluation"),
            "--samples", 0, "--max-tokens", max_tokens, *(["--data", data] if data else []),
            *(["--cpu"] if cpu else []),
        ])  # fmt: skip
        found = [json.loads(path.read_text(encoding="utf-8")) for path in Path(scratch).glob("**/scores.json")]
    scores = [{name: Score(**score) for name, score in one["scores"].items()} for one in found]
    row |= {name: value for name, value in mean_scores(scores).items() if name in ("BLEU", "chrF")}
    return row | {"BLEU's signature": scores[0]["BLEU"].signature, "model": found[0]["model"]}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw scores, loss and size against the number of experts (PNG)."""
    panels = [[column for column in columns if column in rows[0]] for columns in PANELS]
    panels = [columns for columns in panels if columns]
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    experts = [row["experts"] for row in rows]
    for axes, columns in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for column in columns:
            axes.plot(experts, [row[column] for row in rows], marker="o", label=column)
        axes.set_xscale("log", base=2)
        axes.set_xticks(experts, [str(number) for number in experts])
        axes.set(xlabel="experts in each layer", ylabel=" and ".join(columns))
        axes.grid(alpha=0.3)
        if len(columns) > 1:
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, format="png")
