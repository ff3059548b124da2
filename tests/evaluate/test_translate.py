import pytest

from moec_fairseq.evaluate.translate import Numbered, dataset


def test_data_may_be_named_in_the_other_direction(reversal_data):
    test = Numbered(reversal_data, "test", "subword_nmt")
    forth, back = dataset(test, "src", "tgt"), dataset(test, "tgt", "src")
    assert len(forth) == len(back) == 200
    assert back[0][:-1].tolist() == forth[0][:-1].tolist()[::-1]
    with pytest.raises(ValueError, match="has no test for en to de; give --subset or --data"):
        dataset(test, "en", "de")
