"""Scores of GLUE: known by hand, and those of the packages that others use."""

import json
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics

from moec_fairseq.criterions.moec_sentence_prediction import SCORES
from moec_fairseq.data.glue import find_task, read_tasks
from moec_fairseq.evaluate.glue import DataOfTask, FineTuned, score

LABELS, PREDICTIONS = "1 1 0 0".split(), "1 0 0 0".split()


def values(task, labels, predictions):
    return {name: found.value for name, found in score(find_task(task), labels, predictions).items()}


def test_each_metric_of_the_table_of_tasks_is_known():
    assert {name for task in read_tasks().values() for name in task.metrics} == set(SCORES)


# one true positive, one positive that was missed, two true negatives
@pytest.mark.parametrize("task, right", [
    ("SST-2", {"accuracy": 75}),
    ("MRPC", {"accuracy": 75, "f1": round(100 * 2 / 3, 2)}),
    ("CoLA", {"mcc": round(100 * (1 * 2 - 0 * 1) / sqrt(1 * 2 * 2 * 3), 2)}),
])  # fmt: skip
def test_classes_by_hand(task, right):
    assert values(task, LABELS, PREDICTIONS) == right


def test_the_positive_label_is_the_last_one():
    assert values("MRPC", ["1", "1"], ["1", "1"])["f1"] == 100
    assert values("MRPC", ["0", "0"], ["0", "0"])["f1"] == 0


def test_correlations_by_hand():
    # the order is right, but the last is too far: covariance 14 / 4, variances 5 / 4 and 50 / 4
    assert values("STS-B", "1 2 3 4".split(), "1 2 3 10".split()) == {
        "pearson": round(100 * 14 / sqrt(5 * 50), 2),
        "spearman": 100,
    }
    assert values("STS-B", "1 2 3".split(), "-1 -2 -3".split()) == {"pearson": -100, "spearman": -100}


def test_what_does_not_vary_has_learned_nothing():
    assert values("STS-B", "1 2 3".split(), "2 2 2".split()) == {"pearson": 0, "spearman": 0}
    assert values("CoLA", "1 0 1".split(), "1 1 1".split()) == {"mcc": 0}


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_classes_as_scikit_learn_counts_them(pairs):
    labels, predictions = ([str(int(value)) for value in side] for side in zip(*pairs, strict=True))
    numbers = [[int(value) for value in side] for side in zip(*pairs, strict=True)]
    assert values("MRPC", labels, predictions) == {
        "accuracy": round(100 * metrics.accuracy_score(*numbers), 2),
        "f1": round(100 * metrics.f1_score(*numbers, zero_division=0), 2),
    }
    assert values("CoLA", labels, predictions) == {"mcc": round(100 * metrics.matthews_corrcoef(*numbers), 2)}


def test_numbers_as_scipy_correlates_them():
    labels, predictions = [0.0, 1.2, 1.2, 3.4, 5.0, 2.5], [0.3, 0.2, 1.9, 3.3, 4.1, 2.6]
    assert values("STS-B", list(map(str, labels)), list(map(str, predictions))) == {
        "pearson": round(100 * stats.pearsonr(labels, predictions)[0], 2),
        "spearman": round(100 * stats.spearmanr(labels, predictions)[0], 2),
    }


def test_a_signature_says_what_reproduces_the_score():
    found = score(find_task("MRPC"), LABELS, PREDICTIONS)
    assert found["f1"].signature.startswith("f1|examples:4|scikit-learn:")
    assert score(find_task("STS-B"), "1 2".split(), "1 2".split())["pearson"].signature.startswith(
        "pearson|examples:2|scipy:"
    )


def test_names_of_mnli(tmp_path):
    splits = ["train", "valid", "valid1", "test", "test1"]
    (tmp_path / "prepared.json").write_text(json.dumps({"kind": "glue", "task": "MNLI", "splits": splits}))
    for part, symbols in (("input0", 2), ("label", 3)):
        (tmp_path / "binary" / part).mkdir(parents=True)
        (tmp_path / "binary" / part / "dict.txt").write_text("".join(f"{n} 1\n" for n in range(symbols)))
    place = DataOfTask(tmp_path / "binary", FineTuned(tmp_path / "gone", 3, False, 7, 0, {}))
    assert list(place.splits.values()) == ["dev matched", "dev mismatched", "test matched", "test mismatched"]
    names = ["dev/MNLI-m.tsv", "dev/MNLI-mm.tsv", "test/MNLI-m.tsv", "test/MNLI-mm.tsv"]
    assert list(map(str, place.submissions.values())) == names
