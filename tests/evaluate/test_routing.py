"""A small model whose routers are set by hand, on data that this test has made."""

import math

import pytest
import torch
from fairseq.data import data_utils

from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.evaluate.routing import ModelOnData
from tests.texts import MASKED_LM, SPARSE, write_text
from tests.whole_trainings import train, write_corpus

EMBEDDINGS = "{}.layers.0.moe.router.expert_embeddings_NK"
QUICK = ("--max-tokens", 200, "--moe-expert-count", 4, "--moec-expert-dropout", 0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    """The encoder sends all tokens to expert 0, of equal ones the first; the decoder to 1 or 3, by the sign of r·v."""
    folder = tmp_path_factory.mktemp("model")
    train(corpus, folder, *QUICK, max_update=1)
    state = load_state(folder / "checkpoint_last.pt")
    encoder, decoder = (state["model"][EMBEDDINGS.format(side)] for side in ("encoder", "decoder"))
    encoder[:] = 1
    decoder[1], decoder[3] = 1, -1
    decoder[0] = decoder[2] = torch.tensor([1, -1] * 8) * 1e-9  # below the smallest norm: its cosine is 0
    torch.save(state, folder / "set.pt")
    return folder / "set.pt"


def tokens(corpus, language):
    """The words of all sentences, and their ends."""
    return sum(map(len, data_utils.load_indexed_dataset(str(corpus / f"valid.src-tgt.{language}"))))


def test_loads_are_those_of_routers_set_by_hand(corpus, checkpoint):
    loads = ModelOnData(checkpoint, cpu=True, max_tokens=100).loads("valid")
    assert list(loads) == ["encoder.layers.0.moe", "decoder.layers.0.moe"]
    encoder, decoder = (counts_N.tolist() for counts_N in loads.values())
    assert encoder == [tokens(corpus, "src"), 0, 0, 0]
    assert decoder[0] == decoder[2] == 0 and decoder[1] + decoder[3] == tokens(corpus, "tgt")


def test_tokens_of_a_record_are_those_of_the_batch_by_position(checkpoint):
    run = ModelOnData(checkpoint, cpu=True, max_tokens=100)
    embedded = run.model.encoder.embed_tokens.weight
    router = run.layers["encoder.layers.0.moe"].router
    seen = []
    router.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    run.model.encoder.layers[0].without_block = lambda x, *_: x  # the router sees embedded tokens, as they are
    for batch, records in run.routing("valid"):
        tokens_LB = batch["net_input"]["src_tokens"].t()
        positions = run.model.encoder.embed_positions(tokens_LB.t()).transpose(0, 1)
        expected = (embedded[tokens_LB] * math.sqrt(16) + positions)[tokens_LB != run.task.source_dictionary.pad()]
        assert torch.allclose(seen.pop(), expected, atol=1e-6)
        assert len(records["encoder.layers.0.moe"].routing.expert_T) == len(expected)


def test_the_loss_is_that_which_fairseq_has_validated(checkpoint):
    last = checkpoint.with_name("checkpoint_last.pt")
    validated = load_state(last)["extra_state"]["val_loss"]  # without label smoothing
    for max_tokens in (100, 500):
        assert ModelOnData(last, cpu=True, max_tokens=max_tokens).loss("valid") == pytest.approx(validated, abs=1e-3)
    assert ModelOnData(checkpoint, cpu=True).loss("valid") != pytest.approx(validated, abs=1e-9)


def test_masked_language_models_have_the_same_loss_each_time(tmp_path):
    text = write_text(tmp_path / "text")
    train(text, tmp_path / "model", *MASKED_LM, *QUICK[2:], max_update=1, base=SPARSE)
    run = ModelOnData(tmp_path / "model" / "checkpoint_last.pt", cpu=True)
    (counts_N,) = run.loads("valid").values()
    assert counts_N.sum() > 200 and len(counts_N) == 4
    assert run.loss("valid") == run.loss("valid")


def test_what_is_not_there_is_named(corpus, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="there is no folder .*gone; give --data, data like those of the training"):
        ModelOnData(checkpoint, tmp_path / "gone")
    with pytest.raises(ValueError, match="nothere .*; give --subset or --data that has it"):
        next(ModelOnData(checkpoint, cpu=True).batches("nothere"))
    train(corpus, tmp_path / "dense", "--max-tokens", 200, "--moe-expert-count", 0, max_update=1)
    with pytest.raises(ValueError, match="checkpoint_last.pt has no experts"):
        ModelOnData(tmp_path / "dense" / "checkpoint_last.pt")
