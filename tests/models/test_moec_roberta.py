"""RoBERTa with MoE blocks."""

import pytest
import torch

from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.moe.layer import MoELayer
from tests.texts import MASKED_LM, PAIRS, SPARSE, STOCK, built, write_pairs, write_text
from tests.whole_trainings import train


@pytest.fixture(scope="module")
def text(once):
    return once("text", write_text)


@pytest.fixture(scope="module")
def pairs(once):
    return once("pairs", write_pairs)


@pytest.mark.parametrize("layout", ["inserted", "replaced"])
def test_padding_and_company_change_nothing(text, layout):
    lm = built(text, *MASKED_LM, "--sample-break-mode", "eos", "--moec-layout", layout, "--moe-freq", 1)
    model = lm.model.eval()
    for layer in model.moe_layers:  # new ones would change nothing
        for sublayer in layer.experts.sublayers:
            torch.nn.init.normal_(sublayer.w2_NDF, std=0.1)
    tokens = lm.batch()["net_input"]["src_tokens"]
    pad = lm.task.source_dictionary.pad()
    assert (tokens == pad).any()
    together, _ = model(tokens)
    for sentence, logits in zip(tokens, together, strict=True):
        length = int((sentence != pad).sum())
        alone, _ = model(sentence[None, :length])
        torch.testing.assert_close(alone[0], logits[:length], rtol=1e-4, atol=1e-5)


def test_new_experts_change_nothing_when_inserted(text):
    sparse = built(text, *MASKED_LM)
    dense = built(text, *MASKED_LM, "--criterion", "masked_lm", base=STOCK)
    state = {name: value for name, value in sparse.model.state_dict().items() if ".moe." not in name}
    dense.model.load_state_dict(state)
    tokens = sparse.batch()["net_input"]["src_tokens"]
    assert torch.equal(sparse.model.eval()(tokens)[0], dense.model.eval()(tokens)[0])


@pytest.mark.parametrize("flags, layers", [
    ([], [0]), (["--moe-freq", 1], [0, 1]), (["--encoder-moe-layers", "2"], [1]), (["--moe-expert-count", 0], []),
])  # fmt: skip
def test_blocks_are_where_the_options_say(text, flags, layers):
    lm = built(text, *MASKED_LM, *flags)
    stack = lm.model.encoder.sentence_encoder.layers
    assert [i for i, layer in enumerate(stack) if any(isinstance(m, MoELayer) for m in layer.modules())] == layers
    assert lm.model.num_moe_layers == len(layers)


def test_a_pruned_model_takes_the_parameters_of_the_whole_one(text):
    whole = built(text, *MASKED_LM, "--moe-freq", 1)
    pruned = built(text, *MASKED_LM, "--moe-freq", 1, "--encoder-layers-to-keep", "1")
    pruned.model.load_state_dict(whole.model.state_dict())
    (layer,) = pruned.model.encoder.sentence_encoder.layers
    kept = whole.model.encoder.sentence_encoder.layers[1]
    trained = ((a, b) for a, b in zip(layer.parameters(), kept.parameters(), strict=True) if a.requires_grad)
    assert all(torch.equal(a, b) for a, b in trained)  # fairseq 0.12.2 has copies of some
    assert [moe.layer_index for moe in pruned.model.moe_layers] == [1]


def test_a_head_classifies_pairs(pairs):
    sp = built(pairs, *PAIRS)
    loss, sample_size, log = sp.criterion(sp.model.train(), sp.batch())
    loss.backward()
    assert sample_size == 8 and log["nsentences"] == 8
    head = sp.model.classification_heads["sentence_classification_head"]
    assert head.out_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("flag", ["--ffn-reg-scale-factor", "--ffn-blocks-to-remove"])
def test_blocks_that_experts_have_replaced_cannot_be_pruned(text, flag):
    with pytest.raises(ValueError, match="with --moec-layout replaced some have none; leave them out"):
        built(text, *MASKED_LM, "--moec-layout", "replaced", flag, 1)


def test_layerdrop_keeps_the_log_in_shape(text):
    lm = built(text, *MASKED_LM, "--moe-freq", 1, "--encoder-layerdrop", 0.99)
    loss, _, log = lm.criterion(lm.model.train(), lm.batch())
    assert loss.isfinite() and len(log["moe_sums"]) == 2


def test_a_tiny_model_learns_to_compare_two_sentences(tmp_path):
    data = write_pairs(tmp_path / "data", train=3000, valid=200)
    schedule = ("--lr-scheduler", "polynomial_decay", "--warmup-updates", 20, "--total-num-update", 350, "--lr", 0.005)
    sizes = ("--encoder-embed-dim", 32, "--encoder-ffn-embed-dim", 64, "--encoder-normalize-before")
    flags = (*PAIRS, *schedule, *sizes, "--dropout", 0, "--attention-dropout", 0, "--clip-norm", 1, "--batch-size", 50)
    train(data, tmp_path / "saved", *flags, "--disable-validation", max_update=350, base=SPARSE)
    sp = built(data, *flags, split="valid")
    sp.model.load_state_dict(load_state(tmp_path / "saved" / "checkpoint_last.pt")["model"])
    _, _, log = sp.criterion(sp.model.eval(), sp.batch(0, 200))
    assert log["ncorrect"] >= 190
