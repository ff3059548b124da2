"""The files of configs/: complete, commented, and understood by fairseq."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.lr_scheduler.inverse_square_root_schedule import InverseSquareRootLRScheduleConfig
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import PolynomialDecayLRScheduleConfig
from fairseq.tasks.masked_lm import MaskedLMConfig
from fairseq.tasks.translation import TranslationConfig
from omegaconf import OmegaConf

import moec_fairseq
from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyConfig
from moec_fairseq.criterions.moec_masked_lm import MoECMaskedLmConfig
from moec_fairseq.data.glue import read_tasks
from moec_fairseq.launch.configuration import configure
from moec_fairseq.models.config import MoECRobertaConfig, MoECTransformerConfig
from tests.whole_trainings import configuration as of_flags

CONFIGS = Path(moec_fairseq.__path__[0]).parent / "configs"
# clusters, variance loss, share and interval of expert dropout
RECIPES = {
    "wmt14_en_de": (8, "intra", 0.5, 250), "wmt16_en_de": (8, "intra", 0.5, 250), "wmt14_en_fr": (8, "intra", 0.5, 250),
    "iwslt14_de_en": (2, "intra_cv", 0.5, 250), "multi30k_en_de": (2, "intra_cv", 0.25, 50),
    "multi30k_en_fr": (2, "intra_cv", 0.25, 50), "small": (2, "intra_cv", 0.5, 250),
    "quickstart": (2, "intra_cv", 0.5, 50), "moec_transformer": (2, "intra_cv", 0.5, 250),
    "languages": (2, "intra_cv", 0.5, 50),
}  # fmt: skip
# the same for masked language models
MASKED_LM = {"roberta_pretraining": (8, "intra_cv", 0.5, 250), "roberta_small": (2, "intra_cv", 0.5, 250)}
GLUE = {f"glue_{name.lower()}": task for name, task in read_tasks().items()}
# differ from another recipe by their names only
ALIKE = {"wmt16_en_de": "wmt14_en_de", "wmt14_en_fr": "wmt14_en_de", "multi30k_en_fr": "multi30k_en_de"}
METHODS = ["dense", "moe", "moec", "moec-nodropout"]
GROUPS = ("common", "dataset", "optimization", "optimizer", "lr_scheduler", "task", "model", "criterion")


def composed(name, *overrides):
    return configure(CONFIGS / f"{name}.yaml", ["task.data=x", *overrides]).values


def test_all_are_there():
    assert sorted(RECIPES | MASKED_LM | GLUE) == sorted(path.stem for path in CONFIGS.glob("[!_]*.yaml"))
    assert sorted(METHODS) == sorted(path.stem for path in (CONFIGS / "method").iterdir())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES | MASKED_LM if recipe not in ALIKE])
def test_fairseq_knows_all_keys(recipe, method):
    config = composed(recipe, f"method={method}", "model.moe_expert_count=16")
    schemas = {
        "model": MoECTransformerConfig,
        "task": TranslationConfig,
        "criterion": MoECLabelSmoothedCrossEntropyConfig,
        "optimizer": FairseqAdamConfig,
        "lr_scheduler": PolynomialDecayLRScheduleConfig if recipe == "languages" else InverseSquareRootLRScheduleConfig,
    }
    names = {"model": "moec_transformer", "criterion": "moec_label_smoothed_cross_entropy"}
    if recipe in MASKED_LM:
        schemas |= {
            "model": MoECRobertaConfig,
            "task": MaskedLMConfig,
            "criterion": MoECMaskedLmConfig,
            "lr_scheduler": PolynomialDecayLRScheduleConfig,
        }
        names = {"model": "moec_roberta", "criterion": "moec_masked_lm"}
    for group, schema in schemas.items():
        assert set(config[group]) - {"_name"} <= {field.name for field in fields(schema)}, group
    assert config["model.moe_expert_count"] == 16
    assert {group: config[f"{group}._name"] for group in names} == names
    clusters, variance, dropout, interval = (RECIPES | MASKED_LM)[recipe]
    has_clusters = method.startswith("moec")
    assert config["model.moec_cluster_count"] == (clusters if has_clusters else 1)
    assert config["criterion.moec_variance"] == (variance if has_clusters else "none")
    assert config["model.moec_expert_dropout"] == (dropout if method == "moec" else 0)
    assert config["model.moec_expert_dropout_interval"] == interval
    for_gpus = recipe.startswith(("wmt", "iwslt", "roberta_pretraining"))
    assert config["common.fp16"] == for_gpus
    assert config["optimizer._name"] == ("fused_adam" if for_gpus or recipe == "languages" else "adam")
    assert config["checkpoint.save_dir"] == "checkpoints/${hydra:job.config_name}_" + method + "/seed${common.seed}"


@pytest.mark.parametrize("recipe", GLUE)
def test_fine_tuning_fits_the_table_of_tasks(recipe):
    task, config = GLUE[recipe], composed(recipe)
    reports = {
        "report_mcc": ("mcc",), "report_acc_and_f1": ("accuracy", "f1"),
        "report_pearson_and_spearman": ("pearson", "spearman"),
    }  # fmt: skip
    assert config["task.num_classes"] == task.num_classes
    assert config["criterion.regression_target"] == task.regression
    (best,) = [key.removeprefix("report_") for key in reports if reports[key] == task.metrics] or ["accuracy"]
    assert config["checkpoint.best_checkpoint_metric"] == best and config["checkpoint.maximize_best_checkpoint_metric"]
    assert {key for key in reports if config.get(f"criterion.{key}")} == {f"report_{best}"} & set(reports)
    assert config["lr_scheduler.warmup_updates"] == round(0.06 * config["optimization.max_update"])
    assert "moe_expert_count" not in config["model"]  # but that of the checkpoint


@pytest.mark.parametrize("recipe", ["wmt14_en_de", "iwslt14_de_en"])
def test_bfloat16_in_the_place_of_float16(recipe):
    config = composed(recipe, "common.fp16=false", "common.bf16=true")
    assert config["common.bf16"] and not config["common.fp16"]


def test_the_method_is_moec_unless_another_is_given():
    assert composed("small") == composed("small", "method=moec")
    assert composed("small", "method=dense")["model.moe_expert_count"] == 1


@pytest.mark.parametrize("recipe, like", ALIKE.items())
def test_recipes_that_are_alike(recipe, like):
    own, other = (
        [line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")]
        for name in (recipe, like)
    )
    (source, target), (other_source, other_target) = recipe.split("_")[1:], like.split("_")[1:]
    renamed = [
        line.replace(like, recipe)
        .replace(f"-{other_source}-{other_target}/", f"-{source}-{target}/")
        .replace(f"lang: {other_source} ", f"lang: {source} ")
        .replace(f"lang: {other_target} ", f"lang: {target} ")
        for line in other
    ]
    assert own == renamed


def test_methods_differ_in_nothing_else():
    configs = {method: composed("multi30k_en_de", f"method={method}") for method in METHODS}
    own = {"moe_expert_count", "moec_cluster_count", "moec_variance", "moec_expert_dropout"}
    dense, *others = (
        {key: value for group in GROUPS for key, value in configs[method][group].items() if key not in own}
        for method in METHODS
    )
    assert all(other == dense for other in others)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_commented(path):
    for line in path.read_text().splitlines():
        if re.match(r"  (- )?\w+: *\S", line):
            assert "# " in line, line


# What scripts/quickstart.sh of version 0.2.0 gave to fairseq-train.
SIZES = "layers 3", "embed-dim 128", "ffn-embed-dim 512", "attention-heads 4", "normalize-before", "moe-layers 2"
QUICKSTART = f"""
--arch moec_transformer --share-all-embeddings --dropout 0.1 --moec-sublayers 1
{" ".join(f"--{side}-{size}" for side in ("encoder", "decoder") for size in SIZES)}
--criterion moec_label_smoothed_cross_entropy --label-smoothing 0.1 --moec-expert-dropout-interval 50
--optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0 --lr 0.0025 --lr-scheduler inverse_sqrt --warmup-updates 300
--max-tokens 768 --max-tokens-valid 4096 --seed 3 --max-update 2000 --save-dir run --tensorboard-logdir run/tensorboard
--save-interval-updates 250 --validate-interval-updates 250 --keep-interval-updates 1 --save-interval 1000000
--validate-interval 1000000 --no-epoch-checkpoints --log-format json --log-interval 10 --num-workers 0
--data-buffer-size 0 --cpu
"""


@pytest.mark.parametrize("method, flags", [
    ("moec", "--moe-expert-count 8 --moec-cluster-count 2 --moec-variance intra_cv --moec-expert-dropout 0.5"),
    ("moec-nodropout", "--moe-expert-count 8 --moec-cluster-count 2 --moec-variance intra_cv --moec-expert-dropout 0"),
    ("moe", "--moe-expert-count 8 --moec-cluster-count 1 --moec-variance none --moec-expert-dropout 0"),
    ("dense", "--moe-expert-count 1 --moec-cluster-count 1 --moec-variance none --moec-expert-dropout 0"),
])  # fmt: skip
def test_the_quickstart_trains_what_it_always_did(method, flags):
    words = f"x -s en -t de --task translation {QUICKSTART} {flags} --user-dir".split()
    expected = OmegaConf.to_container(of_flags(*words, moec_fairseq.__path__[0]), resolve=True, enum_to_str=True)
    values = composed(
        "quickstart", f"method={method}", "task.source_lang=en", "task.target_lang=de", "common.cpu=true",
        "common.seed=3", "checkpoint.save_dir=run", "checkpoint.save_interval_updates=250",
        "dataset.validate_interval_updates=250",
    )  # fmt: skip
    config = OmegaConf.create()
    for key, value in values.items():
        if not isinstance(value, dict):
            OmegaConf.update(config, key, value)
    found = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    for group in (*GROUPS, "checkpoint"):
        assert found[group] == expected[group], group
