"""From dense models, trained for a few updates and then made unlike new ones, to models with experts."""

import shlex
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from moec_fairseq.__main__ import run
from moec_fairseq.checkpoint.state import load_state
from moec_fairseq.launch.configuration import configure
from moec_fairseq.moe.layer import MoELayer
from tests.conftest import USER_DIR
from tests.python import ROOT
from tests.texts import MASKED_LM, PAIRS, ROBERTA, STOCK, write_pairs, write_text
from tests.whole_trainings import SMALL, train, write_corpus

SIZES = (
    "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 24, "--decoder-embed-dim", 16, "--decoder-ffn-embed-dim", 24,
    "--encoder-layers", 3, "--decoder-layers", 2, "--encoder-attention-heads", 2, "--decoder-attention-heads", 2,
)  # fmt: skip
LEARNING = ("--optimizer", "adam", "--lr", 0.01, "--max-tokens", 200, "--num-workers", 0, "--data-buffer-size", 0)
LANGUAGES = ("-s", "src", "-t", "tgt", "--user-dir", USER_DIR, "--cpu", "--no-progress-bar")
TRANSFORMER = (*LANGUAGES, "--arch", "transformer", *SIZES, *LEARNING, "--criterion", "label_smoothed_cross_entropy")
PRE_NORM = ("--encoder-normalize-before", "--decoder-normalize-before", "--activation-fn", "gelu")
OURS = (*SMALL, "--max-tokens", 200, "--encoder-layers", 3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def dense(corpus, text, tmp_path_factory):
    """Checkpoints by name; norms and biases are not 1 and 0."""
    folder = tmp_path_factory.mktemp("dense")
    models = {
        "stock": (corpus, TRANSFORMER, ()),
        "pre-norm": (corpus, TRANSFORMER, PRE_NORM),
        "one expert": (corpus, OURS, ("--moe-expert-count", 1, "--moec-cluster-count", 1, "--moec-variance", "none")),
        "no expert": (corpus, OURS, ("--moe-expert-count", 0)),
        "roberta": (text, STOCK, (*MASKED_LM, "--criterion", "masked_lm")),
    }
    for name, (data, base, flags) in models.items():
        train(data, folder / name, *flags, "--no-epoch-checkpoints", "--disable-validation", max_update=2, base=base)
        state = load_state(folder / name / "checkpoint_last.pt")
        torch.manual_seed(1)
        for value in state["model"].values():
            value += 0.2 * torch.randn(value.shape)
        torch.save(state, folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in models}


def output(path: Path, change=lambda model: None):
    """Log-probabilities of sentences of different lengths."""
    (model,), _, task = load_model_ensemble_and_task([str(path)])
    change(model)
    pad, vocabulary = task.source_dictionary.pad(), len(task.source_dictionary)
    torch.manual_seed(2)
    tokens = torch.randint(4, vocabulary, (6, 9))
    tokens[:3, 6:] = pad
    others = []
    if not hasattr(task, "mask_idx"):  # a translation
        prefix = torch.cat([tokens.new_full((6, 1), 2), tokens.roll(1, 0)[:, :-1]], dim=1)
        others = [(tokens != pad).sum(1), prefix]
    with torch.no_grad():
        logits = model.eval()(tokens, *others)[0]
    return torch.log_softmax(logits, dim=-1)[(others[1] if others else tokens) != pad]


def upcycle(path, out, *options, experts=4, clusters=2):
    run(["checkpoint", "upcycle", path, "--experts", experts, "--clusters", clusters, "--out", out, *options])
    return load_state(out)


def moe_layers(path):
    (model,), _, _ = load_model_ensemble_and_task([str(path)])
    return [module for module in model.modules() if isinstance(module, MoELayer)]


CASES = {
    "stock": (),
    "stock, every layer": ("--encoder-moe-layers", "1,2,3", "--decoder-moe-layers", "1,2"),
    "stock, two blocks": ("--sublayers", 2, "--decoder-moe-layers", "none"),
    "stock, inserted": ("--layout", "inserted"),
    "pre-norm": (),
    "one expert": (),
    "no expert": (),
    "roberta": ("--encoder-moe-layers", "2"),
    "roberta, inserted": ("--layout", "inserted"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_forward_pass_is_that_of_the_dense_model(case, dense, tmp_path):
    path = dense[case.partition(",")[0]]
    upcycle(path, tmp_path / "up.pt", *CASES[case])
    expected, found = output(path), output(tmp_path / "up.pt")
    assert (expected - found).abs().max() < 1e-5
    # the experts are what makes it so
    changed = output(
        tmp_path / "up.pt", lambda model: [p.data.zero_() for n, p in model.named_parameters() if ".w1" in n]
    )
    assert case.endswith("inserted") == bool((expected - changed).abs().max() < 1e-5)


def test_tokens_are_spread_over_experts_that_are_equal(dense, tmp_path):
    for name in ("stock", "one expert"):
        state = upcycle(dense[name], tmp_path / f"{name}.pt")
        stacked = [value for key, value in state["model"].items() if ".experts." in key]
        assert len(stacked) >= 8 and all(torch.equal(value, value[:1].expand_as(value)) for value in stacked)
        torch.manual_seed(3)
        for layer in moe_layers(tmp_path / f"{name}.pt"):
            counts_N = layer.router(torch.randn(1000, 16), torch.arange(4)).expert_T.bincount(minlength=4)
            assert (counts_N > 50).all()


def test_the_copies_are_those_of_the_blocks_they_replace(dense, tmp_path):
    before, after = load_state(dense["stock"])["model"], upcycle(dense["stock"], tmp_path / "up.pt")["model"]
    expert = "decoder.layers.0.fc1.moe.experts.sublayers.0."
    assert torch.equal(after[expert + "w1_NFD"][3], before["decoder.layers.0.fc1.weight"])
    assert torch.equal(after[expert + "b1_NF"][0], before["decoder.layers.0.fc1.bias"])
    assert torch.equal(after[expert + "w2_NDF"][1], 2 * before["decoder.layers.0.fc2.weight"])  # the gate is 1/2
    assert torch.equal(after[expert + "b2_ND"][2], 2 * before["decoder.layers.0.fc2.bias"])
    shared = before.keys() & after.keys()
    assert len(before) - len(shared) == 8 and all(torch.equal(before[name], after[name]) for name in shared)


def test_what_is_shown_for_a_further_training_can_be_typed(dense, tmp_path, capsys):
    out = tmp_path / "a file, with = and '.pt"
    for options in (("--encoder-moe-layers", "1,3", "--decoder-moe-layers", "2"), ("--layout", "inserted")):
        upcycle(dense["stock"], out, *options)
        ours, fairseqs = (line.partition(":  ")[2] for line in capsys.readouterr().out.splitlines()[-2:])
        values = configure(ROOT / "configs" / "small.yaml", shlex.split(ours)).values
        assert values["checkpoint.finetune_from_model"] == str(out) and values["model.moe_expert_count"] == 4
        if options[0] == "--layout":
            assert values["model.moec_layout"] == "inserted" and values["model.encoder_moe_layers"] is None
        else:
            assert (values["model.encoder_moe_layers"], values["model.decoder_moe_layers"]) == ("1,3", "2")
            assert values["model.moec_router"] == "dot" and values["model.moec_expert_norm"] == "none"
        assert shlex.split(fairseqs)[:4] == ["--finetune-from-model", str(out), "--moe-expert-count", "4"]


def test_noise_is_larger_between_clusters(dense, tmp_path):
    exact = upcycle(dense["stock"], tmp_path / "exact.pt")["model"]
    noisy = upcycle(dense["stock"], tmp_path / "noisy.pt", "--noise", 0.01)["model"]
    name = "encoder.layers.1.fc1.moe.experts.sublayers.0.w1_NFD"
    noise_N = (noisy[name] - exact[name]) / exact[name][0].square().mean().sqrt()
    size = lambda difference: float(difference.square().mean().sqrt())  # noqa: E731
    assert size(noise_N[0]) == pytest.approx(0.01, rel=0.15)
    assert size(noise_N[0] - noise_N[1]) == pytest.approx(0.001 * 2**0.5, rel=0.15)
    assert size(noise_N[1] - noise_N[2]) == pytest.approx(0.01 * 2**0.5, rel=0.15)
    assert (output(tmp_path / "exact.pt") - output(tmp_path / "noisy.pt")).abs().max() < 0.2


SPARSE_TRANSFORMER = (
    *LANGUAGES, "--arch", "moec_transformer", *SIZES, *LEARNING, "--criterion", "moec_label_smoothed_cross_entropy",
    "--no-epoch-checkpoints", "--moec-expert-dropout", 0,
)  # fmt: skip


def given(path):
    """The options that the command has said are needed."""
    names = (
        "moe_expert_count",
        "moec_cluster_count",
        "moec_layout",
        "moec_router",
        "moec_expert_norm",
        "moec_sublayers",
    )
    options = load_state(path)["cfg"]["model"]
    return [word for name in names for word in (f"--{name.replace('_', '-')}", options[name])]


def test_training_goes_on_from_the_loss_of_the_dense_model(dense, corpus, tmp_path):
    upcycle(dense["stock"], tmp_path / "up.pt")
    idle = ("--optimizer", "sgd", "--lr", 0)
    train(corpus, tmp_path / "dense", "--finetune-from-model", dense["stock"], *idle, max_update=1, base=TRANSFORMER)
    flags = ("--finetune-from-model", tmp_path / "up.pt", *given(tmp_path / "up.pt"), *idle)
    train(corpus, tmp_path / "sparse", *flags, max_update=1, base=SPARSE_TRANSFORMER)
    losses = [load_state(tmp_path / n / "checkpoint_last.pt")["extra_state"]["val_loss"] for n in ("dense", "sparse")]
    assert losses[0] == losses[1]
    with pytest.raises(
        ValueError, match="up.pt has moec_router=dot, but the model to be trained cosine; give --moec-router"
    ):
        flags = [*flags, "--moec-router", "cosine"]
        train(corpus, tmp_path / "other", *flags, max_update=1, base=SPARSE_TRANSFORMER)


def test_a_training_continues_with_the_optimizers_state(dense, corpus, tmp_path):
    state = upcycle(dense["stock"], tmp_path / "up.pt", "--optimizer")
    flags = ("--restore-file", tmp_path / "up.pt", *given(tmp_path / "up.pt"))
    train(corpus, tmp_path / "on", *flags, max_update=3, base=SPARSE_TRANSFORMER)
    after = load_state(tmp_path / "on" / "checkpoint_last.pt")
    assert after["optimizer_history"][-1]["num_updates"] == 3  # the third, of which the dense model has made two
    # embeddings are tiny, but not their gradient: an update moves the gate away from 1/2
    routers = [value for name, value in after["model"].items() if name.endswith("expert_embeddings_NK")]
    assert len(routers) == 2 and all((value_NK.norm(dim=1) > 1e-3).all() for value_NK in routers)
    before = load_state(dense["stock"])
    numbers = [
        list(dict.fromkeys(n for n in s["model"] if not n.endswith(("version", "_float_tensor"))))
        for s in (before, state)
    ]
    kept = [s["last_optimizer_state"]["state"] for s in (before, state)]
    first, copy = (kept[i][numbers[i].index(n)]["exp_avg"] for i, n in enumerate(
        ("encoder.layers.1.fc1.weight", "encoder.layers.1.fc1.moe.experts.sublayers.0.w1_NFD")))  # fmt: skip
    assert torch.equal(copy, first.expand(4, -1, -1)) and first.any()
    router = kept[1][numbers[1].index("encoder.layers.1.fc1.moe.router.expert_embeddings_NK")]
    assert not router["exp_avg"].any() and router["step"] == kept[0][0]["step"]


def test_an_older_roberta_goes_on_with_its_options(dense, text, tmp_path):
    """As fairseq wrote it in 2019; what is not given to the training is taken from the checkpoint."""
    state = load_state(dense["roberta"])
    old = {name.replace("encoder.", "decoder.", 1): value for name, value in state["model"].items()}
    args = Namespace(
        **state["cfg"]["model"] if isinstance(state["cfg"]["model"], dict) else vars(state["cfg"]["model"])
    )
    vars(args).update(arch="roberta_base", task="masked_lm", data=str(text), _name="roberta_base")
    extra = {key: state[key] for key in ("optimizer_history", "extra_state")}
    torch.save({"args": args, "model": old, **extra}, tmp_path / "old.pt")
    upcycle(tmp_path / "old.pt", tmp_path / "up.pt", experts=8, clusters=2)
    expected, found = output(dense["roberta"]), output(tmp_path / "up.pt")
    assert (expected - found).abs().max() < 1e-5
    pairs = write_pairs(tmp_path / "pairs", train=20, valid=8)
    base = (*ROBERTA, "--arch", "moec_roberta", *PAIRS, "--finetune-from-model", tmp_path / "up.pt")
    train(pairs, tmp_path / "on", "--lr", 0, "--optimizer", "sgd", "--no-epoch-checkpoints", max_update=1, base=base)
    assert len(moe_layers(tmp_path / "on" / "checkpoint_last.pt")[0].router.expert_embeddings_NK) == 8


REFUSED = [
    (
        "one expert",
        ("--layout", "replaced"),
        "has blocks of one expert, which get more experts where they are; leave out",
    ),
    ("stock", ("--noise", -1), "--noise is -1.0, but must be 0 or more"),
    ("stock", ("--noise", 0.1, "--layout", "inserted"), "--noise is for copied blocks"),
    ("stock", ("--clusters", 3), "4 experts .* cannot form 3 clusters"),
    ("stock", ("--encoder-moe-layers", "4"), "--encoder-moe-layers names layer 4, which the encoder does not have"),
    ("stock", ("--encoder-moe-layers", "none", "--decoder-moe-layers", "none"), "would get no block"),
]


@pytest.mark.parametrize("name, options, message", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(name, options, message, dense, tmp_path):
    with pytest.raises(ValueError, match=message):
        upcycle(dense[name], tmp_path / "up.pt", *options)
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_kind_or_with_experts_is_refused(dense, tmp_path):
    with pytest.raises(ValueError, match="up.pt has 4 experts already; give a model with none or one"):
        upcycle(dense["stock"], tmp_path / "up.pt")
        upcycle(tmp_path / "up.pt", tmp_path / "twice.pt")
    state = load_state(dense["stock"])
    options = vars(state["cfg"]["model"])
    options["encoder_ffn_embed_dim"] += 8
    torch.save(state, tmp_path / "sizes.pt")
    with pytest.raises(
        ValueError, match="sizes.pt: encoder.layers.0.fc1.weight has the shape .24, 16., but its options"
    ):
        upcycle(tmp_path / "sizes.pt", tmp_path / "other.pt")
    del state["model"]["encoder.layers.1.fc2.bias"], state["model"]["encoder.layers.2.fc1.bias"]
    torch.save(state, tmp_path / "lacks.pt")
    message = "lacks.pt has other parameters than its options say: encoder.layers.1.fc2.bias, encoder.layers.2.fc1.bias"
    with pytest.raises(ValueError, match=message):
        upcycle(tmp_path / "lacks.pt", tmp_path / "other.pt")
    state["cfg"]["model"] = {"_name": "lstm"}
    torch.save(state, tmp_path / "lstm.pt")
    with pytest.raises(ValueError, match="lstm.pt is a lstm; give the checkpoint of a transformer or roberta"):
        upcycle(tmp_path / "lstm.pt", tmp_path / "other.pt")
    state = load_state(dense["stock"])
    state["last_optimizer_state"]["param_groups"][0]["params"].pop()
    torch.save(state, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match="no-flatten-grads, and .*; leave out --optimizer"):
        upcycle(tmp_path / "flat.pt", tmp_path / "other.pt", "--optimizer")
    with pytest.raises(ValueError, match="has no optimizer's state; leave out --optimizer"):
        torch.save(load_state(dense["stock"], optimizer=False), tmp_path / "bare.pt")
        upcycle(tmp_path / "bare.pt", tmp_path / "other.pt", "--optimizer")
