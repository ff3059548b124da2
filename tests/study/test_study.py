"""Studies: which cells there are, how they run, what is reported; most cells run a script instead of a training."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import yaml

from moec_fairseq.__main__ import ROOT, main
from moec_fairseq.evaluate.scores import Score
from moec_fairseq.launch.configuration import Configuration, configure
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.losses import GateLoss
from moec_fairseq.study import report, study, trainings
from moec_fairseq.study.grid import Cell, read_study
from moec_fairseq.study.report import at_best
from moec_fairseq.study.trainings import gpus_of_each, run_cell, share_of_machine
from moec_fairseq.util import progress
from moec_fairseq.util.files import alone_with

# Trains by writing down numbers, resumes from its checkpoint, and fails or waits when it is told to.
STUB = """
import json, sys, time
from pathlib import Path

folder = Path(sys.argv[1])
note = json.loads((folder / "cell.json").read_text())
checkpoint, log = folder / "checkpoint_last.pt", (folder / "rank-0.log").open("a")
done = int(checkpoint.read_text()) if checkpoint.exists() else 0
if done:
    print(f"Loaded checkpoint x (epoch 1 @ {done} updates)", file=log)
for update in range(done + 1, note["settings"]["optimization.max_update"] + 1):
    loss = {1: 9.0, 2: 4.0, 3: 3.0, 4: 2.0}[update] + float(note["settings"]["common.seed"])
    inner = {"num_updates": str(update), "nll_loss": str(loss - 1), "wpb": "200", "moe_load_min": "5"}
    valid = {"valid_num_updates": str(update), "valid_loss": str(loss), "valid_nll_loss": str(loss - 0.5)}
    for tag, row in {"train_inner": inner, "valid": valid}.items():
        print(f"now | INFO | {tag} | {json.dumps(row)}", file=log, flush=True)
    checkpoint.write_text(str(update))
    if update == 2 and (folder.parent / "wait").exists():
        time.sleep(60)
if (folder.parent / f"break {note['settings']['method']}").exists():
    raise ValueError("out of luck")
if note["evaluate"] is not None:
    (folder / "evaluation" / "test").mkdir(parents=True, exist_ok=True)
    scores = {"BLEU": {"value": 10.0 * float(note["settings"]["common.seed"]), "signature": "as ever"}}
    found = {"set": "test", "model": "m", "version": "v", "scores": scores}
    (folder / "evaluation" / "test" / "scores.json").write_text(json.dumps(found))
"""
CONTENT = {
    "config": "quickstart",
    "overrides": ["optimization.max_update=4"],
    "grid": {"method": ["moe", "moec"], "common.seed": [1, 2, 4]},
    "evaluate": "--best",
    "repeat": "common.seed",
    "columns": ["valid_nll_loss", "gap", "updates", "least_tokens", "BLEU"],
    "picture": {"x": "method", "y": ["valid_nll_loss", "BLEU"]},
}
METRIC = {"checkpoint.best_checkpoint_metric": "loss", "checkpoint.maximize_best_checkpoint_metric": False}


def write(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(CONTENT | changes, sort_keys=False))
    return path


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Let cells run the script; return the processes that were started, by the name of their cell."""
    (tmp_path / "stub.py").write_text(STUB)
    started = []

    def start_module(name, folder, output, environment):
        assert name == "moec_fairseq.study.trainings"
        process = subprocess.Popen(
            [sys.executable, tmp_path / "stub.py", folder], stdout=output, stderr=output, start_new_session=True
        )
        started.append((folder.name, process))
        return process

    def configured(path, overrides):
        values = dict(text.split("=", 1) for text in overrides)
        return Configuration(path, [*overrides], values | METRIC | {"optimization.max_update": 4})

    monkeypatch.setattr(trainings, "start_module", start_module)
    monkeypatch.setattr(trainings, "configure", configured)
    monkeypatch.setattr(trainings, "POLL", 0.02)
    return started


def states(out):
    return {path.parent.name: json.loads(path.read_text())["state"] for path in out.glob("*/cell.json")}


def rows(file):
    import csv

    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def start(path, out, *given, jobs=2, report=False):
    study(str(path), given, jobs, out, report)


def test_the_cells_of_a_grid(tmp_path):
    path = write(
        tmp_path,
        overrides=["model.dropout=0.1", "optimization.lr=[1]"],
        grid=[
            {
                "experts": {
                    1: "model.moe_expert_count=1",
                    8: ["model.moe_expert_count=8", "model.moec_cluster_count=2"],
                },
                "method": {"moe": ["method=moe", "model.moec_cluster_count=1"], "a/b": ["method=moec"]},
            },
            {"model.encoder_moe_layers": ["1,2", None], "optimization.lr": [[0.5]], "common.fp16": [True]},
        ],
        repeat=None,
        picture={"x": "experts", "y": "gap"},
    )
    cells = read_study(path).cells(tmp_path, ["model.dropout=0.2"])
    assert [cell.folder.name for cell in cells] == [
        "experts=1_method=moe", "experts=1_method=a_b", "experts=8_method=moe", "experts=8_method=a_b",
        "encoder_moe_layers=1_2_lr=0.5_fp16=true", "encoder_moe_layers=null_lr=0.5_fp16=true",
    ]  # fmt: skip
    # the command line wins over the file, a later axis over an earlier one
    assert cells[2].overrides == [
        "model.dropout=0.2", "optimization.lr=[1]", "model.moe_expert_count=8", "model.moec_cluster_count=1",
        "method=moe",
    ]  # fmt: skip
    assert cells[2].labels == {"experts": "8", "method": "moe"}
    assert cells[4].overrides == [
        "model.dropout=0.2", "optimization.lr=[0.5]", "model.encoder_moe_layers='1,2'", "common.fp16=true",
    ]  # fmt: skip
    assert "model.encoder_moe_layers=null" in cells[5].overrides


def test_the_study_of_the_documentation(tmp_path):
    (code,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "my-study.yaml"
    path.write_text(code, encoding="utf-8")
    assert "method=moe_seed=1_size=small" in [cell.folder.name for cell in read_study(path).cells(tmp_path)]
    assert len(read_study(path).cells(tmp_path)) == 12


def line(tag, **values):
    return f"2026-01-01 00:00:00 | INFO | {tag} | {json.dumps({key: str(value) for key, value in values.items()})}"


def test_the_best_point_of_a_log():
    inner = [
        line("train_inner", num_updates=update, loss=99, nll_loss=loss, wpb=400, moe_load_min=load)
        for update, loss, load in ((5, 6, 1), (10, 5, 1), (15, 3, 2), (20, 2, 4), (25, 1, 9), (30, 0.5, 9))
    ]
    valid = [
        line("valid", valid_num_updates=update, valid_loss=loss, valid_nll_loss=loss - 1)
        for update, loss in ((10, 7), (20, 5.5), (30, 6))
    ]
    log = [*inner[:2], valid[0], *inner[2:4], valid[1], *inner[4:], valid[2], "something else"]
    found = at_best(log, "loss", larger=False)
    assert (found["updates"], found["updates_trained"], found["valid_loss"]) == (20, 30, 5.5)
    assert found["train_nll_loss"] == 2.5 and found["gap"] == 4.5 - 2.5  # mean of updates 11 to 20
    assert found["least_tokens"] == 3 / 100 * 400
    assert at_best(log, "loss", larger=True)["updates"] == 10
    assert at_best(log, "bleu", larger=True) == at_best(inner, "loss", larger=False) == {}
    # what was logged after the last checkpoint, and not again, does not count
    resumed = [*log, "Loaded checkpoint a/b.pt (epoch 2 @ 10 updates)", inner[2]]
    assert at_best(resumed, "loss", larger=False)["updates"] == 10
    diverged = [*log, line("valid", valid_num_updates=40, valid_loss="nan", valid_nll_loss="nan")]
    assert at_best(diverged, "loss", larger=False)["updates"] == 20


def test_a_cell_that_fails_does_not_stop_the_others(stub, tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / "break moe").touch()
    monkeypatch.setattr(sys, "argv", ["moec", "study", str(path), f"task.data={tmp_path}", "--out", str(out)])
    assert main() == 1
    said = capsys.readouterr()
    (last,) = said.err.splitlines()
    assert last.startswith("error: 3 of 6 trainings failed: method=moe_seed=1, method=moe_seed=2, method=moe_seed=4;")
    assert states(out) == {
        f"method={method}_seed={seed}": "failed" if method == "moe" else "finished"
        for method in ("moe", "moec") for seed in (1, 2, 4)
    }  # fmt: skip
    assert (
        "method=moec_seed=4: finished" in said.out and "method=moe_seed=1: failed: ValueError: out of luck" in said.out
    )
    assert "6 of 6 trainings done" not in said.out and "24/24 updates" in said.out
    cells = rows(out / "cells.csv")
    assert [(row["method"], row["state"], row["reason"]) for row in cells[2:4]] == [
        ("moe", "failed", "ValueError: out of luck"),
        ("moec", "finished", ""),
    ]
    assert cells[0]["valid_nll_loss"] == "2.5"  # of a failed one, too
    assert cells[3]["BLEU"] == "10" and cells[3]["BLEU's signature"] == "as ever"

    (out / "break moe").unlink()
    stub.clear()
    assert main() == 0
    assert sorted(name for name, _ in stub) == [f"method=moe_seed={seed}" for seed in (1, 2, 4)]
    assert set(states(out).values()) == {"finished"}
    stub.clear()
    assert main() == 0 and not stub


def test_interrupted_and_started_again_it_goes_on(stub, tmp_path, monkeypatch, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    given = f"task.data={tmp_path}"
    out.mkdir()
    (out / "wait").touch()
    sleep = trainings.time.sleep

    def interrupt(seconds):
        sleep(seconds)
        if len(list(out.glob("*/checkpoint_last.pt"))) == 2 and all(
            p.read_text() == "2" for p in out.glob("*/checkpoint_last.pt")
        ):
            raise KeyboardInterrupt

    monkeypatch.setattr(trainings.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(path, out, given)
    assert [process.returncode for _, process in stub] == [-9, -9]  # two at a time, and none outlives the study
    assert [states(out).get(name) for name, _ in stub] == ["unfinished", "unfinished"]

    start(path, out, report=True)
    assert "0 of 6 trainings are finished" in capsys.readouterr().out
    assert [row["state"] for row in rows(out / "cells.csv")] == ["unfinished"] * 2 + ["not started"] * 4
    assert rows(out / "cells.csv")[0]["updates"] == "2" and not (out / "table.csv").exists()

    (out / "wait").unlink()
    monkeypatch.setattr(trainings.time, "sleep", sleep)
    stub.clear()
    start(path, out, given, jobs=6)
    assert len(stub) == 6 and set(states(out).values()) == {"finished"}
    log = (out / "method=moe_seed=1" / "rank-0.log").read_text()
    assert log.count('"num_updates": "1"') == 1 and "@ 2 updates" in log  # not from its beginning
    shown = capsys.readouterr().out
    assert "4/24 updates" in shown and "24/24 updates" in shown and "6 of 6 trainings done" in shown


def test_what_is_trained_again_counts_for_the_time_left(tmp_path, monkeypatch):
    (cell,) = read_study(write(tmp_path, grid={"method": ["moe"], "common.seed": [1]})).cells(tmp_path / "out", [])
    cell.write(settings={"optimization.max_update": 400})
    logged = iter([290, 290, 210, 300, 400])  # the last checkpoint had 200 updates
    process = SimpleNamespace(poll=lambda: 0 if bars[0].n == 300 else None, returncode=0)
    bars = []

    def progress_bar(*of):
        bars.append(progress.progress_bar(*of))
        return bars[0]

    monkeypatch.setattr(trainings, "_updates", lambda cell: next(logged))
    monkeypatch.setattr(trainings, "start_cell", lambda *_: process)
    monkeypatch.setattr(trainings, "progress_bar", progress_bar)
    monkeypatch.setattr(trainings, "POLL", 0)
    trainings.run_cells([cell], [cell], 1, sys.stdout)
    assert (bars[0].initial, bars[0].n) == (210, 400)


def fill(path, out, unfinished=()):
    """Make results as trainings leave them, without any."""
    for cell in read_study(path).cells(out):
        seed = float(cell.labels["common.seed"])
        state = "unfinished" if (cell.labels["method"], seed) in unfinished else "finished"
        cell.write(state=state, settings=METRIC, reason="")
        cell.log.write_text(
            f"{line('train_inner', num_updates=10, nll_loss=seed, wpb=100, moe_load_min=1)}\n"
            f"{line('valid', valid_num_updates=10, valid_loss=9, valid_nll_loss=seed + 2)}\n"
        )
        if state == "finished":
            scores = {"BLEU": asdict(Score(10 * seed, "nrefs:1"))}
            found = {"set": "test", "model": "m", "version": "v", "scores": scores}
            (cell.folder / "evaluation" / "test").mkdir(parents=True)
            (cell.folder / "evaluation" / "test" / "scores.json").write_text(json.dumps(found))


def test_report_of_what_is_there(tmp_path, capsys):
    path, out = write(tmp_path), tmp_path / "out"
    fill(path, out, unfinished=[("moe", 4), ("moec", 2), ("moec", 4)])
    start(path, out, report=True)
    assert "3 of 6 trainings are finished" in capsys.readouterr().out
    moe, moec = rows(out / "table.csv")
    # seeds 1 and 2 are finished: their mean is 1.5, their standard deviation √½; tan(0.475 π) · √½/√2 = 6.3531
    assert (moe["method"], moe["valid_nll_loss"], moe["valid_nll_loss sd"], moe["valid_nll_loss n"]) == (
        "moe", "3.5", "0.707107", "2",
    )  # fmt: skip
    assert (moe["valid_nll_loss low"], moe["valid_nll_loss high"]) == ("-2.8531", "9.8531")
    assert (moe["BLEU"], moe["BLEU sd"], moe["gap"], moe["gap sd"]) == ("15", "7.07107", "2", "0")
    assert (moec["BLEU"], moec["BLEU sd"], moec["BLEU n"], moec["least_tokens"]) == ("10", "", "1", "1")
    assert (moec["BLEU low"], moec["BLEU high"]) == ("", "")
    table = (out / "table.md").read_text().splitlines()
    assert [word.strip() for word in table[2].split("|")[1:5]] == ["moe", "2 of 3", "3.5 ± 6.4", "2 ± 0"]
    assert [word.strip() for word in table[3].split("|")[1:5]] == ["moec", "1 of 3", "3", "2"]
    assert (out / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert len((out / "cells.md").read_text().splitlines()) == 2 + 6


def test_scores_of_many_directions(tmp_path):
    path, out = write(tmp_path, grid={"method": ["moe"], "common.seed": [1]}), tmp_path / "out"
    fill(path, out)
    ((cell),) = read_study(path).cells(out)
    evaluations = [  # the last one has two directions; before it, another part of the data and another model
        ("valid en-de", "en-de", "new", 70.0),
        ("test en-de", "en-de", "old", 80.0),
        ("test en-de", "en-de", "new", 20.0),
        ("test en-fr", "en-fr", "new", 31.0),
    ]
    for time, (name, direction, model, bleu) in enumerate(evaluations, start=10**9):
        folder = cell.folder / "evaluation" / f"{time}"
        folder.mkdir()
        scores = {"BLEU": asdict(Score(bleu, f"of {direction}"))}
        found = {"set": name, "direction": direction, "model": model, "version": "v", "scores": scores}
        (folder / "scores.json").write_text(json.dumps(found))
        os.utime(folder / "scores.json", (2 * time, 2 * time))
    start(path, out, report=True)
    (row,) = rows(out / "cells.csv")
    assert (row["set"], row["BLEU"], row["BLEU en-de"], row["BLEU en-fr"]) == ("test", "25.5", "20", "31")
    assert row["BLEU en-fr's signature"] == "of en-fr"


def test_what_is_drawn(tmp_path, monkeypatch):
    path, out = write(tmp_path), tmp_path / "out"
    fill(path, out)
    drawn = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    start(path, out, report=True)
    loss, bleu = drawn[0].axes
    assert (loss.get_ylabel(), bleu.get_ylabel(), bleu.get_xlabel()) == ("valid_nll_loss", "BLEU", "method")
    ((points, _, (bars,)),) = bleu.containers
    assert [label.get_text() for label in bleu.get_xticklabels()] == ["moe", "moec"]
    assert list(points.get_xdata()) == [0, 1] and points.get_ydata() == pytest.approx([70 / 3] * 2)
    low, high = bars.get_segments()[0][:, 1]
    # of 10, 20 and 40; with two degrees of freedom Student's t is (2p − 1)/√(2p(1 − p)) = 4.3027
    assert (low, high) == pytest.approx((70 / 3 - 37.9462, 70 / 3 + 37.9462), abs=1e-3)


def test_numbers_are_drawn_by_size(tmp_path, monkeypatch):
    sizes = {size: [f"model.moe_expert_count={size}"] for size in ("64", "8", "128")}
    picture = {"x": "experts", "y": ["BLEU"]}
    path = write(tmp_path, grid={"method": ["moe"], "common.seed": [1], "experts": sizes}, picture=picture)
    fill(path, tmp_path / "out")
    drawn = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    start(path, tmp_path / "out", report=True)
    assert [label.get_text() for label in drawn[0].axes[0].get_xticklabels()] == ["8", "64", "128"]


def test_what_is_not_there_has_no_line(tmp_path, monkeypatch):
    path, out = (
        write(tmp_path, picture={"x": "size", "y": ["BLEU"]}, grid=CONTENT["grid"] | {"size": {"s": []}}),
        tmp_path / "out",
    )
    fill(path, out, unfinished=[("moe", 1), ("moe", 2), ("moe", 4)])
    drawn = []
    monkeypatch.setattr(report.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    start(path, out, report=True)
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["moec"]


def test_margins_are_those_of_tables():
    # 97.5 % quantiles of Student's t with 1, 2, 4 and 9 degrees of freedom
    for count, quantile in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262)):
        values = [0.0] * (count - 1) + [float(count)]  # mean 1, standard deviation √count
        assert report.margin(values) == pytest.approx(quantile, abs=1e-3)
    assert math.isnan(report.margin([1.0])) and math.isnan(report.margin([]))


def test_differences_are_of_the_same_repetition(tmp_path, capsys):
    grid = [
        {"method": {"dense": []}, "experts": {1: []}, "common.seed": [1, 2, 3]},
        {"method": {"moe": [], "moec": []}, "experts": {8: [], 64: []}, "common.seed": [1, 2, 3]},
    ]
    changes = {"grid": grid, "baseline": {"method": "moe"}, "columns": ["valid_nll_loss", "BLEU"]}
    path, out = write(tmp_path, **changes, picture={"x": "experts", "y": "BLEU"}), tmp_path / "out"
    # moec − moe with 64 experts: −0.2, −0.1, 0, although seeds differ by far more; with 8 there is one pair
    losses = {
        ("moe", "64"): (3, 6, 9),
        ("moec", "64"): (2.8, 5.9, 9),
        ("moe", "8"): (4, 5, 6),
        ("moec", "8"): (4.5, 5, 6),
    }
    for cell in read_study(path).cells(out):
        method, experts, seed = (cell.labels[axis] for axis in ("method", "experts", "common.seed"))
        lost = (method, experts) == ("moe", "8") and seed == "3" or (method, experts) == ("moec", "8") and seed == "2"
        cell.write(state="failed" if lost else "finished", settings=METRIC, reason="")
        loss = losses.get((method, experts), (1, 1, 1))[int(seed) - 1]
        cell.log.write_text(line("valid", valid_num_updates=10, valid_loss=9, valid_nll_loss=loss) + "\n")
        if method == "moe" and not lost:
            (cell.folder / "evaluation" / "test").mkdir(parents=True)
            found = {"set": "test", "model": "m", "version": "v", "scores": {"BLEU": asdict(Score(9, "nrefs:1"))}}
            (cell.folder / "evaluation" / "test" / "scores.json").write_text(json.dumps(found))
    start(path, out, report=True)
    few, many = rows(out / "differences.csv")
    assert (many["method"], many["experts"], many["minus"]) == ("moec", "64", "moe")
    assert [many[f"valid_nll_loss{what}"] for what in ("", " sd", " n")] == ["-0.1", "0.1", "3"]
    low, high = (float(many[f"valid_nll_loss {end}"]) for end in ("low", "high"))
    assert (low, high) == pytest.approx((-0.1 - 0.24841, -0.1 + 0.24841), abs=1e-4)  # 4.3027 · 0.1/√3
    assert [few[f"valid_nll_loss{what}"] for what in ("", " sd", " n", " low")] == ["0.5", "", "1", ""]
    assert many["BLEU"] == "" and many["BLEU n"] == "0"
    table = (out / "differences.md").read_text().splitlines()
    assert [word.strip() for word in table[3].split("|")[1:6]] == ["moec", "64", "moe", "3", "-0.1 [-0.35, 0.15]"]
    assert table[3] in capsys.readouterr().out
    # all against one cell, besides
    changes["baseline"] = [changes["baseline"], {"method": "dense", "experts": 1}]
    write(tmp_path, **changes, picture={"x": "experts", "y": "BLEU"})
    start(path, out, report=True)
    found = [(row["method"], row["experts"], row["minus"]) for row in rows(out / "differences.csv")]
    to_dense = [(method, experts, "dense, 1") for method in ("moe", "moec") for experts in ("8", "64")]
    assert found == [("moec", "8", "moe"), ("moec", "64", "moe"), *to_dense]


def test_a_grid_without_repetitions_is_compared_with_nothing(tmp_path):
    grid = [{"method": ["moe", "moec"], "common.seed": [1, 2]}, {"method": {"dense": ["method=dense"]}}]
    changes = {"baseline": {"method": "dense"}, "columns": ["valid_nll_loss"], "picture": {"x": "method", "y": []}}
    path, out = write(tmp_path, grid=grid, **changes), tmp_path / "out"
    for cell in read_study(path).cells(out):
        cell.write(state="finished", settings=METRIC, reason="")
        cell.log.write_text(f"{line('valid', valid_num_updates=10, valid_loss=9, valid_nll_loss=2)}\n")
    start(path, out, report=True)
    assert [row["valid_nll_loss n"] for row in rows(out / "table.csv")] == ["2", "2", "1"]
    assert [row["valid_nll_loss n"] for row in rows(out / "differences.csv")] == ["0", "0"]


def test_a_column_that_is_missing_is_said(tmp_path):
    path, out = write(tmp_path, columns=["valid_los"]), tmp_path / "out"
    fill(path, out)
    with pytest.raises(ValueError, match=r"no training has a column valid_los; they have .*, valid_loss, "):
        start(path, out, report=True)


def test_other_options_than_before_are_refused(stub, tmp_path, monkeypatch):
    one = {"grid": {"method": ["moe"], "common.seed": [1]}, "picture": {"x": "method", "y": []}}
    path, out = write(tmp_path, **one), tmp_path / "out"
    start(path, out, f"task.data={tmp_path}")
    stub.clear()
    with pytest.raises(ValueError, match="seed=1 was trained with model.dropout=None, but now it is 0.3; give another"):
        start(path, out, f"task.data={tmp_path}", "model.dropout=0.3")
    (out / "method=moe_seed=1" / "checkpoint_last.pt").unlink()
    with pytest.raises(ValueError, match="was trained with"):  # it is finished
        start(path, out, f"task.data={tmp_path}", "model.dropout=0.3")
    # a new evaluation is no new training; until it is there, the old one does not count
    write(tmp_path, **one, evaluate="--best --subset valid")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainings, "run_cells", interrupted)
        start(path, out, f"task.data={tmp_path}")
    assert states(out) == {"method=moe_seed=1": "unfinished"} and not stub
    start(path, out, f"task.data={tmp_path}")
    assert len(stub) == 1 and states(out) == {"method=moe_seed=1": "finished"}


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("given, evaluate, words", [
    (["task.target_lang=ja"], "--best", 'pip install "sacrebleu[ja]"'),
    ([], "--best", 'pip install "sacrebleu[ko]"'),
    (["task.target_lang=mul"], "--best", 'pip install "sacrebleu[ko]"'),
    (["task.target_lang=mul"], "--target-lang de --metrics bleu,comet", "pip install unbabel-comet"),
    (["task.target_lang=de"], "--metrics rouge", "there is no rouge"),
])  # fmt: skip
def test_what_scores_need_is_said_before_the_training(stub, tmp_path, monkeypatch, given, evaluate, words):
    for language in ("ja", "ko"):
        monkeypatch.setattr(f"sacrebleu.tokenizers.tokenizer_{language}_mecab.MeCab", None)
    monkeypatch.setitem(sys.modules, "comet", None)
    data = tmp_path / "data" / "binary"
    data.mkdir(parents=True)
    (data / "train.en-ko.ko.idx").touch()
    if "task.target_lang=mul" in given:
        (tmp_path / "data" / "spm.model").touch()
        (tmp_path / "data" / "prepared.json").write_text('{"source": "en", "target": "mul", "many": ["de", "ko"]}')
    with pytest.raises(ValueError) as error:
        start(write(tmp_path, evaluate=evaluate), tmp_path / "out", f"task.data={data}", *given)
    assert words in str(error.value) and not stub


def test_one_that_never_came_to_a_checkpoint_may_get_other_options(stub, tmp_path):
    one = {"grid": {"method": ["moe"], "common.seed": [1]}, "picture": {"x": "method", "y": []}}
    path, out = write(tmp_path, **one), tmp_path / "out"
    out.mkdir()
    (out / "break moe").touch()
    with pytest.raises(RuntimeError, match="1 of 1 trainings failed"):
        start(path, out, f"task.data={tmp_path}")
    (out / "break moe").unlink()
    (out / "method=moe_seed=1" / "checkpoint_last.pt").unlink()
    start(path, out, f"task.data={tmp_path}", "model.dropout=0.3")
    log = (out / "method=moe_seed=1" / "rank-0.log").read_text()
    assert log.count('"num_updates": "1"') == 1  # of this training alone


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"colunms": []}, "there is no key colunms; did you mean columns? (known: config, "),
        ({"picture": {"x": "method", "z": []}}, "there is no key picture.z (known: x, y)"),
        ({"picture": {"x": "method"}}, "the key picture.y is missing"),
        ({"picture": "method"}, "picture is 'method', but must have the keys x and y"),
        ({"picture": {"x": "experts", "y": []}}, "picture.x is 'experts', but must be an axis of the grid: method, "),
        ({"repeat": "method"}, "picture.x is method, whose values are repetitions; give another axis"),
        ({"repeat": "seed"}, "repeat is 'seed', but must be an axis of the grid: method, common.seed"),
        ({"baseline": "moe"}, "baseline is 'moe', but must be axes and their labels, such as method: moe"),
        ({"baseline": {"method": "dense"}}, "baseline is method: dense, but method has moe, moec"),
        ({"baseline": {"size": 1}}, "baseline is size: 1, but size is no axis of the grid: method, common.seed"),
        ({"baseline": {"method": "moe"}, "repeat": None}, "baseline compares the same repetitions; give repeat"),
        ({"baseline": {"common.seed": 1}}, "baseline compares the same repetitions; give repeat, another axis"),
        ({"grid": {}}, "grid is {}, but must have axes, such as common.seed: [1, 2, 3]"),
        ({"grid": {"method": "moe"}}, "axis method is 'moe', but must be a list of values of an option"),
        ({"grid": {"method": ["moe", "moe"]}}, "axis method has a value twice"),
        ({"grid": {"x": {"a": [1]}}}, "a of axis x is [1], but must be a list of texts"),
        (
            {"grid": {"x": {"a b": [], "a/b": []}}, "repeat": None, "picture": {"x": "x", "y": []}},
            "two cells of the grid are called x=a_b",
        ),
        (
            {"grid": [{"method": ["moe"], "common.seed": [1]}, {"common.seed": [1, 2], "method": ["moe"]}]},
            "two cells of the grid are called seed=1_method=moe",
        ),
        ({"columns": [1]}, "columns is [1], but must be a list of texts"),
        ({"evaluate": "--bset"}, "evaluate is '--bset', but must be options of moec evaluate: unrecognized"),
        ({"evaluate": True}, "evaluate is True, but must be options of moec evaluate"),
        ({"overrides": ["common.seed"], "config": "nowhere"}, "there is no configuration nowhere"),
        ({"overrides": ["checkpoint.save_dir=x"]}, "checkpoint.save_dir cannot be given, because a study sets it"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, changes, words):
    with pytest.raises(ValueError) as error:
        start(write(tmp_path, **changes), tmp_path / "out")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_other_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"^there is no study nowhere; give .* one of .*: .*ceiling"):
        start("nowhere", tmp_path / "out")
    with pytest.raises(ValueError, match="^--jobs is 0, but must be 1 or more"):
        start(write(tmp_path), tmp_path / "out", jobs=0)
    with pytest.raises(ValueError, match="^common.seed was given, but is set by an axis of .*mine.yaml"):
        start(write(tmp_path), tmp_path / "out", "common.seed=3")
    with pytest.raises(ValueError, match="^there is no folder .*out to report on"):
        start(write(tmp_path), tmp_path / "out", report=True)
    (tmp_path / "broken.yaml").write_text("grid: [\n")
    with pytest.raises(ValueError, match=r"^.*broken.yaml is not a study: .*$"):
        start(tmp_path / "broken.yaml", tmp_path / "out")
    (tmp_path / "broken.yaml").write_text("grid")
    with pytest.raises(ValueError, match=r"broken.yaml is not a study, which has the keys config, "):
        start(tmp_path / "broken.yaml", tmp_path / "out")


@pytest.mark.parametrize(
    "axis, words",
    [("model.moe_expert_cuont", "there is no option model.moe_expert_cuont; nearest: model.moe_expert_count"),
     ("common.seed", "task.data is missing, which")],
)  # fmt: skip
def test_an_axis_is_an_option_of_the_configuration(tmp_path, axis, words):
    path = write(tmp_path, grid={axis: [1]}, repeat=None, picture={"x": axis, "y": []})
    with pytest.raises(ValueError) as error:
        start(path, tmp_path / "out")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_two_studies_do_not_meet(stub, tmp_path):
    (tmp_path / "out").mkdir()
    with alone_with(tmp_path / "out"), pytest.raises(ValueError, match="another moec study is at work in"):
        start(write(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    "cores, jobs, threads", [("8", 1, "8"), ("8", 3, "2"), ("2", 4, "1")]
)  # fmt: skip
def test_threads_are_shared_out(monkeypatch, cores, jobs, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", cores)
    monkeypatch.setattr(trainings.torch.cuda, "device_count", lambda: 0)
    assert share_of_machine(0, jobs) == {"OMP_NUM_THREADS": threads}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert share_of_machine(0, 1) == {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}


@pytest.mark.parametrize(
    "jobs, visible, shares",
    [(1, None, ["0,1,2"]), (2, None, ["0", "1"]), (4, None, ["0", "1", "2", "0"]), (3, "5,6,7", ["5", "6", "7"])],
)  # fmt: skip
def test_gpus_are_shared_out(monkeypatch, jobs, visible, shares):
    monkeypatch.setattr(trainings.torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [share_of_machine(slot, jobs)["CUDA_VISIBLE_DEVICES"] for slot in range(jobs)] == shares
    assert {share.count(",") + 1 for share in shares} == {gpus_of_each(jobs)}


def test_another_number_of_gpus_is_another_training(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings.torch.cuda, "device_count", lambda: 4)
    path = write(tmp_path, grid={"method": ["moe"], "common.seed": [1]})
    start(path, tmp_path / "out", f"task.data={tmp_path}", jobs=2)
    with pytest.raises(ValueError, match=r"with GPUs of each training \(--jobs\)=2, but now it is 4; give another"):
        start(path, tmp_path / "out", f"task.data={tmp_path}", jobs=1)


def test_a_real_training(reversal_data, tmp_path, capsys):
    sizes = [f"model.{side}_{size}" for side in ("encoder", "decoder") for size in ("embed_dim=16", "ffn_embed_dim=16")]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(CONTENT | {
        "overrides": [
            *sizes, "optimization.max_update=4", "dataset.validate_interval_updates=2", "common.log_interval=1",
            "checkpoint.save_interval_updates=2", "common.cpu=true", "task.source_lang=src", "task.target_lang=tgt",
        ],
        "grid": {"method": ["moec"], "common.seed": [1]},
        "columns": ["valid_nll_loss", "gap", "updates", "least_tokens"],
        "picture": {"x": "method", "y": ["gap"]},
    }, sort_keys=False).replace("evaluate: --best\n", ""))  # fmt: skip
    start(path, tmp_path / "out", f"task.data={reversal_data}")
    shown = capsys.readouterr().out
    assert "method=moec_seed=1: finished" in shown and "1 of 1 trainings are finished" in shown
    (row,) = rows(tmp_path / "out" / "cells.csv")
    assert row["updates"] == row["updates_trained"] == "4"
    assert 3 < float(row["valid_nll_loss"]) < 5 and abs(float(row["gap"])) < 1
    assert 0 <= float(row["least_tokens"]) < 0.25 * float(row["train_wpb"])  # 8 experts, of which 4 are active
    assert (tmp_path / "out" / "method=moec_seed=1" / "checkpoint_best.pt").is_file()


def test_a_cell_is_trained_once_and_evaluated(tmp_path, monkeypatch):
    cell = Cell(tmp_path, {}, [])
    cell.write(config="a.yaml", overrides=["b=c"], settings={"b": "c"}, evaluate=["--best"])
    ran = []
    monkeypatch.setattr(trainings, "run", ran.append)
    train = ["train", "a.yaml", "b=c", "--logs", tmp_path]
    evaluate = ["evaluate", "--checkpoints", tmp_path, "--out", tmp_path / "evaluation", "--best"]
    run_cell(tmp_path)
    assert ran == [train, evaluate]
    run_cell(tmp_path)
    assert ran == [train, evaluate, evaluate]
    cell.write(evaluate=None)
    run_cell(tmp_path)
    assert len(ran) == 3


@pytest.mark.parametrize("method", ["moe", "moec-nodropout", "moec", "random-groups", "global", "moec-weak-nodropout"])
def test_the_study_of_the_ceiling(tmp_path, method):
    ceiling = read_study(ROOT / "configs" / "studies" / "ceiling.yaml")
    cells = ceiling.cells(tmp_path, [f"task.data={tmp_path}"])
    # seeds; dense, five methods with 8, 32 and 64 experts, two of them with 128, a weak variance loss with 64 and 128
    assert len(cells) == 3 * (1 + 3 * 5 + 2 + 2) + 1
    (most,) = [c for c in cells if c.labels == {"method": method, "experts": "64", "common.seed": "1"}]
    values = configure(ROOT / "configs" / f"{ceiling.config}.yaml", most.overrides).values
    has_variance, drops = method not in ("moe", "global"), method in ("moec", "global")
    assert values["model.moe_expert_count"] == 64 and values["model.moec_layout"] == "inserted"
    assert (values["criterion.moec_variance"] != "none") == has_variance
    assert values["criterion.moec_variance_wt"] == (0.01 if "weak" in method else 1)
    assert values["criterion.moec_variance_groups"] == ("random" if method == "random-groups" else "clusters")
    assert values["model.moec_expert_dropout"] == (0.5 if drops else 0)
    assert values["model.moec_expert_dropout_scope"] == ("global" if method == "global" else "cluster")
    clusters = ExpertClusters(64, values["model.moec_cluster_count"])
    dropout = ExpertDropout(values["model.moec_expert_dropout"], scope=values["model.moec_expert_dropout_scope"])
    GateLoss(values["criterion.moec_variance"], 1.0).check_cluster(dropout.fewest_active_in_a_cluster(clusters))


def test_the_study_of_languages(tmp_path):
    languages = read_study(ROOT / "configs" / "studies" / "languages.yaml")
    cells = languages.cells(tmp_path, [f"task.data={tmp_path}"])
    path = ROOT / "configs" / f"{languages.config}.yaml"
    found = {cell: configure(path, cell.overrides).values for cell in cells}
    sizes = {
        (cell.labels["method"], of["model.moe_expert_count"], of["model.moec_cluster_count"])
        for cell, of in found.items()
    }
    assert sizes == {
        ("dense", 1, 1), ("moe", 8, 1), ("moec", 8, 2), ("moe", 32, 1), ("moec", 32, 8),
        ("dense-tuned", 1, 1), ("moe-tuned", 32, 1), ("moec-tuned", 32, 8),
    }  # fmt: skip
    assert len(cells) == 3 * len(sizes) and len({of["optimization.max_update"] for of in found.values()}) == 1
    assert {of["lr_scheduler.total_num_update"] for of in found.values()} == {"${optimization.max_update}"}
    assert all(of["model.moec_expert_dropout"] == 0 for of in found.values())


def test_the_study_of_options_tries_as_many_of_each_method_on_validation_data(tmp_path):
    tuning = read_study(ROOT / "configs" / "studies" / "tuning.yaml")
    cells = tuning.cells(tmp_path, [f"task.data={tmp_path}"])
    assert Counter(cell.labels["method"] for cell in cells) == {"moe": 4, "moec": 4, "dense": 4}
    assert tuning.evaluate is None
    path = ROOT / "configs" / f"{tuning.config}.yaml"
    found = [configure(path, cell.overrides).values for cell in cells]
    assert len({json.dumps(values, sort_keys=True, default=str) for values in found}) == len(cells)
