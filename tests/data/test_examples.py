"""GLUE's files to examples, and on to what fairseq's sentence_prediction reads."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask

from moec_fairseq.__main__ import run
from moec_fairseq.data import glue
from moec_fairseq.data.examples import Example, raw_files, read_examples, write_examples
from moec_fairseq.data.formats.archives import Archive
from moec_fairseq.data.glue import find_task, read_tasks
from moec_fairseq.data.subwords import train_model

from .made_glue import FIRST, HEADERS, labels, site_files, write_folder, write_zip
from .server import Server

PAIRED = set(HEADERS) - {"CoLA", "SST-2"}
RTE = "index\tsentence1\tsentence2\tlabel\n"
QQP = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
STS = "sentence1\tsentence2\tscore\n"
INDEXED = {"test": FIRST, "test1": FIRST}


def written(task: str, raw: Path, out: Path) -> tuple[dict[str, list[Example]], Counter[str]]:
    counts = write_examples(find_task(task), raw, out)
    return {path.stem: list(read_examples(path)) for path in out.glob("*.tsv")}, counts


def expected(task: str) -> dict[str, list[Example]]:
    splits = {"train": "train", "dev": "valid", "dev_matched": "valid", "dev_mismatched": "valid1"}
    splits |= {"test": "test", "test_matched": "test", "test_mismatched": "test1"}
    return {
        splits[part]: [
            Example(
                str(INDEXED.get(splits[part], 0) + n),
                tuple(f'She said "{part} {side} {n}' for side in ("ab" if task in PAIRED else "a")),
                None if part.startswith("test") else label,
            )
            for n, label in enumerate(labels(task))
        ]
        for part in HEADERS[task]
    }


@pytest.mark.parametrize("task", HEADERS)
def test_the_layout_of_the_site(task: str, tmp_path: Path) -> None:
    write_folder(task, tmp_path / "raw" / task)
    found, counts = written(task, tmp_path / "raw", tmp_path / "text")
    assert found == expected(task) == written(task, tmp_path / "raw" / task, tmp_path / "other")[0]
    assert counts == {f"{split}: examples": 3 for split in expected(task)}
    about = find_task(task)
    assert list(about.submission) == [split for split in expected(task) if split.startswith("test")]
    assert list(about.sets) == [split for split in expected(task) if split != "train"]


def test_archives_are_unpacked(tmp_path: Path) -> None:
    write_zip("MNLI", tmp_path / "raw/MNLI.zip")
    task = find_task("MNLI")
    task = replace(task, archives=(replace(task.archives[0], bytes=None, sha256=None),))
    write_examples(task, tmp_path / "raw", tmp_path / "out/text")
    assert {path.stem: list(read_examples(path)) for path in tmp_path.glob("out/text/*")} == expected("MNLI")
    assert not (tmp_path / "out/.extracted").exists()
    with pytest.raises(ValueError, match=r"MNLI.zip has \d+ bytes instead of 312783507"):
        write_examples(find_task("MNLI"), tmp_path / "raw", tmp_path / "out/text")


def test_the_original_cola(tmp_path: Path) -> None:
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        (tmp_path / f"{name}.tsv").write_text(f'x\t1\t\t{name} "one\nx\t0\t*\ttwo')
    found, _ = written("CoLA", tmp_path, tmp_path / "text")
    assert set(found) == {"train", "valid"}
    assert found["valid"] == [
        Example("0", ('in_domain_dev "one',), "1"),
        Example("1", ("two",), "0"),
        Example("2", ('out_of_domain_dev "one',), "1"),
        Example("3", ("two",), "0"),
    ]


def test_the_original_sts_b(tmp_path: Path) -> None:
    for name in ("train", "dev", "test"):
        nine = "a\tb\tc\t1\t5.000\tone\ttwo\tfrom x\tfrom y\r\n"
        (tmp_path / f"sts-{name}.csv").write_text(f'a\tb\tc\t0\t3\tA "plane\u2028 is.\tAn air plane.\n{nine}')
    found, _ = written("sts-b", tmp_path, tmp_path / "text")
    assert found["test"] == [
        Example("0", ('A "plane is.', "An air plane."), "3"),
        Example("1", ("one", "two"), "5.000"),
    ]


def mrpc(folder: Path, number: int = 300) -> None:
    """Write the original files of MRPC: number N has the ids N and 1000 + N."""
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = "".join(f'{n % 2}\t{n}\t{1000 + n}\tone "{letters[n // 26]}{letters[n % 26]}\ttwo\n' for n in range(number))
    for name in ("train", "test"):
        (folder / f"msr_paraphrase_{name}.txt").write_text(header + text)


def test_the_original_mrpc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mrpc(tmp_path)
    found, counts = written("MRPC", tmp_path, tmp_path / "text")
    rows = sorted([*found["train"], *found["valid"]], key=lambda example: int(example.index))
    assert rows == found["test"] and rows[3] == Example("3", ('one "ad', "two"), "1")
    assert 15 <= counts["valid: examples"] <= 45  # a tenth
    assert "held out by a hash" in capsys.readouterr().out

    (tmp_path / "mrpc_dev_ids.tsv").write_text("#1 ID\t#2 ID\n7\t1007\n5\t1005\n6\t1006\n8\t1009\n")
    found, _ = written("MRPC", tmp_path, tmp_path / "text")
    assert [example.index for example in found["valid"]] == ["5", "6", "7"]
    assert len(found["train"]) == 297


def test_what_is_missing_is_downloaded(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    mrpc(tmp_path / "web")
    (tmp_path / "web/mrpc_dev_ids.tsv").write_text("7\t1007\n")
    names = ["msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"]
    archives = tuple(Archive("MRPC", f"{server.url}/{name}", "none") for name in names)
    task = replace(find_task("MRPC"), archives=archives)
    for what in (f"lacks them: {', '.join(names)}", "those of"):  # the second time, all is there
        counts = write_examples(task, tmp_path / "raw", tmp_path / "text")
        assert what in capsys.readouterr().out
        assert counts == {"train: examples": 299, "valid: examples": 1, "test: examples": 300}
    assert sorted(path.name for path in raw_files(task, tmp_path / "raw")) == sorted(names)


def test_broken_rows_of_qqp(tmp_path: Path) -> None:
    write_folder("QQP", tmp_path / "QQP")
    with (tmp_path / "QQP/train.tsv").open("a") as file:
        file.write("9\t1\t2\tonly one\n\n10\t1\t2\t \tother\t0\n11\t1\t2\tone\tother\t0\n")
    with (tmp_path / "QQP/test.tsv").open("a") as file:
        file.write("10\t\tother\n")
    found, counts = written("QQP", tmp_path, tmp_path / "text")
    assert found["train"][3:] == [Example("5", ("one", "other"), "0")]
    assert counts["train: broken rows left out"] == 2
    assert found["test"][3:] == [Example("10", ("", "other"), None)]  # which must be submitted
    (tmp_path / "QQP/test.tsv").write_text("id\tquestion1\tquestion2\n1\ta\n")
    with pytest.raises(ValueError, match="test.tsv, line 2: has 2 columns instead of 3"):
        written("QQP", tmp_path, tmp_path / "text")


@pytest.mark.parametrize(
    ("task", "file", "text", "message"),
    [
        ("RTE", "train.tsv", "index\tsentence1\tlabel\n", "line 1: the header has no column 'sentence2' of RTE; it"),
        ("RTE", "dev.tsv", RTE + "0\ta\tentailment\n", "dev.tsv, line 2: has 3 columns in"),
        ("RTE", "dev.tsv", RTE + "0\t \tb\tentailment\n", "line 2: a sentence is empty"),
        ("RTE", "dev.tsv", RTE + "0\ta\tb\t1\n", "the label is '1', but must be one of not_"),
        ("RTE", "test.tsv", RTE.replace("\tlabel", ""), "RTE has no example for test"),
        ("QQP", "dev.tsv", QQP + "0\t1\t2\ta\tb\t2\n", "the label is '2'"),
        ("CoLA", "train.tsv", "x\t1\tbad\n", "train.tsv, line 1: has 3 columns instead of 4"),
        ("STS-B", "train.tsv", STS + "a\tb\t5.1\n", "the score is '5.1', but must be a number from"),
        ("STS-B", "train.tsv", STS + "a\tb\tnan\n", "the score is 'nan'"),
        ("STS-B", "train.tsv", STS + "a\tb\thigh\n", "the score is 'high'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(task: str, file: str, text: str, message: str, tmp_path: Path) -> None:
    write_folder(task, tmp_path / task)
    (tmp_path / task / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        written(task, tmp_path, tmp_path / "text")
    assert not list((tmp_path / "text").glob("*"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a folder with a sentencepiece model of characters and its dictionary, as pre-training leaves it."""
    folder = tmp_path / "pretraining"
    (folder / "binary").mkdir(parents=True)
    (folder / "all.txt").write_text("".join(text for task in ("RTE", "STS-B") for text in site_files(task).values()))
    train_model([folder / "all.txt"], 200, "char", 1.0, folder / "spm.model")
    letters = sorted(set((folder / "all.txt").read_text()) - set(" \t\n"))
    (folder / "binary/dict.txt").write_text("".join(f"{letter} 1\n" for letter in ["▁", *letters]))
    return folder


def loaded(binary: Path, split: str, num_classes: int, regression_target: bool) -> SentencePredictionTask:
    config = SentencePredictionConfig(data=str(binary), num_classes=num_classes, regression_target=regression_target)
    config.classification_head_name, config.seed, config.no_shuffle = "x", 1, True
    task = SentencePredictionTask.setup_task(config)
    task.load_dataset(split)
    return task


def text_of(task: SentencePredictionTask, split: str, n: int) -> str:
    characters = task.source_dictionary.string(task.datasets[split][n]["net_input.src_tokens"])
    return characters.replace(" ", "").replace("▁", " ")


def test_from_an_archive_to_what_fairseq_reads(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command."""
    write_zip("RTE", tmp_path / "raw/RTE.zip")
    text = re.sub(r" +(bytes|sha256): .*\n", "", glue.TASKS.read_text())  # not those of the real archive
    (tmp_path / "tasks.yaml").write_text(text)
    tasks = read_tasks(tmp_path / "tasks.yaml")
    monkeypatch.setattr(glue, "read_tasks", lambda: tasks)
    out = tmp_path / "out"
    command = ["prepare", "glue/RTE", "--raw-dir", tmp_path / "raw", "--subwords-of", model, "--out", out]
    run(command)
    assert (out / "spm.model").read_bytes() == (model / "spm.model").read_bytes()
    assert json.loads((out / "prepared.json").read_text()) == {
        "kind": "glue", "task": "RTE", "splits": ["train", "valid", "test"]
    }  # fmt: skip
    assert "| examples           |       3 |       3 |      3 |" in (out / "counts.md").read_text()
    task = loaded(out / "binary", "train", 2, False)
    classes = [int(task.datasets["train"][n]["target"]) for n in range(3)]
    assert classes == [1, 0, 1]  # entailment is the last class, as in the table, though it is the most frequent
    assert text_of(task, "train", 2) == ' She said "train a 2 She said "train b 2'
    task.load_dataset("test")
    assert len(task.datasets["test"]) == 3 and "target" not in task.datasets["test"][0]

    monkeypatch.setattr("moec_fairseq.data.pipeline.binarise_files", None)  # nothing is done again
    run(command)


def test_scores_are_numbers_from_0_to_1(tmp_path: Path, model: Path) -> None:
    write_folder("STS-B", tmp_path / "raw")
    run(["prepare", "glue/STS-B", "--raw-dir", tmp_path / "raw", "--subwords-of", model, "--out", tmp_path / "out"])
    task = loaded(tmp_path / "out/binary", "valid", 1, True)
    assert [task.datasets["valid"][n]["target"] for n in range(3)] == [[0.0], [1.0], [0.76]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["glue"], "there is no GLUE task ''; give one of CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE, WNLI"),
        (["glue/SST", "--subwords-of", "."], "there is no GLUE task 'SST'"),
        (["glue/RTE"], "give its folder of moec prepare as --subwords-of"),
        (["glue/RTE", "--subwords-of", "."], "has no spm.model, nor encoder.json and vocab.bpe; give the folder that"),
        (["glue/RTE", "--subwords-of", "half"], "half has no dict.txt; give the folder"),
        (["glue/RTE", "--subwords-of", ".", "--vocab-size", 9], "--vocab-size is not for GLUE"),
        (["glue/RTE", "--train-text", "x"], "--train-text is not for GLUE"),
        (["--subwords-of", "x", "--train-text", "x"], "--subwords-of is not for text of one language"),
    ],
)
def test_bad_options(words, message, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half").mkdir()
    (tmp_path / "half/spm.model").touch()
    with pytest.raises(ValueError, match=message):
        run(["prepare", *words])
