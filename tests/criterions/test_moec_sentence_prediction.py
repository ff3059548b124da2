"""Scores of GLUE at validation."""

import pytest
import torch
from fairseq.logging import metrics
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from moec_fairseq.criterions.moec_sentence_prediction import PREDICTIONS, label_names
from tests.texts import PAIRS, built, write_numbers, write_pairs

MCC_AND_F1 = ("--report-mcc", "--report-acc-and-f1")


@pytest.fixture(scope="module")
def pairs(once):
    return once("pairs", write_pairs)


def reduced(criterion, logs):
    with metrics.aggregate(new_root=True) as logged:
        criterion.reduce_metrics(logs)
    return logged.get_smoothed_values()


def logs_of(model, batches=2, size=20):
    with torch.no_grad():
        outputs = [model.criterion(model.model.eval(), model.batch(size * i, size)) for i in range(batches)]
    return [log for _, _, log in outputs]


def test_scores_are_those_of_scikit_learn(pairs):
    """Whichever class is more frequent, and so is the first one."""
    model = built(pairs, *PAIRS, *MCC_AND_F1)
    logs = logs_of(model, batches=3)
    shown = reduced(model.criterion, logs)
    names = label_names(model.task.label_dictionary)
    targets, predictions = [], []
    for i in range(3):
        batch = model.batch(20 * i, 20)
        head = "sentence_classification_head"
        logits, _ = model.model(**batch["net_input"], classification_head_name=head)
        predictions += [int(names[k]) for k in logits.argmax(dim=1)]
        targets += [int(names[k]) for k in batch["target"].flatten()]
    f1 = 100 * f1_score(targets, predictions)
    assert shown["mcc"] == pytest.approx(100 * matthews_corrcoef(targets, predictions), abs=0.06)
    assert shown["f1"] == pytest.approx(f1, abs=0.06)
    assert shown["acc_and_f1"] == pytest.approx((float(shown["accuracy"]) + f1) / 2, abs=0.11)
    assert not any(name.startswith("_") or name in ("pred", "targ") for name in shown)


def test_correlations_of_a_regression_are_those_of_scipy(tmp_path):
    model = built(
        write_numbers(tmp_path), *PAIRS, "--num-classes", 1, "--regression-target", "--report-pearson-and-spearman"
    )
    logs = logs_of(model)
    targets, predictions = zip(*(pair for log in logs for pair in log[PREDICTIONS]), strict=True)
    assert targets[:2] == pytest.approx([0.0, 0.2])  # as they were written
    shown = reduced(model.criterion, logs)
    pearson, spearman = 100 * pearsonr(targets, predictions)[0], 100 * spearmanr(targets, predictions)[0]
    assert (shown["pearson"], shown["spearman"]) == pytest.approx((pearson, spearman), abs=0.06)
    assert shown["pearson_and_spearman"] == pytest.approx((pearson + spearman) / 2, abs=0.06)


def test_constant_predictions_have_no_correlation_and_no_training_waits_for_them(pairs):
    model = built(pairs, *PAIRS, *MCC_AND_F1)
    logs = [log | {PREDICTIONS: [(target, 1) for target, _ in log[PREDICTIONS]]} for log in logs_of(model)]
    assert reduced(model.criterion, logs)["mcc"] == 0
    _, _, log = model.criterion(model.model.train(), model.batch())
    assert PREDICTIONS not in log
    assert model.criterion.train().logging_outputs_can_be_summed()
    assert not model.criterion.eval().logging_outputs_can_be_summed()  # lists cannot be sent as a tensor


@pytest.mark.parametrize("flags, message", [
    (["--report-acc-and-f1"], "needs the labels 0 and 1, but those of the data are no, yes; leave it out"),
    (["--report-pearson-and-spearman"], "is for regression"),
    (["--num-classes", 1], "--num-classes is 1, but the data have the labels no, yes; give 2"),
])  # fmt: skip
def test_what_does_not_fit_the_labels(tmp_path, flags, message):
    folder = write_pairs(tmp_path, train=20, valid=20, labels=("no", "yes"))
    model = built(folder, *PAIRS, "--report-mcc")
    assert "mcc" in reduced(model.criterion, logs_of(model, batches=1))
    with pytest.raises(ValueError, match=message):
        built(folder, *PAIRS, *flags)
