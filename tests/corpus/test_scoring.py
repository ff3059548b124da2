import json
from pathlib import Path

import pytest

from moec_fairseq.corpus.hypotheses import join_pieces, read_hypotheses, write_hypotheses
from moec_fairseq.corpus.scoring import score, score_files

LOG = [
    "2026-11-23 | INFO | fairseq_cli.generate | loaded",
    "S-1\t▁two",
    "H-1\t-0.5\t▁zw ei",
    "D-1\t-0.5\t▁zw ei",
    "D-1\t-0.9\tsecond best",
    "S-0\t▁one",
    "D-0\t-0.1\t▁eins ▁da",
    "Generate test with beam=5: BLEU4 = 1.0",
]


def test_translations_come_in_order_and_the_best_only() -> None:
    assert list(read_hypotheses(LOG).items()) == [(0, "▁eins ▁da"), (1, "▁zw ei")]


def test_missing_translations() -> None:
    with pytest.raises(ValueError, match="1 of 3 translations are missing, the first has the id 2"):
        read_hypotheses([*LOG, "S-2\tthree"])
    with pytest.raises(ValueError, match="1 of 2 translations are missing, the first has the id 0"):
        read_hypotheses(["D-1\t-0.5\tzwei"])
    with pytest.raises(ValueError, match="no line begins with D-"):
        read_hypotheses(["nothing"])


def test_an_empty_translation_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("D-0\t-0.1\t\nD-1\t-0.1\tja\n")
    write_hypotheses(tmp_path / "log", tmp_path / "out", None)
    assert (tmp_path / "out").read_text() == "\nja\n"


def test_pieces_need_their_model() -> None:
    assert join_pieces(["schon Text"], None) == ["schon Text"]
    with pytest.raises(ValueError, match="--spm-model"):
        join_pieces(["▁zw ei"], None)
    assert join_pieces(["▁zw ei"], lambda pieces: "".join(pieces).replace("▁", " ").strip()) == ["zwei"]


def test_scores_of_known_translations() -> None:
    same = ["The cat sat on the mat today."]
    perfect = score(same, same)
    assert (perfect.bleu, perfect.chrf, perfect.n) == (100.0, 100.0, 1)
    assert score(["xyz"], ["abc def"]).chrf == 0
    assert "tok:13a" in perfect.signatures["bleu"] and "nc:6" in perfect.signatures["chrf"]


def test_score_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("hyp", "eins\nzwei\n"), ("ref", "eins\nzwei\n"), ("src", "one\ntwo\n"), ("short", "eins\n")):
        (tmp_path / name).write_text(text)
    hyp, ref, src = tmp_path / "hyp", tmp_path / "ref", tmp_path / "src"
    score_files(hyp, ref, src, samples=5, seed=1, json_file=tmp_path / "scores.json")
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["n"] == 2 and scores["chrf"] == 100 and set(scores) == {"bleu", "chrf", "signatures", "n"}
    assert "  source      one\n  reference   eins\n  translation eins\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="short has 1 lines"):
        score_files(hyp, tmp_path / "short", None, 0, 1, None)
    with pytest.raises(ValueError, match="--source"):
        score_files(hyp, ref, None, 1, 1, None)
