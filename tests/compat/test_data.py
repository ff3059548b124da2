import re
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from fairseq import options
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

import moec_fairseq.compat  # noqa: F401  (importing it applies the patches)
from tests.texts import MASKED_LM, PAIRS, built, dictionary_of, write_binary, write_pairs

BEGIN = "\N{LOWER ONE EIGHTH BLOCK}"  # of a word, as sentencepiece marks it


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


def test_masks_cover_whole_words(tmp_path):
    """``A b`` are one word of two subwords, as sentencepiece marks them."""
    lines = [f"{BEGIN}a b {BEGIN}c {BEGIN}a b"] * 40
    write_binary(lines, tmp_path / "train", dictionary_of([f"{BEGIN}a", "b", f"{BEGIN}c"]))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab c ab"] * 9), model_prefix=str(tmp_path / "spm"), vocab_size=7, minloglevel=2
    )
    flags = (*MASKED_LM, "--mask-whole-words", "--sample-break-mode", "eos", "--mask-prob", 0.3)
    with pytest.raises(ValueError, match="--mask-whole-words has to know which subwords begin a word; give --bpe"):
        built(tmp_path, *flags)
    lm = built(tmp_path, *flags, "--bpe", "sentencepiece", "--sentencepiece-model", tmp_path / "spm.model")
    is_masked = lm.batch(0, 40)["target"] != lm.task.source_dictionary.pad()
    assert is_masked.any() and not is_masked.all()
    assert torch.equal(is_masked[:, 1], is_masked[:, 2]) and torch.equal(is_masked[:, 4], is_masked[:, 5])


def test_pairs_that_are_too_long_can_be_truncated(tmp_path):
    flags = (*PAIRS, "--max-positions", 4, "--shorten-method", "truncate")
    sizes = built(write_pairs(tmp_path, train=20, valid=5), *flags).batch(0, 20)["net_input"]["src_lengths"]
    assert sizes.max() == 4


def test_options_of_a_task_are_complete_without_its_criterion(tmp_path):
    """As those of fairseq-validate, which takes the criterion from the checkpoint."""
    arguments = [str(tmp_path), "--path", "x.pt", "--task", "sentence_prediction", "--num-classes", "2"]
    args = options.parse_args_and_arch(options.get_validation_parser(), input_args=arguments)
    task = convert_namespace_to_omegaconf(args).task
    assert task.classification_head_name == "sentence_classification_head" and task.regression_target is False
