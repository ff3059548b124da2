"""The loss of sentence classification and regression with the losses of the MoEC router, and the scores of GLUE."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.criterions.sentence_prediction import SentencePredictionConfig, SentencePredictionCriterion
from fairseq.logging import metrics
from fairseq.logging.meters import MetersDict
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from moec_fairseq.criterions.router_losses import RouterLosses, RouterLossOptions

NAME = "moec_sentence_prediction"
PREDICTIONS = "_predictions"  # the log shows no name that begins so

Score = Callable[[Sequence[Any], Sequence[Any]], float]

# of targets and predictions
SCORES: dict[str, Score] = {
    "mcc": matthews_corrcoef,
    "accuracy": accuracy_score,
    "f1": f1_score,
    "pearson": lambda targets, predictions: pearsonr(targets, predictions)[0],
    "spearman": lambda targets, predictions: spearmanr(targets, predictions)[0],
}
# option -> what it shows, each the mean of some scores
REPORTS: dict[str, dict[str, tuple[str, ...]]] = {
    "report_mcc": {"mcc": ("mcc",)},
    "report_acc_and_f1": {"acc_and_f1": ("accuracy", "f1"), "f1": ("f1",)},
    "report_pearson_and_spearman": {
        "pearson_and_spearman": ("pearson", "spearman"),
        "pearson": ("pearson",),
        "spearman": ("spearman",),
    },
}


class Predictions(MetersDict._DerivedMeter):
    """The targets and predictions of a validation; fairseq 0.12.2 has no meter for them.

    fairseq saves meters in its checkpoints, all but derived ones, and can load those of its own classes only.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all."""
        self.pairs = list[tuple[float, float]]()

    def update(self, pairs: Sequence[tuple[float, float]]) -> None:
        """Add those of a batch."""
        self.pairs.extend(pairs)


def defined_score(name: str, targets: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Return a score, at most 1; 0 where it is not defined, as for the correlation with what does not vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about constant predictions, as those of a new model often are
        score = float(SCORES[name](targets, predictions))
    return 0.0 if math.isnan(score) else score


def mean_score(names: Sequence[str], meters: MetersDict) -> float:
    """Return the mean of some scores of a validation in per cent, rounded."""
    targets, predictions = zip(*meters[PREDICTIONS].pairs, strict=True)
    return round(100 * fmean(defined_score(name, targets, predictions) for name in names), 1)


def label_names(dictionary: Any) -> list[str]:
    """Return the names of the classes, by number: fairseq numbers them by frequency."""
    symbols = dictionary.symbols[dictionary.nspecial :]
    return [symbol for symbol in symbols if symbol != "<mask>" and not symbol.startswith("madeupword")]


@dataclass
class MoECSentencePredictionConfig(RouterLossOptions, SentencePredictionConfig):
    """fairseq's options, those of later versions, too, and those of the router losses."""

    report_mcc: bool = field(default=False, metadata={"help": "show Matthews' correlation at validation"})
    report_acc_and_f1: bool = field(default=False, metadata={"help": "show F1 of the label 1 at validation"})
    report_pearson_and_spearman: bool = field(
        default=False, metadata={"help": "show the correlations with the targets of a regression at validation"}
    )


@register_criterion(NAME, dataclass=MoECSentencePredictionConfig)
class MoECSentencePredictionCriterion(RouterLosses, SentencePredictionCriterion):
    """fairseq's loss of a classification head and the router losses (see ``RouterLosses``).

    fairseq's own scores fail for labels that are not numbers and with several processes, its log shows every
    prediction, and version 0.12.2 has none.

    Raises:
        ValueError: the task has no MoEC RoBERTa, its clusters do not fit the variance form, or a score does not fit the
            labels.
    """

    name = NAME
    arch = "moec_roberta"

    def __init__(self, cfg: Any, task: Any) -> None:
        super().__init__(cfg, task)
        self.set_up_router_losses(task, cfg)
        self.keep_pred_and_targ = False  # by fairseq
        self.reports = [option for option in REPORTS if getattr(cfg, option)]
        self.positive: int | None = None  # class that F1 is of
        names = [] if self.regression_target else label_names(task.label_dictionary)
        if len(names) > task.cfg.num_classes:
            raise ValueError(
                f"--num-classes is {task.cfg.num_classes}, but the data have the labels {', '.join(names)}; give "
                f"{len(names)} (task.num_classes)."
            )
        if self.regression_target != ("report_pearson_and_spearman" in self.reports) and self.reports:
            raise ValueError(
                "--report-pearson-and-spearman is for regression (--regression-target), --report-mcc and "
                "--report-acc-and-f1 are for classes; give the one that fits."
            )
        if "report_acc_and_f1" in self.reports:
            if set(names) != {"0", "1"}:
                raise ValueError(
                    "--report-acc-and-f1 shows F1 of the label 1 and needs the labels 0 and 1, but those of the data "
                    f"are {', '.join(names)}; leave it out: accuracy is always shown."
                )
            self.positive = names.index("1")

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple[Any, Any, dict[str, Any]]:
        """Return (loss, sample size, logging output), sums over the sample; at evaluation predictions, too."""
        if model.training or not self.reports:
            return super().forward(model, sample, reduce)
        logits = []
        head = model.classification_heads[self.classification_head_name]
        handle = head.register_forward_hook(lambda module, inputs, output: logits.append(output))
        try:
            loss, sample_size, logging_output = super().forward(model, sample, reduce)
        finally:
            handle.remove()
        targets, (output,) = sample["target"].view(-1), logits
        predictions = output.view(-1).float() if self.regression_target else output.argmax(dim=1)
        if self.positive is not None:
            targets, predictions = targets == self.positive, predictions == self.positive
        pairs = zip(targets.tolist(), predictions.tolist(), strict=True)
        logging_output |= {PREDICTIONS: list(pairs)} | {option: [option] for option in self.reports}
        return loss, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses, the routing metrics and the scores."""
        super().reduce_metrics([{k: v for k, v in log.items() if k != PREDICTIONS} for log in logging_outputs])
        for pairs in [log[PREDICTIONS] for log in logging_outputs if PREDICTIONS in log]:
            metrics.log_custom(Predictions, PREDICTIONS, pairs)
        for option in [option for option in REPORTS if any(option in log for log in logging_outputs)]:
            for shown, names in REPORTS[option].items():
                metrics.log_derived(shown, partial(mean_score, names))

    def logging_outputs_can_be_summed(self) -> bool:
        """Whether those of several processes can be added up: not the predictions of a validation."""
        return self.training or not self.reports
