"""From a masked language model to a table of GLUE, by a real command line that is interrupted; and what it refuses."""

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from math import log
from pathlib import Path

import pytest
import torch
from scipy.stats import pearsonr
from sentencepiece import SentencePieceProcessor

from moec_fairseq.__main__ import run
from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.data.subwords import train_model
from moec_fairseq.glue import Pretrained, method_of, table
from tests.conftest import LETTERS
from tests.texts import MASKED_LM, PAIRS, SPARSE, dictionary_of, sentences, write_binary
from tests.whole_trainings import train, write_corpus

UPDATES = 24
SIZES = {"train": 32, "dev": 30, "test": 7}


def write_raw(folder: Path) -> None:
    """Write RTE and STS-B as GLUE's site has them: do two sentences begin alike? Rows are numbered from 5."""
    draw = random.Random(1)
    for task, header, values in (
        ("RTE", "index sentence1 sentence2 label", ("not_entailment", "entailment")),
        ("STS-B", "index sentence1 sentence2 score", ("0.500", "4.200")),
    ):
        (folder / task).mkdir(parents=True)
        for split, size in SIZES.items():
            lines = [header.split()[: 3 if split == "test" else 4]]
            for number in range(size):
                first, second = ([draw.choice(LETTERS) for _ in range(draw.randint(2, 12))] for _ in range(2))
                second[0] = first[0] if number % 2 else draw.choice(LETTERS.replace(first[0], ""))
                row = [str(number + 5), " ".join(first), " ".join(second), values[number % 2]]
                lines.append(row[: len(lines[0])])
            text = "".join("\t".join(line) + "\n" for line in lines)
            (folder / task / f"{split}.tsv").write_text(text, encoding="utf-8")


def write_pretrained(folder: Path) -> None:
    """Write what moec prepare and moec train would: subwords, binary data, a checkpoint."""
    text, model = folder / "text", folder / "pre" / "spm.model"
    text.write_text("".join(f"{line}\n" for line in sentences(200)))
    train_model([text], 20, "char", 1.0, model)
    pieces = SentencePieceProcessor(model_file=str(model))
    symbols = [piece for piece in map(pieces.id_to_piece, range(pieces.get_piece_size())) if not piece.startswith("<")]
    for split in ("train", "valid"):
        lines = [" ".join(pieces.encode(line, out_type=str)) for line in sentences(100)]
        write_binary(lines, folder / "pre" / "binary" / split, dictionary_of(symbols))
    train(folder / "pre" / "binary", folder / "checkpoints", *MASKED_LM, "--lr", 0.001, max_update=2, base=SPARSE)


@pytest.fixture(scope="module")
def folder(once) -> Path:
    """Return a folder with a pre-trained model, its data, and raw tasks."""

    def fill(path: Path) -> None:
        write_raw(path / "raw")
        write_pretrained(path)

    return once("glue", fill)


def words(folder: Path) -> list[str]:
    options = ["--pretrained", folder / "checkpoints", "--raw-dir", folder / "raw", "--out", folder / "out", "--cpu"]
    schedule = [f"optimization.max_update={UPDATES}", "lr_scheduler.warmup_updates=2", "optimization.lr=[0.001]"]
    return [str(word) for word in ("glue", "rte", *schedule, "--seeds", "1", *options)]


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> subprocess.CompletedProcess[str]:
    """Press Ctrl-C after the first epoch of the first training."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script in the background may ignore
    process = subprocess.Popen(
        [sys.executable, "-m", "moec_fairseq", *words(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}, start_new_session=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while not (folder / "out/RTE/moec-seed1/checkpoint_last.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def resumed(folder: Path, interrupted: object) -> Iterator[str]:
    """Give the same command again in this process; return what it says."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CUDA_VISIBLE_DEVICES", "HYDRA_FULL_ERROR", "PYTHONWARNINGS"):  # which moec train sets
            patch.setenv(name, os.environ.get(name, ""))
        said = folder / "said"
        with said.open("w") as file:
            patch.setattr(sys, "stdout", file)
            run(words(folder))
        yield said.read_text()


@pytest.fixture(scope="module")
def stsb(folder: Path) -> Path:
    """Fine-tune for STS-B in this process, and evaluate."""
    data = folder / "STS-B"
    run(["prepare", "glue/sts-b", "--raw-dir", folder / "raw", "--subwords-of", folder / "pre", "--out", data])
    train(
        data / "binary", folder / "stsb", *PAIRS, "--num-classes", 1, "--regression-target", "--lr", 0.001,
        "--shorten-method", "truncate", "--finetune-from-model", folder / "checkpoints/checkpoint_best.pt",
        "--batch-size", 16, max_update=4, base=SPARSE,
    )  # fmt: skip
    run(["evaluate", "--checkpoints", folder / "stsb", "--best", "--cpu"])
    return folder / "stsb"


@pytest.fixture
def rte(folder: Path, resumed: str) -> Path:
    return folder / "out/RTE/moec-seed1"


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t", quoting=csv.QUOTE_NONE))


def test_it_is_resumed(interrupted, resumed):
    assert interrupted.returncode == 130 and "The same command continues where it was" in interrupted.stderr
    assert "[2/2] Fine-tuning moec for RTE, seed 1" in interrupted.stdout
    assert resumed.count("resuming from update") == 1 and "text: done before" in resumed
    assert f"100% {UPDATES}/{UPDATES} updates" in resumed


def test_predictions_are_those_that_the_site_takes(rte, stsb):
    for training, task, allowed in ((rte, "RTE", {"entailment", "not_entailment"}), (stsb, "STS-B", None)):
        for split, first in (("dev", 0), ("test", 5)):
            rows = read(training / "evaluation/best" / task / split / f"{task}.tsv")
            assert [row["index"] for row in rows] == [str(first + number) for number in range(SIZES[split])]
            predictions = [row["prediction"] for row in rows]
            assert set(predictions) <= allowed if allowed else all(-5 < float(value) < 10 for value in predictions)


def test_the_table_has_the_scores_of_these_files(folder, rte, resumed):
    (row,) = read(folder / "out/moec.csv")
    right = [line["label"] for line in read(folder / "raw/RTE/dev.tsv")]
    predictions = [line["prediction"] for line in read(rte / "evaluation/best/RTE/dev/RTE.tsv")]
    accuracy = 100 * sum(map(str.__eq__, right, predictions)) / len(right)
    validations = re.findall(r'"valid_accuracy": "([\d.]+)"', (rte / "rank-0.log").read_text())
    assert max(map(float, validations)) == pytest.approx(accuracy, abs=0.06)  # as fairseq counts, rounded
    assert (row["task"], row["set"], row["metric"]) == ("RTE", "dev", "accuracy")
    assert row["seed 1"] == row["median"] == f"{accuracy:.2f}" and row["spread"] == "0.00"
    assert "arch:moec_roberta|experts:8|clusters:2|seed:1|updates:" in row["model"]
    markdown = (folder / "out/moec.md").read_text()
    assert f"| {accuracy:.2f}" in markdown and markdown in f"{resumed}\n"


def test_numbers_are_those_of_the_labels(folder, stsb):
    """The model is trained on a fifth of them."""
    found = json.loads((stsb / "evaluation/best/STS-B/scores.json").read_text())
    predictions = [float(row["prediction"]) for row in read(stsb / "evaluation/best/STS-B/dev/STS-B.tsv")]
    right = [float(row["score"]) for row in read(folder / "raw/STS-B/dev.tsv")]
    error = sum((a - b) ** 2 for a, b in zip(predictions, right, strict=True)) / len(right)
    state = load_state(stsb / "checkpoint_best.pt")
    loss = state["extra_state"]["val_loss"]  # in bits, as fairseq counts
    assert loss * log(2) == pytest.approx(error / 25, abs=0.001)
    pearson, spearman = (found["scores"]["dev"][name]["value"] for name in ("pearson", "spearman"))
    assert pearson == pytest.approx(100 * pearsonr(right, predictions)[0], abs=0.01)
    assert found["score"] == pytest.approx((pearson + spearman) / 2)


def test_what_is_finished_is_skipped(folder, rte, capsys):
    before = [path.stat().st_mtime_ns for path in (folder / "out").rglob("*.pt")]
    run(words(folder))
    assert capsys.readouterr().out.count("training: done before") == 1
    assert before == [path.stat().st_mtime_ns for path in (folder / "out").rglob("*.pt")]


def test_predictions_do_not_depend_on_the_batches(rte, tmp_path):
    run(["evaluate", "--checkpoints", rte / "checkpoint_best.pt", "--max-tokens", "40", "--cpu", "--out", tmp_path])
    for split in ("dev", "test"):
        name = f"RTE/{split}/RTE.tsv"
        assert (tmp_path / name).read_text() == (rte / "evaluation/best" / name).read_text()


def test_the_mean_of_several_checkpoints(stsb):
    run(["evaluate", "--checkpoints", stsb, "--average", "2", "--cpu"])
    found = json.loads((stsb / "evaluation/last2/STS-B/scores.json").read_text())
    assert found["checkpoints"] == [str(stsb / f"checkpoint{epoch}.pt") for epoch in (1, 2)]
    assert "|seed:1|updates:4|checkpoints:2" in found["model"]


def test_a_row_for_each_scored_set(rte, stsb, tmp_path):
    for training in (rte, stsb, stsb):
        run(["evaluate", "--checkpoints", training, "--best", "--name", "x", "--table", tmp_path / "t.csv"])
    rows = read(tmp_path / "t.csv")
    assert [(row["system"], row["set"]) for row in rows] == [("x", "RTE dev"), ("x", "STS-B dev")]
    found = json.loads((stsb / "evaluation/best/STS-B/scores.json").read_text())
    assert rows[1]["pearson"] == f"{found['scores']['dev']['pearson']['value']:.2f}"


@pytest.mark.parametrize("options, sentence", [
    (["--beam", "3"], "--beam is not for a model that was fine-tuned for GLUE"),
    (["--references", "x"], "--references is not for a model"),
    (["--remove-bpe", "subword_nmt"], "--remove-bpe is not for a model"),
    (["--max-tokens", "3"], r"--max-tokens is 3, but valid has a row of \d+"),
    (["--max-tokens", "0"], "--max-tokens is 0, but must be 1 or more"),
    (["--data", "STS-B"], "the model predicts one of 2 classes, but STS-B in .* needs a number"),
    (["--data", "pre"], "pre is not a task of GLUE that moec prepare has written"),
])  # fmt: skip
def test_evaluation_refuses(folder, rte, stsb, options, sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=sentence):
        run(["evaluate", "--checkpoints", rte, "--best", "--out", tmp_path, *options])


@pytest.mark.parametrize("name, change, sentence", [
    ("input0", lambda lines: lines[:-1], r"dict.txt has \d+ subwords, but the model \d+"),
    ("input0", lambda lines: lines[::-1], "is not the dictionary of the training"),
    ("label", lambda lines: lines[::-1], "is not the dictionary of the training"),
])  # fmt: skip
def test_another_dictionary(rte, name, change, sentence, tmp_path):
    shutil.copytree(rte.parent, tmp_path / "data", ignore=shutil.ignore_patterns("moec-*"))
    dictionary = tmp_path / "data/binary" / name / "dict.txt"
    dictionary.write_text("".join(change(dictionary.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match=sentence):
        run(["evaluate", "--checkpoints", rte, "--best", "--data", tmp_path / "data", "--out", tmp_path / "out"])


def test_models_for_something_else(folder, rte, tmp_path):
    translation = tmp_path / "translation"
    train(
        write_corpus(tmp_path / "binary", 40), translation, "-s", "src", "-t", "tgt", "--max-tokens", 99, max_update=1
    )
    with pytest.raises(ValueError, match="was fine-tuned to predict labels of sentences, and does not translate"):
        run(["translate", rte, "--input", folder / "text"])
    with pytest.raises(ValueError, match="was pre-trained on text of one language; fine-tune it with moec glue"):
        run(["evaluate", "--checkpoints", folder / "checkpoints", "--best"])
    with pytest.raises(
        ValueError, match=r"RTE was prepared for language understanding \(glue\), but the model translates"
    ):
        run(
            [
                "evaluate",
                "--checkpoints",
                translation,
                "--best",
                "--data",
                folder / "out/RTE",
                "--out",
                tmp_path / "out",
            ]
        )
    for model, task in ((rte, "sentence_prediction"), (translation, "translation")):
        with pytest.raises(ValueError, match=f"was trained for {task}, but GLUE needs a masked language model"):
            run(["glue", "RTE", "--pretrained", model])


@pytest.mark.parametrize("given, sentence", [
    (["RTE", "--data", "x", "--seeds", "1,a"], "--seeds is 1,a, but must be whole numbers from 1 with commas"),
    (["RTE", "--data", "x", "--seeds", "0"], "--seeds is 0, but must be whole numbers"),
    (["RTE"], "--pretrained none needs --data"),
    (["RTE", "xyz"], "there is no GLUE task 'xyz'; give one of CoLA, SST-2"),
    (["optimization.lr=[1]"], "no task was given; give all, or some of CoLA, SST-2"),
    (["RTE", "common.seed=3"], "common.seed is what --seeds says; leave it out"),
    (["RTE", "++checkpoint.save_dir=x"], "checkpoint.save_dir is what --out says"),
])  # fmt: skip
def test_the_command_refuses(given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        run(["glue", *given, "--pretrained", "none"])
    assert not list(tmp_path.iterdir())


def report(score: float, **metrics: dict[str, float]) -> dict[str, object]:
    sets = {name: {key: {"value": value} for key, value in found.items()} for name, found in metrics.items()}
    return {"score": score, "scores": sets, "model": f"experts:8|updates:{score}", "version": "1"}


def test_the_table_by_hand():
    rows = table("moec", [1, 2, 4], {
        "RTE": [report(score, dev={"accuracy": score}) for score in (70, 50, 55)],
        "CoLA": [report(score, dev={"mcc": score}) for score in (10, 40, 30)],
    })  # fmt: skip
    seeds = [[row[f"seed {seed}"] for seed in (1, 2, 4)] for row in rows]
    assert seeds == [["70.00", "50.00", "55.00"], ["10.00", "40.00", "30.00"], ["40.00", "45.00", "42.50"]]
    assert [row["median"] for row in rows] == ["55.00", "30.00", "42.50"]
    assert [row["spread"] for row in rows] == ["20.00", "30.00", "5.00"]
    assert rows[0]["model"] == "experts:8|moec_fairseq:1" and "model" not in rows[2]
    assert len(table("moec", [1], {"RTE": [report(1, dev={"accuracy": 1})]})) == 1


def test_a_published_checkpoint(tmp_path):
    args = Namespace(task="masked_lm", arch="roberta_base", data="/gone/bin")
    torch.save(
        {"args": args, "model": {"decoder.sentence_encoder.embed_positions.weight": torch.zeros(514, 1)}},
        tmp_path / "model.pt",
    )
    found = Pretrained.of(tmp_path / "model.pt")
    assert found.overrides[1] == "task.max_positions=512" and (found.method, found.data) == ("dense", Path("/gone"))


@pytest.mark.parametrize("options, method", [
    ({"moe_expert_count": 8, "moec_cluster_count": 2, "moec_expert_dropout": 0.5}, "moec"),
    ({"moe_expert_count": 8, "moec_cluster_count": 2, "moec_expert_dropout": 0.0}, "moec-nodropout"),
    ({"moe_expert_count": 8, "moec_cluster_count": 1, "moec_expert_dropout": 0.0}, "moe"),
    ({"moe_expert_count": 1, "moec_cluster_count": 1, "moec_expert_dropout": 0.0}, "dense"),
    ({}, "dense"),
])  # fmt: skip
def test_the_method_of_a_checkpoint(options, method):
    assert method_of({"cfg": {"model": options}}) == method
