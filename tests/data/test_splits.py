import hashlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moec_fairseq.data.cleaning import Pair
from moec_fairseq.data.languages import SPLITS
from moec_fairseq.data.splits import Splitter, fingerprint, normalised, share_for, split_of

from .made import own

words = st.text(alphabet="abcdef", min_size=1, max_size=2)


def test_copies_share_a_key() -> None:
    copies = ["Delete %(n)d files", "delete 3 files!", "DELETE {count} FILES", "Délete files"]
    assert {normalised(text) for text in copies} == {"deletefiles"}
    assert normalised("12:30") == "12:30"


def test_the_fingerprint_is_stable() -> None:
    assert fingerprint("Delete 3 files") == int(hashlib.sha256(b"deletefiles").hexdigest()[:16], 16)


def test_share_of_each_split() -> None:
    assert share_for(50_000) == 0.02
    assert share_for(1_000) == share_for(0) == 0.05
    quarter = 2**62
    places = [split_of(place, 0.25) for place in (0, quarter - 1, quarter, 2 * quarter, 2**64 - 1)]
    assert places == ["valid", "valid", "test", "train", "train"]
    assert split_of(0, 0.25, held_out=()) == "train"


def split(pairs: list[Pair], share: float) -> tuple[dict[str, list[Pair]], Splitter]:
    splitter = Splitter(share)
    splitter.note(pairs)
    files = {name: (io.StringIO(), io.StringIO()) for name in SPLITS}
    splitter.write(pairs, files)
    texts = {name: [side.getvalue().splitlines() for side in sides] for name, sides in files.items()}
    return {name: [Pair(*pair) for pair in zip(*sides, strict=True)] for name, sides in texts.items()}, splitter


@given(st.lists(st.builds(Pair, words, words)), st.floats(0.01, 0.4))
def test_no_sentence_is_on_two_sides_and_none_is_lost(pairs: list[Pair], share: float) -> None:
    result, splitter = split(pairs, share)
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for side in ("source", "target"):
            keys = [{normalised(getattr(pair, side)) for pair in result[name]} for name in (one, other)]
            assert not keys[0] & keys[1]
    assert splitter.sizes.total() + splitter.drops.total() == len(pairs)
    for name in ("valid", "test"):
        assert len({normalised(pair.source) for pair in result[name]}) == len(result[name])


def test_a_shared_translation_stays_with_the_test_set() -> None:
    sources = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    result, splitter = split([Pair(source, "gleich") for source in sources], 0.2)
    assert not result["train"] and not result["valid"]
    assert result["test"]
    assert set(splitter.drops) == {
        "train: the translation is in valid or test",
        "valid: the translation is in test",
    }


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


def test_pairs_without_a_translation_are_not_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train", SOURCES, TARGETS)
    test = write(tmp_path / "test", ["one", "two", "", "three"], ["eins", " ", "nichts", "drei"])
    own(train, None, test, "en", "de", tmp_path / "out")
    assert (tmp_path / "out/test.en").read_text() == "one\nthree\n"
    assert (tmp_path / "out/test.de").read_text() == "eins\ndrei\n"
    assert "test.de, as they are, but for 2 pairs without one side\n" in capsys.readouterr().out
    valid = write(tmp_path / "valid", ["one"], [""])
    with pytest.raises(ValueError, match=r"^valid: .*valid\.en and .*valid\.de have no pair with text on both sides; "):
        own(train, valid, None, "en", "de", tmp_path / "other")


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
