"""From a masked language model, with or without experts, to a fine-tuned model."""

import logging
from argparse import Namespace

import pytest
import torch

from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.checkpoint.tools import info, merge, reshard
from tests.parallel.ranks import on_ranks
from tests.texts import (
    MASKED_LM,
    PAIRS,
    ROBERTA,
    SPARSE,
    STOCK,
    built,
    train_on_ranks,
    write_pairs,
    write_text,
)
from tests.whole_trainings import train, write_corpus

# an update that changes nothing
IDLE = ("--optimizer", "sgd", "--lr", 0, "--max-tokens", 200, "--disable-validation")
RESETS = ("--reset-optimizer", "--reset-lr-scheduler", "--reset-dataloader", "--reset-meters")
UNSPECIFIED = (*ROBERTA, "--arch", "moec_roberta")


@pytest.fixture(scope="module")
def text(once):
    return once("text", write_text)


@pytest.fixture(scope="module")
def pairs(once):
    return once("pairs", write_pairs)


@pytest.fixture(scope="module")
def sparse(text, tmp_path_factory):
    """A pre-trained model with a cluster of 4 experts."""
    folder = tmp_path_factory.mktemp("sparse")
    flags = (
        *MASKED_LM,
        "--moe-expert-count",
        4,
        "--moec-cluster-count",
        1,
        "--moec-expert-dropout",
        0.25,
        "--lr",
        0.01,
    )
    train(text, folder, *flags, max_update=4, base=SPARSE)
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def dense(text, tmp_path_factory):
    """fairseq's own RoBERTa, pre-trained, and the same file as fairseq wrote it in 2019, with the head of a task."""
    folder = tmp_path_factory.mktemp("dense")
    train(text, folder, *MASKED_LM, "--criterion", "masked_lm", "--lr", 0.01, max_update=4, base=STOCK)
    state = load_state(folder / "checkpoint_last.pt")
    old = {name.replace("encoder.", "decoder.", 1): value for name, value in state["model"].items()}
    old = {name.replace("layernorm_embedding", "emb_layer_norm"): value for name, value in old.items()}
    for layer in range(2):
        prefix = f"decoder.sentence_encoder.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            old[f"{prefix}in_proj_{kind}"] = torch.cat([old.pop(f"{prefix}{x}_proj.{kind}") for x in "qkv"])
    del old["decoder.sentence_encoder.version"]
    for kind, shape in (("weight", (3, 16)), ("bias", (3,))):
        old[f"classification_heads.mnli.dense.{kind}"] = torch.ones(16, *shape[1:])
        old[f"classification_heads.mnli.out_proj.{kind}"] = torch.ones(shape)
    args = Namespace(**group(state, "model") | {"arch": "roberta_base", "task": "masked_lm", "data": "/gone"})
    extra = {key: state[key] for key in ("optimizer_history", "extra_state")}
    torch.save({"args": args, "model": old, **extra}, folder / "published.pt")
    return folder


def output(model, task):
    tokens = torch.tensor([[0, *range(4, 14), 2], [0, 5, 4, 2, *[task.source_dictionary.pad()] * 8]])
    return model.eval()(tokens)[0]


@pytest.mark.parametrize(
    "option, name", [("--finetune-from-model", "published.pt"), ("--restore-file", "checkpoint_last.pt")]
)
def test_a_dense_model_stays_what_it_is_when_it_gets_experts(text, dense, tmp_path, caplog, option, name):
    resets = RESETS if option == "--restore-file" else ()
    with caplog.at_level(logging.WARNING):
        there = f"{dense}/./{name}"  # which is not how pathlib writes it
        train(text, tmp_path, *MASKED_LM, *IDLE, option, there, *resets, max_update=1, base=SPARSE)
    (warning,) = [record.getMessage() for record in caplog.records if "has no experts" in record.getMessage()]
    assert warning.endswith("change nothing yet: encoder.sentence_encoder.layers.0.moe")
    before = built(text, *MASKED_LM, "--criterion", "masked_lm", base=STOCK)
    before.model.load_state_dict(load_state(dense / "checkpoint_last.pt")["model"])
    after = built(text, *MASKED_LM)
    after.model.load_state_dict(load_state(tmp_path / "checkpoint_last.pt")["model"])
    assert sum(".moe." in name for name in after.model.state_dict()) == 9
    assert torch.equal(output(before.model, before.task), output(after.model, after.task))


def test_experts_in_the_place_of_trained_blocks_are_refused(text, dense, tmp_path):
    flags = (*MASKED_LM, *IDLE, "--moec-layout", "replaced", "--finetune-from-model", dense / "checkpoint_last.pt")
    with pytest.raises(ValueError, match="has no experts, and with --moec-layout replaced .* give --moec-layout"):
        train(text, tmp_path, *flags, max_update=1, base=SPARSE)


def test_a_dense_training_does_not_go_on_with_experts(text, dense, tmp_path):
    flags = (*MASKED_LM, "--restore-file", dense / "checkpoint_last.pt")
    with pytest.raises(ValueError, match="has 0 experts in a layer, but .* start from it with --finetune-from-model"):
        train(text, tmp_path, *flags, max_update=5, base=SPARSE)


@pytest.mark.parametrize("option", ["--finetune-from-model", "--restore-file"])
def test_options_that_are_not_given_are_those_of_the_checkpoint(pairs, sparse, tmp_path, option):
    flags = (*PAIRS, *IDLE, option, sparse, *(RESETS if option == "--restore-file" else ()))
    train(pairs, tmp_path, *flags, "--dropout", 0.3, max_update=1, base=UNSPECIFIED)
    saved, before = (load_state(path)["cfg"]["model"] for path in (tmp_path / "checkpoint_last.pt", sparse))
    assert saved["moe_expert_count"] == 4 and saved["moec_expert_dropout"] == 0.25 and saved["dropout"] == 0.3
    same = {name for name in before if name.startswith(("moe_", "moec_", "encoder_"))}
    assert {name: saved[name] for name in same} == {name: before[name] for name in same}
    assert all(value is not None for name, value in saved.items() if name.startswith(("moe_", "moec_")))
    assert saved["finetune_from_model"] is None  # the model is complete without it


def test_given_options_that_do_not_fit_are_named(pairs, sparse, tmp_path):
    flags = (*PAIRS, *IDLE, "--finetune-from-model", sparse, "--moe-expert-count", 16)
    with pytest.raises(ValueError, match="has 4 experts in a layer, but the model to be trained 16"):
        train(pairs, tmp_path, *flags, max_update=1, base=UNSPECIFIED)


def test_positions_beyond_those_of_the_task_are_left_out(pairs, sparse, tmp_path):
    flags = (*PAIRS, *IDLE, "--finetune-from-model", sparse, "--shorten-method", "truncate")
    train(pairs, tmp_path / "8", *flags, "--max-positions", 8, max_update=1, base=UNSPECIFIED)
    name = "encoder.sentence_encoder.embed_positions.weight"
    short, whole = (load_state(path)["model"][name] for path in (tmp_path / "8" / "checkpoint_last.pt", sparse))
    assert torch.equal(short, whole[:10]) and len(whole) == 34
    with pytest.raises(ValueError, match="has positions for 32 subwords, but the model to be trained for 64; give"):
        train(pairs, tmp_path / "64", *flags, "--max-positions", 64, max_update=1, base=UNSPECIFIED)


def test_a_fine_tuning_that_was_stopped_goes_on(pairs, sparse, tmp_path):
    flags = (*PAIRS, "--lr", 0.001, "--report-mcc", "--finetune-from-model", sparse)
    whole = train(pairs, tmp_path / "whole", *flags, max_update=5, base=UNSPECIFIED)
    train(pairs, tmp_path / "parts", *flags, max_update=2, base=UNSPECIFIED)
    rest = train(pairs, tmp_path / "parts", *flags, max_update=5, base=UNSPECIFIED)
    assert rest.sentences == whole.sentences[2:]
    assert all(torch.equal(rest.parameters[name], value) for name, value in whole.parameters.items())


def test_ranks_take_their_own_experts_of_every_kind_of_checkpoint(pairs, sparse, dense, tmp_path, capsys):
    """Files of ranks, one file, and a model without experts; they validate together, and the tools know their files."""
    reshard(sparse, 2, str(tmp_path / "two") + "/")
    started = {"ranks": tmp_path / "two" / sparse.name, "whole": sparse, "dense": dense / "checkpoint_last.pt"}
    best = ("--report-mcc", "--best-checkpoint-metric", "mcc", "--maximize-best-checkpoint-metric")
    flags = (*PAIRS, "--optimizer", "sgd", "--lr", 0, "--max-tokens", 200, *best)
    train(pairs, tmp_path / "one", *flags, "--finetune-from-model", sparse, max_update=1, base=UNSPECIFIED)
    found = {"one": load_state(tmp_path / "one" / "checkpoint_last.pt")}
    for name, path in started.items():
        start = (*flags, "--finetune-from-model", path)
        on_ranks(2, train_on_ranks, pairs, tmp_path / name, 1, UNSPECIFIED, *start)
        merge(tmp_path / name / "checkpoint_last.pt", tmp_path / f"{name}.pt")
        found[name] = load_state(tmp_path / f"{name}.pt")
    capsys.readouterr()
    info(tmp_path / "ranks" / "checkpoint_last.pt")
    assert "encoder.sentence_encoder.layers.0" in capsys.readouterr().out
    before = load_state(sparse)["model"]
    head = "classification_heads.sentence_classification_head.out_proj.weight"
    for name in ("ranks", "whole"):
        assert all(torch.equal(found[name]["model"][key], value) for key, value in before.items())
        assert torch.equal(found[name]["model"][head], found["one"]["model"][head])
        assert found[name]["extra_state"]["val_loss"] == found["one"]["extra_state"]["val_loss"]  # Matthews
    begun, before = (state["model"] for state in (found["dense"], load_state(started["dense"])))
    assert all(torch.equal(begun[key], value) for key, value in before.items())
    assert begun["encoder.sentence_encoder.layers.0.moe.experts.sublayers.0.w2_NDF"].shape == (8, 16, 32)


def test_models_of_another_kind_or_vocabulary_are_refused(text, pairs, sparse, tmp_path):
    translation = write_corpus(tmp_path / "corpus", 40)
    train(translation, tmp_path / "translates", "--max-tokens", 200, max_update=1)
    other = tmp_path / "translates" / "checkpoint_last.pt"
    with pytest.raises(ValueError, match="is a moec_transformer_tiny, but .* can only start from a moec_roberta or"):
        train(pairs, tmp_path / "1", *PAIRS, *IDLE, "--finetune-from-model", other, max_update=1, base=UNSPECIFIED)
    with pytest.raises(ValueError, match="is a moec_roberta, but .* can only start from a moec_transformer"):
        train(translation, tmp_path / "2", *IDLE, "--finetune-from-model", sparse, max_update=1)
    for symbols in ("abcdefghijk", "bacdefghij"):
        write_pairs(tmp_path / symbols, train=8, valid=8, symbols=symbols)
        flags = (*PAIRS, *IDLE, "--finetune-from-model", sparse)
        with pytest.raises(ValueError, match="has another vocabulary .15 subwords. than the data .1[56]."):
            train(tmp_path / symbols, tmp_path / "3", *flags, max_update=1, base=UNSPECIFIED)
