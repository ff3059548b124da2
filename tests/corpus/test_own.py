import json
from pathlib import Path

import pytest

from moec_fairseq.corpus.own import own


def write(prefix: Path, sources: list[str], targets: list[str]) -> str:
    Path(f"{prefix}.en").write_text("\n".join(sources) + "\n", encoding="utf-8")
    Path(f"{prefix}.de").write_text("\n".join(targets) + "\n", encoding="utf-8")
    return str(prefix)


LETTERS = "abcdefghijklmnopqrstuvwxyz"
SOURCES = [f"say {a}{b}" for a in LETTERS for b in LETTERS[:12]]
TARGETS = [f"sag {source[4:]}" for source in SOURCES]


def test_valid_and_test_are_split_off(tmp_path: Path) -> None:
    prefix = write(tmp_path / "t", [*SOURCES, "  tab\there ", "no target"], [*TARGETS, "Tab hier", " "])
    own(prefix, None, None, "en", "de", tmp_path / "out")
    texts = {path.name: path.read_text().splitlines() for path in (tmp_path / "out").glob("*.??")}
    assert sum(len(texts[f"{split}.en"]) for split in ("train", "valid", "test")) == len(SOURCES) + 1
    assert sorted(texts["train.en"] + texts["valid.en"] + texts["test.en"]) == sorted([*SOURCES, "tab here"])
    for split in ("train", "valid", "test"):
        assert [line[4:] for line in texts[f"{split}.en"] if line != "tab here"] == [
            line[4:] for line in texts[f"{split}.de"] if line != "Tab hier"
        ]


def test_given_sets_stay_as_they_are_and_overlap_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train", SOURCES, TARGETS)
    valid = write(tmp_path / "valid", ["new one", "new one"], ["neu eins", "neu eins"])
    test = write(tmp_path / "test", ["Say aa!", "unseen"], ["Sag aa!", "ungesehen"])
    own(train, valid, test, "en", "de", tmp_path / "out")
    assert (tmp_path / "out/train.en").read_text().splitlines() == SOURCES
    assert (tmp_path / "out/valid.en").read_text() == "new one\nnew one\n"
    assert (tmp_path / "out/test.de").read_text() == "Sag aa!\nungesehen\n"
    warnings = capsys.readouterr().err
    assert f"warning: 1 of {len(SOURCES)} training sentences are also in test" in warnings
    assert "in valid" not in warnings
    assert json.loads((tmp_path / "out/report.json").read_text())["splits"] == {
        "train": len(SOURCES),
        "valid": 2,
        "test": 2,
    }


def test_what_is_not_given_is_split_off(tmp_path: Path) -> None:
    train = write(tmp_path / "train", SOURCES, TARGETS)
    test = write(tmp_path / "test", ["unseen"], ["ungesehen"])
    own(train, None, test, "en", "de", tmp_path / "out")
    assert (tmp_path / "out/test.en").read_text() == "unseen\n"
    sizes = [len((tmp_path / f"out/{split}.en").read_text().splitlines()) for split in ("train", "valid")]
    assert sum(sizes) == len(SOURCES) and all(sizes)


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too little text"):
        own(write(tmp_path / "t", ["one"], ["eins"]), None, None, "en", "de", tmp_path / "out")
    assert not list((tmp_path / "out").glob("train*"))


def test_the_text_itself_is_never_overwritten(tmp_path: Path) -> None:
    prefix = write(tmp_path / "train", SOURCES, TARGETS)
    with pytest.raises(ValueError, match="give --out another folder"):
        own(prefix, None, None, "en", "de", tmp_path)
