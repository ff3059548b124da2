"""The files of configs/: complete, commented, and understood by fairseq."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.lr_scheduler.inverse_square_root_schedule import InverseSquareRootLRScheduleConfig
from fairseq.tasks.translation import TranslationConfig

import moec_fairseq
from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyConfig
from moec_fairseq.launch.configuration import configure
from moec_fairseq.models.config import MoECTransformerConfig

CONFIGS = Path(moec_fairseq.__path__[0]).parent / "configs"
RECIPES = ["wmt14_en_de", "wmt16_en_de", "wmt14_en_fr", "iwslt14_de_en", "multi30k_en_de", "multi30k_en_fr", "small"]
# differ from another recipe by its name only
ALIKE = {"wmt16_en_de": "wmt14_en_de", "wmt14_en_fr": "wmt14_en_de", "multi30k_en_fr": "multi30k_en_de"}
METHODS = ["dense", "moe", "moec"]
GROUPS = ("common", "dataset", "optimization", "optimizer", "lr_scheduler", "task", "model", "criterion")
NAMES = [f"{recipe}_{method}" for recipe in RECIPES for method in METHODS]


def composed(name, *overrides):
    return configure(CONFIGS / f"{name}.yaml", ["task.data=x", *overrides]).values


def test_all_are_there():
    assert sorted([*NAMES, "moec_transformer"]) == sorted(path.stem for path in CONFIGS.glob("[!_]*.yaml"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(tuple(ALIKE))])
def test_fairseq_knows_all_keys(name):
    config = composed(name, "model.moe_expert_count=16")
    schemas = {
        "model": MoECTransformerConfig,
        "task": TranslationConfig,
        "criterion": MoECLabelSmoothedCrossEntropyConfig,
        "optimizer": FairseqAdamConfig,
        "lr_scheduler": InverseSquareRootLRScheduleConfig,
    }
    for group, schema in schemas.items():
        assert set(config[group]) - {"_name"} <= {field.name for field in fields(schema)}, group
    assert config["model.moe_expert_count"] == 16
    assert (
        config["criterion._name"] == "moec_label_smoothed_cross_entropy" and config["model._name"] == "moec_transformer"
    )
    recipe, method = name.rsplit("_", 1)
    clusters = 8 if recipe.startswith("wmt") else 2
    assert config["model.moec_cluster_count"] == {"dense": 1, "moe": 1, "moec": clusters}[method]
    variance = "intra" if recipe.startswith("wmt") else "intra_cv"
    assert config["criterion.moec_variance"] == (variance if method == "moec" else "none")
    assert config["common.fp16"] == recipe.startswith(("wmt", "iwslt"))


@pytest.mark.parametrize("recipe, like", ALIKE.items())
def test_recipes_that_are_alike(recipe, like):
    for method in METHODS:
        own, other = (
            [line for line in (CONFIGS / f"{name}_{method}.yaml").read_text().splitlines() if not line.startswith("#")]
            for name in (recipe, like)
        )
        assert own == [line.replace(like, recipe) for line in other]


def test_methods_differ_in_nothing_else():
    configs = {method: composed(f"multi30k_en_de_{method}") for method in METHODS}
    own = {"moe_expert_count", "moec_cluster_count", "moec_variance", "moec_variance_wt"}
    dense, moe, moec = (
        {
            key: value
            for group in (
                "common",
                "dataset",
                "optimization",
                "optimizer",
                "lr_scheduler",
                "task",
                "model",
                "criterion",
            )
            for key, value in configs[method][group].items()
            if key not in own and not key.startswith("moec_expert_dropout")
        }
        for method in METHODS
    )
    assert dense == moe == moec


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_key_is_commented(path):
    for line in path.read_text().splitlines():
        if re.match(r"  (- )?\w+: *\S", line):
            assert "# " in line, line
