import pytest

from moec_fairseq.evaluate.translate import Numbered, Search, binarise, dataset, generate


def test_data_may_be_named_in_the_other_direction(reversal_data):
    test = Numbered(reversal_data, "test", "subword_nmt")
    forth, back = dataset(test, "src", "tgt"), dataset(test, "tgt", "src")
    assert len(forth) == len(back) == 200
    assert back[0][:-1].tolist() == forth[0][:-1].tolist()[::-1]
    with pytest.raises(ValueError, match="has no test for en to de; give --subset or --data"):
        dataset(test, "en", "de")


def test_a_line_that_is_too_long_is_named(reversal_data, tmp_path):
    data = Numbered(reversal_data, "test", "subword_nmt")
    first = next(n for n in range(200) if len(dataset(data, "src", "tgt")[n]) > 6)
    with pytest.raises(ValueError, match=f"line {first + 1} has 7 pieces, but the model takes at most 6; divide it"):
        generate(tmp_path, data, "src", "tgt", 6, False, Search(), tmp_path / "log")


def test_a_torn_model_of_sentencepiece(tmp_path):
    (tmp_path / "spm.model").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"spm\.model is no model of sentencepiece"):
        binarise(["a"], tmp_path / "spm.model", tmp_path, "en", "de", tmp_path)
