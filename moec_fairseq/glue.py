"""From a masked language model to a table of GLUE scores, by the commands prepare, train and evaluate."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from moec_fairseq.__main__ import run
from moec_fairseq.checkpoint.names import find_files
from moec_fairseq.checkpoint.state import State, group, load_state, num_experts
from moec_fairseq.data.glue import GlueTask, find_task, read_tasks
from moec_fairseq.evaluate.model import MASKED_LM, Selection, first_folder, num_embeddings, task_of
from moec_fairseq.evaluate.scores import markdown_table, write_table
from moec_fairseq.evaluate.translate import find_checkpoint
from moec_fairseq.launch.configuration import quoted
from moec_fairseq.launch.once import train_once
from moec_fairseq.util.progress import Headlines

ALL = "all"  # tasks
NONE = "none"  # no pre-training
UNUSED_POSITIONS = 2  # fairseq numbers them from the one after <pad>
OWN = {  # what the command gives to each training, and which of its options says it
    "checkpoint.finetune_from_model": "--pretrained",
    "checkpoint.save_dir": "--out",
    "common.cpu": "--cpu",
    "common.seed": "--seeds",
    "method": "--method",
    "task.data": "--out",
}


@dataclass(frozen=True)
class Pretrained:
    """What fine-tuning starts from.

    Attributes:
        overrides: KEY=VALUE that name it.
        method: with which it was trained.
        data: folder with its subwords; None: it has none.
        fingerprint: what changes when it does.
    """

    overrides: tuple[str, ...] = ()
    method: str = "moec"
    data: Path | None = None
    fingerprint: Any = None

    @classmethod
    def of(cls, checkpoint: Path) -> "Pretrained":
        """Read what a checkpoint says of itself.

        Raises:
            ValueError: it is not of a masked language model.
        """
        state = load_state(next(iter(find_files(checkpoint).ranks.values())), optimizer=False)
        if (task := task_of(state)) != MASKED_LM:
            raise ValueError(
                f"--pretrained {checkpoint} was trained for {task}, but GLUE needs a masked language model; give one, "
                f"or {NONE}"
            )
        return cls(
            (
                f"checkpoint.finetune_from_model={quoted(checkpoint.absolute())}",
                f"task.max_positions={num_embeddings(state, 'positions') - UNUSED_POSITIONS}",
            ),
            method_of(state),
            first_folder(Path(group(state, "task").get("data", ""))).parent,
            Selection("", [checkpoint], checkpoint.parent).fingerprint(),
        )


SCRATCH = Pretrained()


def method_of(state: State) -> str:
    """Return the ``method=`` that a model was trained with."""
    model = group(state, "model")
    if num_experts(state) <= 1:
        return "dense"
    if model["moec_cluster_count"] == 1:
        return "moe"
    return "moec" if model["moec_expert_dropout"] else "moec-nodropout"


def glue(
    words: Sequence[str],
    pretrained: str,
    data: Path | None,
    raw_dir: Path | None,
    seeds: str,
    method: str | None,
    cpu: bool,
    out: Path,
) -> None:
    """Do all steps that are not done yet; the arguments are the options of ``moec glue``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    tasks, overrides = _tasks_and_overrides(words)
    numbers = _numbers(seeds)
    start = SCRATCH if pretrained == NONE else Pretrained.of(find_checkpoint(Path(pretrained)))
    data, method = data or start.data, method or start.method
    if data is None:
        raise ValueError(f"--pretrained {NONE} needs --data, a folder of moec prepare whose subwords are taken")
    system = method if start.overrides else f"{method}-scratch"
    out = out.absolute()
    headlines = Headlines(len(tasks) * (1 + len(numbers)))
    reports: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        headlines.show(f"Preparing {task.name}")
        work = out / task.name
        run([
            "prepare", f"glue/{task.name}", "--raw-dir", raw_dir or out / "raw", "--subwords-of", data, "--out", work,
        ])  # fmt: skip
        prepared = (work / ".binary.done").read_text(encoding="utf-8")
        for seed in numbers:
            headlines.show(f"Fine-tuning {system} for {task.name}, seed {seed}")
            results = work / f"{system}-seed{seed}"
            own = [
                f"method={method}",
                f"task.data={quoted(work / 'binary')}",
                f"common.seed={seed}",
                f"common.cpu={str(cpu or not torch.cuda.is_available()).lower()}",
                *start.overrides,
            ]
            train_once(f"glue_{task.name.lower()}", [*own, *overrides], results, [prepared, start.fingerprint])
            run(["evaluate", "--checkpoints", results, "--best", "--data", work, *(["--cpu"] if cpu else [])])
            report = results / "evaluation" / "best" / task.name / "scores.json"
            reports.setdefault(task.name, []).append(json.loads(report.read_text(encoding="utf-8")))
    rows = table(system, numbers, reports)
    write_table(out / f"{system}.csv", rows)
    print(f"\n{markdown_table(rows)}\n\nDone in {headlines.duration()}: {out / system}.csv, {out / system}.md")


def _tasks_and_overrides(words: Sequence[str]) -> tuple[list[GlueTask], list[str]]:
    """Return the tasks, each once, and the KEY=VALUE of the trainings."""
    overrides = [word for word in words if "=" in word]
    for key in (override.partition("=")[0].lstrip("+") for override in overrides):
        if key in OWN:
            raise ValueError(f"{key} is what {OWN[key]} says; leave it out")
    names = [word for word in words if word not in overrides]
    if not names:
        raise ValueError(f"no task was given; give {ALL}, or some of {', '.join(read_tasks())}")
    tasks = read_tasks().values() if names == [ALL] else [find_task(name) for name in names]
    return list({task.name: task for task in tasks}.values()), overrides


def _numbers(seeds: str) -> list[int]:
    try:
        numbers = list(dict.fromkeys(int(seed) for seed in seeds.split(",")))
        if min(numbers) >= 1:
            return numbers
    except ValueError:
        pass
    raise ValueError(f"--seeds is {seeds}, but must be whole numbers from 1 with commas, such as 1,2,3")


def table(system: str, seeds: Sequence[int], reports: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, str]]:
    """Return a row for each metric of each scored set: every seed, their median, and the highest minus the lowest.

    The last row, where there are several tasks, has means over tasks: of one seed, and of the medians over seeds. The
    score of a task is the mean over its metrics, then over its sets for validation, as on GLUE's leaderboard.

    Args:
        system: name of what was fine-tuned.
        seeds: of the trainings.
        reports: by task, the scores.json of each seed.
    """
    rows = []
    for task, found in reports.items():
        for words, metrics in found[0]["scores"].items():
            for metric in metrics:
                values = [report["scores"][words][metric]["value"] for report in found]
                rows.append(
                    {"system": system, "task": task, "set": words, "metric": metric}
                    | _summary(seeds, values, median(values))
                    | {"model": _common(found)}
                )
    if len(reports) > 1:
        by_task = [[report["score"] for report in found] for found in reports.values()]
        means = [fmean(values) for values in zip(*by_task, strict=True)]
        summary = _summary(seeds, means, fmean(map(median, by_task)))
        rows.append({"system": system, "task": f"mean of {len(reports)} tasks", "set": "dev"} | summary)
    return rows


def _summary(seeds: Sequence[int], values: Sequence[float], middle: float) -> dict[str, str]:
    each = {f"seed {seed}": f"{value:.2f}" for seed, value in zip(seeds, values, strict=True)}
    return each | {"median": f"{middle:.2f}", "spread": f"{max(values) - min(values):.2f}"}


def _common(reports: Sequence[dict[str, Any]]) -> str:
    """Return what the signatures of several seeds have in common."""
    signatures = [[*report["model"].split("|"), f"moec_fairseq:{report['version']}"] for report in reports]
    return "|".join(part for part in signatures[0] if all(part in signature for signature in signatures))
