from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.languages import SPLITS, parallel_paths
from moec_fairseq.data.subwords import _segment, check_sizes, open_model, segment, train_model

TEXT = ["the house is {colour}", "%(name)s sees the house", "", "a house … and a tree"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in SPLITS:
        for path in parallel_paths(tmp_path, split, "en", "de"):
            path.write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def model(data: Path) -> Path:
    train_model(parallel_paths(data, "train", "en", "de"), 6000, "bpe", 1.0, data / "spm.model")
    return data / "spm.model"


def segmented(data: Path, model: Path, limits: Limits | None) -> dict[str, list[str]]:
    with ThreadPoolExecutor(1) as pool:
        counts = segment(data, "en", "de", model, limits, data / "out", pool, 2)
    texts = {path.name: path.read_text(encoding="utf-8").split("\n")[:-1] for path in (data / "out").iterdir()}
    assert [counts[f"{split}: segmented"] for split in SPLITS] == [len(texts[f"{split}.en"]) for split in SPLITS]
    return texts


def test_subwords_give_the_text_back(data: Path, model: Path) -> None:
    processor = open_model(model)
    assert processor.get_piece_size() < 6000
    for subwords in segmented(data, model, None).values():
        assert [processor.decode(line.split(" ")) for line in subwords] == TEXT


def test_the_test_text_stays_whole(data: Path, model: Path) -> None:
    texts = segmented(data, model, Limits(1000, 1.0))
    assert [len(texts[f"{split}.de"]) for split in SPLITS] == [3, 3, 4]  # an empty pair has no subwords


def test_unknown_characters_are_no_word_of_their_own(tmp_path: Path) -> None:
    for language in ("en", "de"):
        (tmp_path / f"train.{language}").write_text("a b c\n" * 9)
    train_model((tmp_path / "train.en", tmp_path / "train.de"), 10, "char", 1.0, tmp_path / "spm.model")
    sides, read, dropped = _segment(tmp_path / "spm.model", None, [("a b", "a ü"), ("c", "")])
    assert sides == ("\u2581 a \u2581 b\n\u2581 c\n", "\u2581 a \u2581 <unk>\n\n") and read == 2 and not dropped


def test_a_vocabulary_that_is_too_small(data: Path) -> None:
    with pytest.raises(ValueError, match="vocabulary size 5 is too small"):
        train_model(parallel_paths(data, "train", "en", "de"), 5, "bpe", 1.0, data / "spm.model")
    assert not (data / "spm.model").exists()


def test_a_vocabulary_that_is_too_large(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_model(parallel_paths(data, "train", "en", "de"), 6000, "bpe", 1.0, data / "spm.model")
    size = open_model(data / "spm.model").get_piece_size()
    said = f"{size} subwords, all that the text has, not 6,000; --vocab-size auto takes as many as suit it\n"
    assert capsys.readouterr().out.endswith(said)
    train_model(parallel_paths(data, "train", "en", "de"), size, "bpe", 1.0, data / "spm.model")
    assert capsys.readouterr().out.endswith(f"{size} subwords\n")


def share_of_frequent_subwords(text: Path, model: Path) -> float:
    processor = open_model(model)
    counts = Counter(piece for line in text.read_text().splitlines() for piece in processor.encode(line, out_type=str))
    pieces = [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    longer = [piece for piece in pieces if len(piece) > 1]
    return sum(counts[piece] >= 10 for piece in longer) / len(longer)


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_that_suits_the_text(tmp_path: Path, model_type: str) -> None:
    syllables = [f"{a}{b}" for a in "bdfgk" for b in "aeiou"]
    words = [f"{one}{other}" for one in syllables for other in syllables]
    text, sizes = tmp_path / "text", {}
    for times in (3, 12):
        text.write_text("".join(" ".join(words[n::25]) + "\n" for n in range(25) for _ in range(times)))
        train_model([text], None, model_type, 1.0, tmp_path / "auto")
        sizes[times] = open_model(tmp_path / "auto").get_piece_size()
        assert share_of_frequent_subwords(text, tmp_path / "auto") >= 0.9
        train_model([text], 2 * sizes[times], model_type, 1.0, tmp_path / "double")
        twice = open_model(tmp_path / "double").get_piece_size()
        assert twice == sizes[times] or share_of_frequent_subwords(text, tmp_path / "double") < 0.9
    assert model_type == "unigram" or sizes[3] < sizes[12]  # unigram finds the parts, and no more, in both


def test_a_text_too_small_for_any_subword_longer_than_a_character(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("der Wal, die Kuh und 23 Bären\n" * 3)
    train_model([tmp_path / "text"], None, "bpe", 1.0, tmp_path / "spm.model")
    characters = len(set("derWal,ieKuhn23Bär")) + 1 + 3  # and the beginning of words; <unk>, <s> and </s>
    size = open_model(tmp_path / "spm.model").get_piece_size()
    assert size >= characters > size / 2  # half of it would have no place for all


@pytest.mark.parametrize("vocab_size, coverage, message", [
    (0, 1.0, "vocabulary size 0 is not possible"), (100, 2.0, "from 0.9 to 1.0"),
])  # fmt: skip
def test_impossible_sizes(vocab_size: int, coverage: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sizes(vocab_size, coverage)


def test_a_missing_text(data: Path, model: Path) -> None:
    (data / "valid.de").unlink()
    with pytest.raises(ValueError, match=r"valid\.de: no such file"):
        segmented(data, model, None)


def test_a_corrupt_model(tmp_path: Path) -> None:
    (tmp_path / "spm.model").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"spm\.model is not a sentencepiece model"):
        open_model(tmp_path / "spm.model")


def test_ctrl_c_while_subwords_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path):
        yield "a"
        raise KeyboardInterrupt

    monkeypatch.setattr("moec_fairseq.data.subwords.lines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_model((tmp_path, tmp_path), 10, "char", 1.0, tmp_path / "spm.model")
