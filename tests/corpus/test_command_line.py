import sys
from pathlib import Path

import pytest

from moec_fairseq.corpus.__main__ import main


def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["own", "--train-prefix", str(tmp_path / "none"), "--target", "de", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["corpus", *arguments])
    assert main() == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'none.en'}: no such file; check the name\n"


def test_a_command_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("ein kleiner Satz steht hier\n")
    monkeypatch.setattr(sys, "argv", ["corpus", "score", *2 * ["--hypotheses", str(tmp_path / "text")]])
    with pytest.raises(SystemExit):  # references are required
        main()
    arguments = ["score", "--hypotheses", str(tmp_path / "text"), "--references", str(tmp_path / "text")]
    monkeypatch.setattr(sys, "argv", ["corpus", *arguments])
    assert main() == 0
    assert "BLEU 100.00" in capsys.readouterr().out
