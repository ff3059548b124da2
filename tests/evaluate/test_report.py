import subprocess
import sys

import pytest

from moec_fairseq.corpus.metrics import Score
from moec_fairseq.evaluate.report import add_row, read_table, score_table


def row(system, bleu, model="seed:1|beam:5", name="test"):
    return {"system": system, "set": name, "model": model, "BLEU": bleu}


def test_a_row_takes_the_place_of_its_older_self(tmp_path):
    table = tmp_path / "results.csv"
    add_row(table, row("dense", "20.00"))
    add_row(table, row("moec", "21.00") | {"TER": "50.00"})
    add_row(table, row("dense", "20.50"))
    for other in (row("dense", "19.00", name="valid"), row("dense", "20.60", model="seed:1|beam:4")):
        add_row(table, other)
    assert [found["BLEU"] for found in read_table(table)] == ["20.50", "21.00", "19.00", "20.60"]
    assert [found["TER"] for found in read_table(table)] == ["", "50.00", "", ""]
    add_row(table, row("dense", "20.10") | {"BLEU's signature": "tok:none"})  # another score
    assert [found["BLEU"] for found in read_table(table)][-1] == "20.10"
    markdown = (tmp_path / "results.md").read_text().splitlines()
    assert len(markdown) == 7 and r"seed:1\|beam:5" in markdown[3]


def test_cells_of_the_user_stay(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("system,set,model,BLEU,note\ndense,test,seed:1|beam:5,20.00,mine\n")
    add_row(table, row("dense", "20.50"))
    assert read_table(table) == [row("dense", "20.50") | {"note": "mine"}]


def test_a_text_of_the_same_name_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"would write .*README\.md, which is something else"):
        add_row(tmp_path / "README.csv", row("dense", "20.00"))
    assert (tmp_path / "README.md").read_text() == "mine"


ADD = """
import sys
from pathlib import Path
from moec_fairseq.evaluate.report import add_row
for n in range(20):
    add_row(Path(sys.argv[1]), {"system": sys.argv[2], "set": str(n), "model": "x", "BLEU": "1"})
"""


def test_two_commands_fill_one_table(tmp_path):
    table = tmp_path / "results.csv"
    both = [subprocess.Popen([sys.executable, "-c", ADD, table, name]) for name in ("dense", "moec")]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(read_table(table)) == 40


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "a,b\n", "system,set,model\n1,2,3,4\n"])
def test_a_file_of_something_else_stays(tmp_path, content):
    table = tmp_path / "other.csv"
    table.write_text(content)
    with pytest.raises(ValueError, match="is no table of results"):
        add_row(table, row("dense", "20.00"))
    assert table.read_text() == content and not table.with_suffix(".md").exists()


def test_a_row_with_fewer_cells(tmp_path):
    table = tmp_path / "results.csv"
    table.write_text("system,set,model,BLEU\ndense,test,x\n")
    add_row(table, row("moec", "21.00"))
    assert [found["BLEU"] for found in read_table(table)] == ["", "21.00"]


def test_the_ending_of_a_table(tmp_path):
    assert read_table(tmp_path / "results.csv") == []
    with pytest.raises(ValueError, match=r"must end in \.csv"):
        read_table(tmp_path / "results.md")


def test_scores_are_shown_with_signatures():
    lines = score_table({"BLEU": Score(12.3, "tok:13a")}).splitlines()
    assert lines[-1].split() == ["BLEU", "12.30", "tok:13a"]
