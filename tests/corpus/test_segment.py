from pathlib import Path

import pytest
import sentencepiece

from moec_fairseq.corpus.segment import segment

TEXT = ["the house is {colour}", "%(name)s sees the house", "", "a house … and a tree"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split in ("train", "valid", "test"):
        for language in ("en", "de"):
            (tmp_path / f"{split}.{language}").write_text("\n".join(TEXT) + "\n", encoding="utf-8")
    return tmp_path


def test_pieces_give_the_text_back(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    segment(data, "en", "de", 6000, out, "bpe", 1.0)
    model = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    assert model.get_piece_size() < 6000
    for split in ("train", "valid", "test"):
        for language in ("en", "de"):
            pieces = (out / f"{split}.{language}").read_text(encoding="utf-8").split("\n")[:-1]
            assert [model.decode(line.split(" ")) for line in pieces] == TEXT


@pytest.mark.parametrize(
    ("vocab_size", "model_type", "coverage", "message"),
    [
        (5, "bpe", 1.0, "vocabulary size 5 is too small"),
        (100, "bep", 1.0, "choose from bpe, unigram, char"),
        (100, "bpe", 2.0, "from 0.9 to 1.0"),
    ],
)
def test_impossible_settings(data: Path, vocab_size: int, model_type: str, coverage: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment(data, "en", "de", vocab_size, data / "out", model_type, coverage)
    assert not (data / "out/spm.model").exists()


def test_a_missing_split(data: Path) -> None:
    (data / "valid.de").unlink()
    with pytest.raises(ValueError, match=r"valid\.de: no such file"):
        segment(data, "en", "de", 100, data / "out", "bpe", 1.0)
