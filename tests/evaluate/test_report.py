import csv

import pytest

from moec_fairseq.evaluate.metrics import Score
from moec_fairseq.evaluate.report import add_row, check_table, score_table


def read(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_takes_the_place_of_its_older_self(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, {"system": "dense", "set": "test", "BLEU": "20.00"})
    add_row(table, {"system": "moec", "set": "test", "BLEU": "21.00", "signature": "a:1|b:2"})
    add_row(table, {"system": "dense", "set": "test", "BLEU": "20.50"})
    add_row(table, {"system": "dense", "set": "valid", "BLEU": "19.00"})
    assert [(row["system"], row["set"], row["BLEU"]) for row in read(table)] == [
        ("dense", "test", "20.50"), ("moec", "test", "21.00"), ("dense", "valid", "19.00"),
    ]  # fmt: skip
    assert read(table)[0]["signature"] == "" and read(table)[1]["signature"] == "a:1|b:2"
    markdown = (tmp_path / "results.md").read_text().splitlines()
    assert len(markdown) == 5 and r"a:1\|b:2" in markdown[3]


def test_a_file_of_something_else_stays(tmp_path):
    table = tmp_path / "other.csv"
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has no columns system and set"):
        add_row(table, {"system": "dense", "set": "test"})
    assert table.read_text() == "a,b\n1,2\n"


def test_the_ending_of_a_table(tmp_path):
    check_table(tmp_path / "results.csv")
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        check_table(tmp_path / "results.md")


def test_scores_are_shown_with_signatures():
    lines = score_table({"BLEU": Score(12.3, "tok:13a")}).splitlines()
    assert lines[-1].split() == ["BLEU", "12.30", "tok:13a"]
