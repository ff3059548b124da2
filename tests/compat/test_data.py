import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq.data import Dictionary, LanguagePairDataset, data_utils

import moec_fairseq.compat  # noqa: F401  (importing it applies the patches)


@pytest.mark.parametrize("sentences", [1, 7, 8, 12, 24, 25])
@pytest.mark.parametrize("limits", [{"max_tokens": 40}, {"max_sentences": 1}, {"max_sentences": 16}])
def test_batches_hold_every_sentence_once(sentences, limits):
    indices, sizes = np.arange(sentences)[::-1].copy(), np.full(sentences, 4)
    batches = data_utils.batch_by_size(
        indices, sizes.__getitem__, num_tokens_vec=sizes, required_batch_size_multiple=8, **limits
    )
    assert np.concatenate(batches).tolist() == indices.tolist()


def test_fairseqs_modules_find_every_name_of_numpy_that_they_use():
    missing, used = [], set()
    for name, module in list(sys.modules.items()):
        source = Path(getattr(module, "__file__", None) or "")
        if name.startswith("fairseq.") and source.suffix == ".py" and hasattr(module, "np"):
            names = set(re.findall(r"\bnp\.(\w+)", source.read_text()))
            missing += [f"{name}: np.{n}" for n in names if not hasattr(module.np, n)]
            used |= names
    assert not missing and {"array", "percentile"} <= used


def test_numpy_as_fairseq_calls_it():
    assert data_utils.get_buckets([5, 1, 9, 3, 3], 4).tolist() == [3, 5, 9]  # every fourth of the way through 1 3 3 5 9
    assert data_utils.np.percentile([1, 2], 50) == 1.5
    assert data_utils.np.array([1]).dtype == np.int64 and data_utils.np.int is int


def test_buckets_pad_to_few_lengths_and_keep_every_sentence():
    dictionary = Dictionary()
    lengths = [1 + n % 13 for n in range(50)]
    sentences = [torch.tensor([dictionary.unk()] * (n - 1) + [dictionary.eos()]) for n in lengths]
    data = LanguagePairDataset(
        sentences, lengths, dictionary, sentences, lengths, dictionary, num_buckets=4, shuffle=False
    )
    batches = data.batch_by_size(data.ordered_indices(), max_tokens=60, required_batch_size_multiple=8)
    assert sorted(np.concatenate(batches)) == list(range(50))
    shapes = [data.collater([data[i] for i in batch])["net_input"]["src_tokens"].shape for batch in batches]
    assert {length for _, length in shapes} == {4, 7, 10, 13}


def data(folder, source, target):
    for language in (source, target):
        (folder / f"dict.{language}.txt").touch()
        (folder / f"train.{source}-{target}.{language}.idx").touch()
    return str(folder)


@pytest.mark.parametrize(
    "pair", [("en", "de"), ("en", "pt-BR"), ("zh-Hant", "en"), ("zh-Hant", "pt-BR"), ("en", "zh_CN")]
)
def test_languages_come_from_the_names_of_files(tmp_path, pair):
    assert tuple(data_utils.infer_language_pair(data(tmp_path, *pair))) == pair


def test_where_names_do_not_tell(tmp_path):
    assert tuple(data_utils.infer_language_pair(str(tmp_path))) == (None, None)
    data(tmp_path, "en", "pt-BR")
    with pytest.raises(ValueError, match=r"\(en-pt-BR, en-zh-Hant\).* give --source-lang and --target-lang"):
        data_utils.infer_language_pair(data(tmp_path, "en", "zh-Hant"))
