"""What is found before a training starts, with answers known by hand."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from moec_fairseq.launch import preflight, ranks
from moec_fairseq.launch.configuration import configure
from moec_fairseq.launch.preflight import PUBLISHED, Bytes, Sizes, findings, kept_checkpoints, most_epochs
from moec_fairseq.launch.ranks import planned
from moec_fairseq.util import machine
from tests.texts import MASKED_LM, SPARSE, built, write_pairs, write_text
from tests.whole_trainings import train

CONFIGS = Path(__file__).parents[2] / "configs"
LANGUAGES = ["task.source_lang=src", "task.target_lang=tgt"]
EXPERTS = ["model.moe_expert_count=4", "model.moec_expert_dropout=0", "model.moec_router_dim=8"]
KEYS = ("layers=1", "embed_dim=16", "ffn_embed_dim=32", "attention_heads=2")
SMALL = [*EXPERTS, *(f"model.{side}_{key}" for side in ("encoder", "decoder") for key in KEYS)]
# by hand: an expert has a norm, W1, b1, W2, b2
EXPERT = 2 * 16 + 16 * 32 + 32 + 32 * 16 + 16
ATTENTION, NORM, FEED_FORWARD = 4 * (16 * 16 + 16), 2 * 16, 16 * 32 + 32 + 32 * 16 + 16
ENCODER = ATTENTION + 2 * NORM + FEED_FORWARD + NORM  # the last one is that of the stack
DECODER = 2 * ATTENTION + 3 * NORM + FEED_FORWARD + NORM
ROUTER = 16 * 8 + 4 * 8 + 1
LAYERS = ENCODER + DECODER + 2 * ROUTER
SHARED = 16 * 16 + LAYERS  # embeddings: ten letters, four symbols of fairseq, padded to a multiple of 8
MIB, GIB = 1 << 20, 1 << 30


@pytest.fixture(autouse=True)
def ample(monkeypatch, tmp_path):
    """A machine with 8 GiB of memory, no GPU, and 100 GiB on its disk."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "memory", lambda: 8 * GIB)
    monkeypatch.setattr(machine, "gpus", lambda: [])
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GIB))


def gpus(monkeypatch, number, gib=80, capability=9.0):
    monkeypatch.setattr(ranks.torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a GPU", gib * GIB, capability)] * number)
    monkeypatch.setattr(preflight.dist, "is_nccl_available", lambda: True)


def found(*overrides, config="small", processes=1, nodes=1):
    """Return what is found, by subject; the last one of each."""
    return {f.subject: f for f in findings(planned(config, overrides, processes, nodes, CONFIGS))}


def of_reversal(data, *overrides, **options):
    return found(f"task.data={data}", *LANGUAGES, *SMALL, *overrides, **options)


def test_all_is_well(reversal_data):
    seen = of_reversal(reversal_data)
    assert not [finding for finding in seen.values() if finding.state != "ok"]
    assert list(seen) == ["batch", "experts", "dictionary", "lengths", "memory", "disk"]
    assert seen["memory"].text == (
        f"{16 * (SHARED + 8 * EXPERT) / MIB:.1f} MiB for {SHARED + 8 * EXPERT:,} parameters, 16 bytes each with "
        "gradient and adam, and activations; there are 8.0 GiB"
    )
    assert seen["batch"].text == "768 tokens x 1 x 1 (update_freq, processes) = 768 in an update"
    assert seen["dictionary"].text == "joint, 16 subwords, whose embeddings are shared"
    # letters and the end of the sentence
    assert seen["lengths"].text == "valid: 100 examples, the longest of 7 and 7 subwords, positions for 1024 and 1024"


def test_experts_are_shared_and_gathered(reversal_data):
    seen = of_reversal(reversal_data, "dataset.max_tokens=100000", processes=2)
    own = SHARED + 4 * EXPERT
    assert seen["memory"].text.startswith(
        f"{2 * 16 * own / MIB:.1f} MiB for {own:,} parameters of each of 2 processes, 16 bytes each with gradient and "
        f"adam, {2 * 4 * 8 * EXPERT / MIB:.1f} MiB more for all experts at validation, and activations; there"
    )
    # hidden states there and back, and their gradients, of two layers
    assert seen["traffic"].text == (
        f"50% of the tokens go to experts of other processes; each process sends about "
        f"{4 * 2 * 100_000 * 16 * 4 * 0.5 / 1e6:.0f} MB for a batch of 100,000 tokens"
    )
    # two files of shared parameters and half of the experts, three float32 values each
    assert f"checkpoints of {2 * 12 * own / MIB:.1f} MiB each" in seen["disk"].text
    options = ("dataset.max_tokens=100000", "model.moec_token_shuffle=true", "model.moec_evaluation=exchanged")
    seen = of_reversal(reversal_data, *options, processes=2, nodes=2)
    assert f"about {8 * 2 * 100_000 * 16 * 4 * 0.75 / 1e6:.0f} MB for" in seen["traffic"].text
    assert "75% of the tokens go to experts of other processes, 50% to other machines" in seen["traffic"].text
    assert "at validation" not in seen["memory"].text


def job_of(world_size, name="mine", gpus=0, update_freq=1, max_tokens=4096, **groups):
    """Return a training of which little is known."""
    return SimpleNamespace(
        configuration=SimpleNamespace(path=Path(f"{name}.yaml")), config=OmegaConf.create(groups),
        world_size=world_size, gpus=gpus, update_freq=update_freq, batch=(max_tokens, "tokens"),
    )  # fmt: skip


@pytest.mark.parametrize("experts, clusters, processes, state, words", [
    (64, 8, 8, "ok", "8 on each of 8 processes, no cluster on several"),
    (64, 8, 4, "ok", "16 on each of 4 processes, no cluster on several"),
    (64, 8, 16, "slow", "give --processes 2 or 4 or 8, or 16 or more clusters"),
    (12, 4, 6, "slow", "give --processes 1 or 2 or 4, or 6 or more clusters"),
    (12, 4, 3, "slow", "4 on each of 3 processes, so that some clusters are on several"),
    (4, 4, 8, "ok", "1 on each of 4 processes, no cluster on several"),
    (8, 2, 16, "slow", "give --processes 1 or 2, or 8 or more clusters"),
    (8, 2, 1, "ok", "all in one process"),
    (8, 2, 3, "wrong", "8 experts (--moe-expert-count) cannot be shared by 3 processes; use 1, 2, 4, 8 processes"),
])  # fmt: skip
def test_clusters_on_processes(experts, clusters, processes, state, words):
    job = job_of(processes, model={"moec_cluster_count": clusters, "moec_expert_dropout": 0.5})
    shard, seen = preflight._sharing(job, experts)
    assert (seen.subject, seen.state) == ("experts", state) and words in seen.text
    assert (shard is None) == (state == "wrong")
    if state == "slow":
        job.config.model.moec_expert_dropout = 0
        seen = preflight._sharing(job, experts)[1]
        assert seen.state == "ok" and "without expert dropout no matter" in seen.text


@pytest.mark.parametrize("name, processes, given, criterion, advice", [
    ("wmt14_en_de", 8, {"update_freq": 16}, {}, None),
    ("wmt14_en_de", 1, {"update_freq": 16}, {}, "[128] criterion.moec_variance_wt=8 (the loss grows with"),
    ("wmt14_en_de", 4, {"update_freq": 16}, {"moec_variance": "intra_cv"}, "[32]"),
    ("wmt14_en_de", 4, {"update_freq": 32}, {"moec_variance_wt": 2.0}, None),
    ("wmt14_en_fr", 16, {"update_freq": 16, "max_tokens": 8192}, {}, "[4] criterion.moec_variance_wt=0.25 (the loss"),
    ("multi30k_en_de", 2, {"update_freq": 2}, {"moec_variance": "intra_cv"}, "[1]"),
    ("mine", 3, {"update_freq": 2}, {}, None),
])  # fmt: skip
def test_the_published_batch(name, processes, given, criterion, advice):
    job = job_of(processes, name, **given, criterion={"moec_variance": "intra", "moec_variance_wt": 1.0} | criterion)
    seen = preflight._batch(job)
    assert seen.state == ("slow" if advice else "ok")
    assert f"{job.batch[0] * job.update_freq * processes:,} in an update" in seen.text
    if advice:
        assert f"; give optimization.update_freq={advice}" in seen.text
    else:
        assert seen.text.endswith("as published") == (name != "mine")


@pytest.mark.parametrize("config", ["wmt14_en_de", "iwslt14_de_en", "multi30k_en_de", "roberta_pretraining"])
def test_published_batches_are_those_of_the_files(config):
    values = configure(CONFIGS / f"{config}.yaml", ["task.data=x"]).values
    assert (values["dataset.max_tokens"], *values["optimization.update_freq"]) == PUBLISHED[config][:2]
    assert values["criterion.moec_variance_wt"] == 1


@pytest.mark.parametrize("options, capability, state, words", [
    ({"fp16": True}, 9.0, "slow", "experts are faster with common.fp16=false common.bf16=true"),
    ({"memory_efficient_fp16": True}, 7.5, "ok", "float16"),
    ({"bf16": True}, 9.0, "ok", "bfloat16"),
    ({"amp": True}, 9.0, "ok", "mixed"),
    ({}, 9.0, "slow", "float32; give common.fp16=false common.bf16=true"),
    ({}, 7.5, "slow", "give common.fp16=true common.fp16_no_flatten_grads=true"),
])  # fmt: skip
def test_precision_on_gpus(monkeypatch, options, capability, state, words):
    gpus(monkeypatch, 2, capability=capability)
    job = job_of(2, gpus=2, **options_of(**options))
    (seen,) = preflight._gpus(job)
    assert (seen.state, seen.subject) == (state, "precision") and words in seen.text
    monkeypatch.setattr(preflight.dist, "is_nccl_available", lambda: False)
    without, _ = preflight._gpus(job)
    assert (without.state, without.subject) == ("wrong", "NCCL")


def options_of(**common):
    names = ("fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16")
    return {
        "common": dict.fromkeys(names, False) | common, "optimizer": {"_name": "adam"}, "ema": {"store_ema": False},
        "checkpoint": {"no_save_optimizer_state": False},
    }  # fmt: skip


@pytest.mark.parametrize("options, expected", [
    ({}, (4, 16, 12)),  # parameter, gradient, two of Adam
    ({"common.amp": True}, (4, 16, 12)),
    ({"common.fp16": True}, (2, 20, 12)),  # and a copy in float32 of parameter and gradient
    ({"common.bf16": True, "ema.store_ema": True}, (2, 24, 16)),
    ({"common.fp16": True, "common.memory_efficient_fp16": True}, (2, 12, 10)),
    ({"common.memory_efficient_bf16": True}, (2, 12, 10)),
    ({"optimizer._name": "sgd"}, (4, 8, 4)),
    ({"optimizer._name": "nag"}, (4, 12, 8)),
    ({"checkpoint.no_save_optimizer_state": True}, (4, 16, 4)),
])  # fmt: skip
def test_bytes_of_a_parameter(options, expected):
    config = OmegaConf.create(options_of())
    for key, value in options.items():
        OmegaConf.update(config, key, value)
    assert Bytes.of(config) == Bytes(*expected)


def memory(there, processes=1, gpus=0, evaluation="gathered", **common):
    """Return the finding for 100 shared parameters and 800 of experts."""
    job = job_of(processes, gpus=gpus, **options_of(**common), model={"moec_evaluation": evaluation})
    job.here, job.memory = processes, there
    return preflight._memory(job, Sizes(100, 800, processes), "")


def test_memory_that_is_too_small():
    assert memory(900 * 16).state == "ok"
    short = memory(900 * 16 - 1)
    assert short.state == "wrong" and "give fewer experts (model.moe_expert_count), a smaller model, or" in short.text
    # two processes train 500 parameters each, and have all experts at validation
    assert memory(2 * (500 * 16 + 800 * 4), 2).state == "ok"
    short = memory(2 * (500 * 16 + 800 * 4) - 1, 2)
    assert short.state == "wrong" and short.text.endswith("give model.moec_evaluation=exchanged")
    assert memory(2 * 500 * 16, 2, evaluation="exchanged").state == "ok"
    assert memory(2 * 500 * 16 - 1, 2, evaluation="exchanged").state == "wrong"


def test_memory_of_gpus_is_of_each(monkeypatch):
    assert memory(500 * 20 + 800 * 2, 2, gpus=2, bf16=True).state == "ok"
    short = memory(500 * 20 + 800 * 2 - 1, 2, gpus=2, bf16=True)
    assert short.state == "wrong" and "on each GPU; give model.moec_evaluation=exchanged" in short.text
    unknown = memory(None, gpus=1)
    assert unknown.state == "ok" and unknown.text.endswith("how much there is is not known")
    assert preflight.Job(None, [], 1, 1, gpus=0).memory == 8 * GIB
    gpus(monkeypatch, 2, gib=80)
    assert preflight.Job(None, [], 2, 2, gpus=2).memory == 80 * GIB


CHECKPOINT = {
    "no_save": False, "no_epoch_checkpoints": False, "no_last_checkpoints": False, "save_interval": 1,
    "save_interval_updates": 0, "keep_last_epochs": -1, "keep_interval_updates": -1, "keep_best_checkpoints": -1,
}  # fmt: skip


@pytest.mark.parametrize("options, epochs, number", [
    ({}, 7, 7 + 3),  # epochs; best, last, and one that is being written
    ({}, math.inf, math.inf),
    ({"keep_last_epochs": 10}, math.inf, 13),
    ({"keep_last_epochs": 10}, 7, 10),
    ({"save_interval": 3}, 7.5, 2 + 3),
    ({"no_epoch_checkpoints": True}, math.inf, 3),
    ({"no_epoch_checkpoints": True, "no_last_checkpoints": True, "keep_best_checkpoints": 5}, 2, 1 + 5 + 1),
    ({"no_epoch_checkpoints": True, "save_interval_updates": 30}, 2, 3 + 3),  # at updates 30, 60, 90 of 100
    ({"no_epoch_checkpoints": True, "save_interval_updates": 30, "keep_interval_updates": 1}, 2, 1 + 3),
    ({"no_save": True}, 7, 0),
])  # fmt: skip
def test_checkpoints_that_are_kept(options, epochs, number):
    dataset, optimization = {"disable_validation": False}, {"max_update": 100}
    config = OmegaConf.create({"checkpoint": CHECKPOINT | options, "dataset": dataset, "optimization": optimization})
    assert kept_checkpoints(config, epochs) == number
    if not options:
        config.dataset.disable_validation = True
        assert kept_checkpoints(config, 7) == 9


def test_disk(monkeypatch, tmp_path):
    sizes, size = Sizes(100, 800, 2), 2 * 500 * 12  # of the files of two ranks

    def disk(room, epochs=50, **options):
        groups = options_of() | {"dataset": {"disable_validation": False}, "optimization": {"max_update": 0}}
        groups["checkpoint"] |= CHECKPOINT | {"keep_last_epochs": 10, "save_dir": "new/folder"} | options
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
        return preflight._disk(job_of(2, **groups), sizes, epochs)

    assert disk(13 * size).state == "ok" and "of which up to 13 are kept" in disk(13 * size).text
    short = disk(13 * size - 1)
    assert short.state == "wrong"
    assert "up to 13 are kept, and 12 fit; make room, or give checkpoint.keep_last_epochs=9, or another" in short.text
    both = disk(13 * size - 1, save_interval_updates=5)
    assert both.text.endswith("give checkpoint.keep_last_epochs=8 checkpoint.keep_interval_updates=1")
    assert disk(13 * size - 1, keep_last_epochs=9).state == disk(13 * size - 1, epochs=9).state == "ok"
    unlimited = disk(13 * size, math.inf, keep_last_epochs=-1)
    assert (
        unlimited.state == "slow" and "of which all are kept, and 13 fit; give checkpoint.keep_last" in unlimited.text
    )
    (tmp_path / "new/folder").mkdir(parents=True)
    (tmp_path / "new/folder/checkpoint_last-rank-0.pt").write_bytes(b"x")  # will be replaced
    assert disk(13 * size - 1).state == "ok"


class Examples(list):
    """Sizes of examples."""

    @property
    def sizes(self):
        return list(self)


def test_epochs():
    job = job_of(3, update_freq=2, max_tokens=100, optimization={"max_update": 100, "max_epoch": 0})
    pairs = Examples([[10, 20], [30, 5]] * 60)  # 50 for each two, because the longer side counts
    assert most_epochs(job, pairs) == 100 / (3000 // 600)
    assert most_epochs(job, Examples([50] * 60)) == 20
    job.config.optimization.max_epoch = 7
    assert most_epochs(job, pairs) == 7
    job.batch = (2, "examples")
    job.config.optimization.update({"max_update": 30, "max_epoch": 0})
    assert most_epochs(job, pairs) == 3  # of 10 updates
    job.config.optimization.max_update = 0
    assert most_epochs(job, pairs) == math.inf


def test_sentences_that_are_too_long(reversal_data):
    positions = ["task.max_source_positions=6", "task.max_target_positions=6"]
    job = planned("small", [f"task.data={reversal_data}", *LANGUAGES, *SMALL, *positions], 1, 1, CONFIGS)
    train, valid = [finding for finding in findings(job) if finding.subject == "lengths"]
    lines = (reversal_data.parent / "valid.src").read_text().splitlines()
    too_long = sum(len(line.split()) == 6 for line in lines)  # and the end of the sentence
    assert train.state == "slow" and train.text.startswith(
        "train: 2,700 examples, the longest of 7 and 7 subwords, but"
    )
    assert valid.state == "wrong" and f"positions for 6 and 6: {too_long} would end the training at its" in valid.text
    skip = "dataset.skip_invalid_size_inputs_valid_test=true"
    skipping = of_reversal(reversal_data, *positions, skip)["lengths"]
    assert skipping.state == "slow" and f"{too_long} are left out" in skipping.text
    none = of_reversal(reversal_data, "task.max_source_positions=2", skip)["lengths"]
    assert none.state == "wrong" and "fewer than any needs" in none.text
    missing = of_reversal(reversal_data, "dataset.valid_subset=dev")
    assert missing["data"].state == "wrong" and "dev" in missing["data"].text and missing["disk"].state == "ok"


def test_embeddings(reversal_data, tmp_path):
    apart = of_reversal(reversal_data, "model.share_all_embeddings=false")["dictionary"]
    assert apart.state == "slow" and apart.text.endswith("give model.share_all_embeddings=true")
    data = tmp_path / "data"
    data.mkdir()
    for path in reversal_data.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "dict.tgt.txt").write_text((data / "dict.tgt.txt").read_text() + "new 1\n")
    model = of_reversal(data)["model"]
    assert model.state == "wrong" and model.text == "--share-all-embeddings requires a joined dictionary"
    two = of_reversal(data, "model.share_all_embeddings=false")["dictionary"]
    assert two.state == "ok" and two.text == "16 source and 17 target subwords"


def test_without_data_a_usual_vocabulary_is_assumed():
    seen = found("task.data=nowhere", *SMALL)
    assert (
        seen["data"].state == "wrong" and "there is no folder nowhere; make it with moec prepare" in seen["data"].text
    )
    parameters = LAYERS + 8 * EXPERT + (32_000 + 4) * 16  # and the symbols of fairseq
    assert f"{parameters:,} parameters" in seen["memory"].text and "assuming 32,000 subwords" in seen["memory"].text
    assert "assuming 32,000 subwords" in found("task.data=nowhere", config="roberta_small")["memory"].text


@pytest.mark.parametrize("overrides, words", [
    (["model.moec_cluster_count=3"], "4 experts (--moe-expert-count) cannot form 3 clusters"),
    (["model.moec_cluster_count=4"], "--moec-variance intra_cv compares the experts of a cluster"),
    (["model.encoder_attention_heads=3"], "embed_dim must be divisible by num_heads"),
    (["model.encoder_moe_layers='2'"], "--encoder-moe-layers names layer 2, which the encoder does not have"),
    (["checkpoint.write_checkpoints_asynchronously=true"], "--write-checkpoints-asynchronously would leave"),
])  # fmt: skip
def test_what_the_model_or_the_trainer_would_refuse(reversal_data, overrides, words):
    (wrong,) = [f for f in of_reversal(reversal_data, *overrides, processes=2).values() if f.state == "wrong"]
    assert wrong.subject == "model" and words in wrong.text and "\n" not in wrong.text


def test_moec_train_refuses_what_is_wrong(reversal_data, monkeypatch, tmp_path):
    monkeypatch.setattr(ranks, "run", lambda *_: pytest.fail("it has started"))
    monkeypatch.setattr(machine, "memory", lambda: 1000)
    options = {
        "config": "small", "processes": 2, "nodes": 1, "node_rank": 0, "master": None, "logs": None,
        "rank_timeout": 60, "dry_run": False, "configs": CONFIGS,
    }  # fmt: skip
    given = [f"task.data={reversal_data}", *LANGUAGES, *SMALL]
    with pytest.raises(
        ValueError, match=r"MiB for .* parameters of each .*; there are 0.0 MiB; give fewer experts .*\.$"
    ):
        ranks.train(overrides=given, **options)
    assert not list(tmp_path.iterdir())


def test_fine_tuning_takes_the_options_of_the_checkpoint(tmp_path):
    pretrained = write_text(tmp_path / "text", train=40, valid=8), tmp_path / "pretrained"
    train(*pretrained, *MASKED_LM, "--moe-expert-count", 4, "--moec-cluster-count", 1, max_update=1, base=SPARSE)
    given = [
        f"task.data={write_pairs(tmp_path / 'pairs', train=40, valid=8)}", "task.max_positions=32",
        f"checkpoint.finetune_from_model={pretrained[1] / 'checkpoint_last.pt'}",
    ]  # fmt: skip
    seen = found(*given, config="glue_rte")
    assert not [finding for finding in seen.values() if finding.state == "wrong"]
    # 4 experts, once in two layers: a norm, W1, b1, W2, b2
    experts = 4 * (2 * 16 + 16 * 32 + 32 + 32 * 16 + 16)
    built_before = built(pretrained[0], *MASKED_LM, "--moe-expert-count", 4, "--moec-cluster-count", 1)
    assert sum(p.numel() for layer in built_before.model.moe_layers for p in layer.experts.parameters()) == experts
    number = int(re.search(r"for ([\d,]+) parameters", seen["memory"].text)[1].replace(",", ""))
    head = 16 * 16 + 16 + 2 * 16 + 2  # of two classes
    assert number == sum(p.numel() for p in built_before.model.parameters() if p.requires_grad) + head
    # <s> a b </s> </s> a b </s>
    assert seen["lengths"].text == "valid: 8 examples, the longest of 8 subwords, positions for 32"
