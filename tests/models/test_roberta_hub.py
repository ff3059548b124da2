"""RoBERTa in Python, as torch.hub offers it."""

import json
import shutil

import pytest
import sentencepiece
import torch
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode

from moec_fairseq.models import MoECRobertaModel
from tests.texts import MASKED_LM, PAIRS, SPARSE, dictionary_of, write_binary, write_pairs
from tests.whole_trainings import train

TEXT = ["the cat sat on the mat", "a dog ran to the cat", "the mat is on the dog"] * 10
LAST = "checkpoint_last.pt"
ONE_UPDATE = {"max_update": 1, "base": (*SPARSE, "--disable-validation")}


def prepare_sentencepiece(folder):
    """Return the text as subwords, and their names."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT), model_prefix=str(folder / "spm"), vocab_size=20, minloglevel=2
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = [model.IdToPiece(i) for i in range(3, len(model))]
    return [" ".join(model.EncodeAsPieces(line)) for line in TEXT], names


def prepare_gpt2(folder):
    """Return the text as numbers of bytes, and these."""
    numbers = {letter: number for number, letter in enumerate(bytes_to_unicode().values())}
    (folder / "encoder.json").write_text(json.dumps(numbers))
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    of_byte = dict(zip(bytes_to_unicode(), numbers.values(), strict=True))
    return [" ".join(str(of_byte[byte]) for byte in line.encode()) for line in TEXT], map(str, numbers.values())


@pytest.mark.parametrize("prepare", [prepare_sentencepiece, prepare_gpt2])
def test_a_masked_language_model_fills_masks(tmp_path, prepare):
    lines, names = prepare(tmp_path)
    dictionary = dictionary_of(names)
    for split in ("train", "valid"):  # fairseq 0.12.2 opens both, validation or not
        write_binary(lines, tmp_path / "binary" / split, dictionary)
    train(tmp_path / "binary", tmp_path / "saved", *MASKED_LM, "--max-positions", 64, **ONE_UPDATE)
    hub = MoECRobertaModel.from_pretrained(str(tmp_path / "saved"), LAST).eval()
    tokens = hub.encode("the cat", "a dog")
    assert tokens[0] == 0 and (tokens == 2).sum() == 3 and hub.decode(tokens) == ["the cat", "a dog"]
    assert hub.extract_features(tokens).shape == (1, len(tokens), 16)
    assert len(hub.extract_features(tokens, return_all_hiddens=True)) == 3
    found = hub.fill_mask("the <mask> sat", topk=9)  # without symbols such as </s>
    assert found and all(0 < probability < 1 for _, probability, _ in found)
    assert all(text == f"the{word} sat" for text, _, word in found)
    with pytest.raises(ValueError, match="tokens exceeds maximum length"):
        hub.extract_features(hub.encode("the cat " * 40))


def test_a_classifier_predicts(tmp_path):
    data = write_pairs(tmp_path / "pairs", train=20, valid=4)
    train(data, tmp_path / "saved", *PAIRS, **ONE_UPDATE)
    with pytest.raises(ValueError, match="there is neither spm.model nor encoder.json and vocab.bpe in .*pairs"):
        MoECRobertaModel.from_pretrained(str(tmp_path / "saved"), LAST)
    prepare_sentencepiece(tmp_path)
    hub = MoECRobertaModel.from_pretrained(str(tmp_path / "saved"), LAST).eval()
    probabilities = hub.predict("sentence_classification_head", hub.encode("a", "a")).exp()
    assert probabilities.shape == (1, 2) and probabilities.sum().item() == pytest.approx(1)
    expected, _ = hub.model(hub.encode("a", "a")[None], classification_head_name="sentence_classification_head")
    torch.testing.assert_close(probabilities, expected.softmax(dim=-1))
    shutil.rmtree(data)
    with pytest.raises(ValueError, match="there is no dict.txt or input0/dict.txt in .*; give data_name_or_path"):
        MoECRobertaModel.from_pretrained(str(tmp_path / "saved"), LAST)
