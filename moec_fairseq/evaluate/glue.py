"""Fine-tuned checkpoints to predictions as GLUE's site takes them, and their scores."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from fairseq import utils
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.criterions.moec_sentence_prediction import defined_score
from moec_fairseq.data.examples import read_examples
from moec_fairseq.data.formats.text import raw_lines
from moec_fairseq.data.glue import GlueTask, find_task
from moec_fairseq.data.pipeline import PREPARED
from moec_fairseq.evaluate.model import about_data, first_folder, num_embeddings, select, signature_of
from moec_fairseq.evaluate.scores import Score, add_row, read_table, score_table
from moec_fairseq.util.files import alone_with, whole_texts, write_json
from moec_fairseq.util.progress import progress_bar
from moec_fairseq.util.stages import Stages
from moec_fairseq.util.version import project_version

DEV, TEST = "dev", "test"  # as GLUE calls its sets
SPECIALS = 5  # <s>, <pad>, </s>, <unk>, <mask>: rows of the embedding that dict.txt does not list

PACKAGES = {"pearson": "scipy", "spearman": "scipy"}  # that compute a metric; scikit-learn computes the others


def score(task: GlueTask, labels: Sequence[str], predictions: Sequence[str]) -> dict[str, Score]:
    """Score predictions by the metrics of the task, in hundredths, each with its signature.

    Args:
        task: of GLUE.
        labels: of each example, right ones.
        predictions: of each example, as they are submitted.
    """
    number = float if task.regression else task.labels.index
    sides = [[number(text) for text in texts] for texts in (labels, predictions)]
    scores = {}
    for name in task.metrics:
        package = PACKAGES.get(name, "scikit-learn")
        signature = f"{name}|examples:{len(labels)}|{package}:{version(package)}"
        scores[name] = Score(round(100 * defined_score(name, *sides), 2), signature)
    return scores


class Predictor:
    """A model of the task ``sentence_prediction``, and the binary data that it reads.

    Args:
        model: a checkpoint, one file.
        binary: binary data like those of its training.
        highest: of the numbers that a regression predicts, which it was trained on from 0 to 1.
        max_tokens: of a batch, padding included.
        cpu: do not use a GPU.
    """

    def __init__(self, model: Path, binary: Path, highest: float, max_tokens: int, cpu: bool) -> None:
        # rows that are too long are truncated, whatever the training did with them: each needs a prediction
        changes = {"data": str(binary), "shorten_method": "truncate", "shorten_data_split_list": ""}
        (self.model,), _, self.task = load_model_ensemble_and_task([str(model)], changes)
        self.on_gpu = torch.cuda.is_available() and not cpu
        self.model.to("cuda" if self.on_gpu else "cpu").eval()
        self.highest = highest
        self.max_tokens = max_tokens

    @torch.no_grad()
    def predict(self, split: str) -> list[str]:
        """Return the label, or the number, that the model predicts for each row of a split, in their order.

        Raises:
            ValueError: a row does not fit into a batch.
        """
        data = self.task.load_dataset(split)
        if (longest := max(map(data.num_tokens, range(len(data))))) > self.max_tokens:
            raise ValueError(f"--max-tokens is {self.max_tokens}, but {split} has a row of {longest}; give as many")
        batches = self.task.get_batch_iterator(data, max_tokens=self.max_tokens).next_epoch_itr(shuffle=False)
        found = [""] * len(data)
        with progress_bar(len(data), "rows", sys.stdout) as bar:
            for batch in batches:
                for row, prediction in zip(batch["id"].tolist(), self._of_batch(batch["net_input"]), strict=True):
                    found[row] = prediction
                bar.update(len(batch["id"]))
        return found

    def _of_batch(self, net_input: dict[str, Any]) -> list[str]:
        if self.on_gpu:
            net_input = utils.move_to_cuda(net_input)
        head = self.task.cfg.classification_head_name
        logits_BC, _ = self.model(**net_input, features_only=True, classification_head_name=head)
        if self.task.cfg.regression_target:
            return [f"{self.highest * value:.6f}" for value in logits_BC[:, 0].tolist()]
        labels = self.task.label_dictionary
        return [labels[label + labels.nspecial] for label in logits_BC.argmax(dim=1).tolist()]


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuned checkpoint says of itself.

    Attributes:
        data: the binary data of its training.
        num_classes: of its head; 1 for a number.
        regression: whether it predicts a number.
        vocabulary: rows of its embedding.
        written: when the file was, in ns.
        signature: seed, experts, updates and the like, by name.
    """

    data: Path
    num_classes: int
    regression: bool
    vocabulary: int
    written: int
    signature: dict[str, Any]

    @classmethod
    def of(cls, path: Path) -> "FineTuned":
        """Read what a checkpoint, one file, says of itself."""
        written = path.stat().st_mtime_ns
        state = load_state(path, optimizer=False)
        task = group(state, "task")
        return cls(
            first_folder(Path(str(task.get("data", "")))),
            int(task["num_classes"]),
            bool(task.get("regression_target")),
            num_embeddings(state, "tokens"),
            written,
            signature_of(state),
        )


class DataOfTask:
    """A task of GLUE as ``moec prepare`` has written it, for a model that was fine-tuned for it.

    Args:
        data: the folder, or the binary data in it; None: those of the training.
        model: the model.

    Attributes:
        folder: of ``moec prepare``.
        binary: data for fairseq.
        task: of GLUE.
        splits: to predict, each with its name in words, such as ``dev matched``.
        submissions: where the predictions for each go, such as ``dev/MNLI-m.tsv``.

    Raises:
        ValueError: there are no such data, or not for this model.
    """

    def __init__(self, data: Path | None, model: FineTuned) -> None:
        place = data or model.data
        around = [folder for folder in (place, place.parent) if (folder / PREPARED).is_file()]
        about = about_data(around[0]) if around else {}
        if about.get("kind") != "glue":
            raise ValueError(
                f"{place} is not a task of GLUE that moec prepare has written; give --data, what moec prepare "
                "glue/TASK has made"
            )
        self.folder = around[0]
        self.binary = self.folder / "binary"
        self.task = find_task(about["task"])
        self.splits = {
            split: f"{TEST if split.startswith('test') else DEV} {title}".rstrip()
            for split, title in self.task.sets.items()
            if split in about["splits"]
        }
        self.submissions = {split: _submission(self.task, split) for split in self.splits}
        self._check_head(model)
        self._check_vocabulary(model)

    def _check_head(self, model: FineTuned) -> None:
        kinds = [
            "a number" if regression else f"one of {num_classes} classes"
            for regression, num_classes in (
                (model.regression, model.num_classes),
                (self.task.regression, self.task.num_classes),
            )
        ]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"the model predicts {kinds[0]}, but {self.task.name} in {self.folder} needs {kinds[1]}; give "
                "--data of the task that it was fine-tuned for"
            )

    def _check_vocabulary(self, model: FineTuned) -> None:
        for part in ("input0", "label") if self.task.labels else ("input0",):
            own, trained = (folder / part / "dict.txt" for folder in (self.binary, model.data))
            words = _symbols(own)
            if part == "input0" and len(words) + SPECIALS != model.vocabulary:
                raise ValueError(
                    f"{own} has {len(words)} subwords, but the model {model.vocabulary - SPECIALS}; give --data with "
                    "the subwords that the model was pre-trained with (moec prepare --subwords-of)"
                )
            if trained.is_file() and _symbols(trained) != words:
                raise ValueError(f"{own} is not the dictionary of the training, {trained}; give --data like those")

    def text(self, split: str) -> Path:
        """Return the examples of a split as text."""
        return self.folder / "text" / f"{split}.tsv"

    def scores(self, split: str, folder: Path) -> dict[str, Score]:
        """Score predictions that a folder holds for a split; return nothing where labels are not published."""
        labels = [example.label for example in read_examples(self.text(split)) if example.label is not None]
        _, *rows = raw_lines(folder / self.submissions[split])
        return score(self.task, labels, [row.partition("\t")[2] for row in rows]) if labels else {}


def _submission(task: GlueTask, split: str) -> Path:
    part, number = (TEST if split.startswith("test") else DEV), split.removeprefix("valid").removeprefix("test")
    return Path(part, task.submission[f"test{number}"])


def _symbols(dictionary: Path) -> list[str]:
    """Return what fairseq has a number for, in that order."""
    if not dictionary.is_file():
        raise ValueError(f"there is no {dictionary}; make the data again with moec prepare glue/TASK")
    with dictionary.open(encoding="utf-8") as file:
        return [line.rpartition(" ")[0] for line in file]


def evaluate_glue(
    checkpoints: Path,
    average: int | None,
    best: bool,
    kind: str | None,
    data: Path | None,
    max_tokens: int,
    cpu: bool,
    table: Path | None,
    name: str | None,
    out: Path | None,
) -> None:
    """Predict all sets of a task, unless that was done before, and show the scores of those whose labels are known.

    The arguments are options of ``moec evaluate``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    if max_tokens < 1:
        raise ValueError(f"--max-tokens is {max_tokens}, but must be 1 or more")
    if table:
        read_table(table)
    selection = select(checkpoints, average, best, kind)
    out = out or selection.folder / "evaluation" / selection.name
    model = selection.write(out)
    facts = FineTuned.of(model)
    place = DataOfTask(data, facts)
    is_own = place.binary.resolve() == facts.data.resolve()
    folder = out / (place.task.name if is_own else f"{place.task.name}-{place.folder.resolve().name}")
    folder.mkdir(exist_ok=True)
    with alone_with(folder):
        made_by: str = Stages(folder).do(
            "predictions",
            [selection.fingerprint(), str(place.binary.resolve())],
            lambda: predict(model, facts, place, folder, max_tokens, cpu),
            [folder / file for file in place.submissions.values()],
            [place.folder / ".binary.done"],
        )
        scores = {place.splits[split]: found for split in place.splits if (found := place.scores(split, folder))}
        signature = facts.signature | {"checkpoints": len(selection.paths)}
        row = {
            "system": name or selection.system,
            "model": "|".join(f"{key}:{value}" for key, value in signature.items()),
            "version": made_by,
        }
        print(
            score_table({f"{words}: {key}": value for words, found in scores.items() for key, value in found.items()})
        )
        print(f"\n{row['system']} on {place.task.name}\n{row['model']}|moec_fairseq:{made_by}")
        result = row | {
            "task": place.task.name,
            "checkpoints": [str(path) for path in selection.paths],
            "score": _mean(scores),
            "scores": {words: {key: asdict(value) for key, value in found.items()} for words, found in scores.items()},
        }
        write_json(folder / "scores.json", result)
        if table:
            for words, found in scores.items():
                values = {key: f"{value.value:.2f}" for key, value in found.items()}
                add_row(table, row | {"set": f"{place.task.name} {words}"} | values)
            print(f"rows in {table} and {table.with_suffix('.md')}")
        print(f"{folder}: {', '.join(map(str, place.submissions.values()))}, scores.json")


def predict(model: Path, facts: FineTuned, place: DataOfTask, folder: Path, max_tokens: int, cpu: bool) -> str:
    """Write the predictions for all sets of a task into a folder; return the version of this project.

    Raises:
        ValueError: an example does not fit into a batch, or the model is another one since ``facts`` were read.
    """
    (folder / "scores.json").unlink(missing_ok=True)
    predictor = Predictor(model, place.binary, place.task.highest or 1.0, max_tokens, cpu)
    predictions = {}
    for split, words in place.splits.items():
        print(f"  {place.task.name} {words}", flush=True)
        predictions[split] = predictor.predict(split)
    if model.stat().st_mtime_ns != facts.written:
        raise ValueError(f"{model} was replaced by another evaluation meanwhile; give the same command again")
    with whole_texts([folder / file for file in place.submissions.values()]) as texts:
        for file, (split, found) in zip(texts, predictions.items(), strict=True):
            file.write("index\tprediction\n")
            examples = read_examples(place.text(split))
            file.writelines(f"{example.index}\t{made}\n" for example, made in zip(examples, found, strict=True))
    return project_version()


def _mean(sets: Mapping[str, Mapping[str, Score]]) -> float:
    """Return the score of a task: the mean over its sets for validation of the mean over its metrics."""
    return fmean(
        fmean(score.value for score in found.values()) for words, found in sets.items() if words.startswith(DEV)
    )
