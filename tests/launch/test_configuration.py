"""Overrides as people type them: all options are accepted, and what is wrong is named with what was meant."""

import re
import subprocess
from copy import deepcopy
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.tasks.translation import TranslationConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyConfig
from moec_fairseq.launch import configuration
from moec_fairseq.launch.configuration import (
    Configuration,
    check_data,
    check_nothing_missing,
    configure,
    for_shell,
)
from moec_fairseq.models.config import MoECTransformerConfig

pytestmark = pytest.mark.usefixtures("composed_once")

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = "model:\n  _name: moec_transformer\n"


def small(*overrides):
    return configure(CONFIGS / "small.yaml", ["task.data=x", *overrides])


def refused(*overrides):
    with pytest.raises(ValueError) as error:
        small(*overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def composed_once():
    """Let hydra compose ``small`` with the same choices once, not in every test."""
    compose = configuration.compose
    composed = cache(lambda *overrides: compose("small", list(overrides)))

    def same(name, overrides):
        return deepcopy(composed(*overrides)) if name == "small" else compose(name, overrides)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configuration, "compose", same)
        yield


def test_options_that_the_file_lacks_need_no_plus():
    given = [
        "model.moec_token_shuffle=true", "model.dropout=0.2", "task.eval_bleu=true", "checkpoint.keep_last_epochs=3",
        "common.fp16=true", "optimizer.adam_eps=1e-6", "bpe._name=sentencepiece", "bpe.sentencepiece_model=x",
    ]  # fmt: skip
    found = small(*given)
    added = {"model.moec_token_shuffle", "task.eval_bleu", "optimizer.adam_eps"} | {
        "bpe._name", "bpe.sentencepiece_model"
    }  # fmt: skip
    assert found.overrides == ["task.data=x", *(("+" if text.split("=")[0] in added else "") + text for text in given)]
    assert found.values["model.moec_token_shuffle"] is True and found.values["optimizer.adam_eps"] == 1e-6
    assert found.values["model.dropout"] == 0.2 and found.values["bpe"]["sentencepiece_model"] == "x"


def test_a_plus_too_many_and_an_option_given_twice():
    found = small("+model.dropout=0.2", "++model.moec_token_shuffle=true", "model.moec_token_shuffle=false")
    expected = ["task.data=x", "model.dropout=0.2", "+model.moec_token_shuffle=true", "model.moec_token_shuffle=false"]
    assert found.overrides == expected and found.values["model.moec_token_shuffle"] is False
    assert small("model={dropout: 0.2, moec_token_shuffle: true}").values["model.moec_token_shuffle"] is True


def test_every_option_of_fairseq_and_of_the_plug_in():
    groups = {
        field.name: field.default for field in fields(FairseqConfig) if hasattr(field.default, "__dataclass_fields__")
    }
    groups |= {"model": MoECTransformerConfig(), "criterion": MoECLabelSmoothedCrossEntropyConfig()}
    groups |= {"task": TranslationConfig(), "optimizer": FairseqAdamConfig()}
    names = [f"{group}.{field.name}" for group, options in groups.items() for field in fields(options)]
    names = [name for name in names if not name.endswith("._name") and name != "common.user_dir"]
    assert len(names) > 300
    values = small(*(f"{name}=${{common.seed}}" for name in names if name != "common.seed")).values
    assert all(values[name] == "${common.seed}" for name in names if name != "common.seed")


@pytest.mark.parametrize("override, sentence", [
    ("model.dropuot=0.3", "there is no option model.dropuot; nearest: model.dropout"),
    ("optimization.max_updat=3", "there is no option optimization.max_updat; nearest: optimization.max_update"),
    ("checkpoint.keep_last_epoch=3", "nearest: checkpoint.keep_last_epochs"),
    ("modle.dropout=0.3", "there is no option modle.dropout; nearest: model.dropout"),
    ("task.max_tokens=300", "nearest: dataset.max_tokens"),
    ("max_update=3", "nearest: optimization.max_update"),
    ("model.encoder.layers=3", "nearest: model.encoder_layers"),
    ("+model.encoder_layer=3", "nearest: model.encoder_layers"),
    ("mehtod=moe", "there is no option mehtod; nearest: method"),
    ("bpe.sentencepiece_model=x", "there is no option bpe.sentencepiece_model"),
    ("quite.different=1", "groups of options: _name, common, "),
    ("model._name=moec_transfomer", "which fairseq does not know; nearest: moec_transformer"),
    ("optimizer._name=adma", "optimizer._name is adma, which fairseq does not know; nearest: adam"),
    ("method=mo", "Could not .*method/mo.*; Available options.*: dense moe moec moec-nodropout"),
    ("task=translation", "No match in the defaults list; .*; give task._name=translation"),
    ("criterion._name=label_smoothed_cross_entropy", "Key 'moe_gate_loss_wt' not in .*leave it out with ~"),
    ("model.dropout=abc", "model.dropout=abc: Value 'abc' .*could not be converted to Float"),
    ("model.moec_layout=insertd", r"expected one of \[inserted, replaced\]"),
    ("optimization.max_update=many", "could not be converted to Integer"),
    ("common.fp16=maybe", "'maybe' is not a valid bool"),
    ("model={dropuot: 3}", "Key 'dropuot' not in"),
    ("model.moec_cluster_count=null", "is not Optional"),
    ("common.user_dir=nowhere", "common.user_dir is nowhere, which cannot be imported"),
    ("~optimizer.adam_eps", "'optimizer.adam_eps' does not exist"),
    ("hydra.run.dri=x", "Key 'dri' not in 'RunDir'"),
    ("word", "word is not an override; give KEY=VALUE"),
    ("=3", "=3 is not an override"),
    ("a b=3", "hydra cannot read a b=3 "),
])  # fmt: skip
def test_what_is_wrong_is_named(override, sentence):
    said = refused(override)
    assert re.search(sentence, said), said
    assert "HYDRA_FULL_ERROR" not in said and "full_key" not in said


@pytest.mark.parametrize("override, spelling", [
    ("model.encoder_moe_layers=1,2", "model.encoder_moe_layers='1,2'"),
    ("model.encoder_moe_layers=[1,2]", "model.encoder_moe_layers='1,2'"),
    ("optimization.lr=0.1,0.2", "optimization.lr=[0.1,0.2]"),
    ("optimization.update_freq=4", "optimization.update_freq=[4]"),
    ("optimizer.adam_betas=(0.9,0.98)", "optimizer.adam_betas='(0.9,0.98)'"),
    ("task.data=a=b", "task.data='a=b'"),
    ("task.data=it's", r"task.data='it\'s'"),
    ("task.data=a[b", "task.data='a[b'"),
    ("task.data={a", "task.data='{a'"),
    ('task.data="a', "task.data='\"a'"),
    ("task.data=a,b c", "task.data='a,b c'"),
    ("model.dropout=0.1,0.2", None),
    ("common.seed=range(1,3)", None),
    ("optimization.lr=abc", None),
])  # fmt: skip
def test_how_it_is_written_through_a_shell(override, spelling):
    said = refused(override)
    typed = said.removesuffix(".").partition("; give ")[2]
    if spelling is None:
        assert typed in ("", "one"), said
    else:
        heard = subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, text=True).stdout
        assert heard == spelling, said
        assert small(spelling).overrides[-1] == spelling


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1).filter(lambda text: "${" not in text))
def test_any_text_can_be_given(text):
    spelling = configuration._other_spelling("task.data", text).removeprefix("; give ")
    heard = subprocess.run(["bash", "-c", f"printf %s {spelling}"], capture_output=True, text=True).stdout
    assert (
        OverridesParser.create().parse_override(heard).value() == (re.fullmatch(r"\[(.*)\]", text) or [text, text])[1]
    )
    assert subprocess.run(["bash", "-c", f"printf %s {for_shell(text)}"], capture_output=True, text=True).stdout == text


def test_values_left_to_the_user(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"common:\n  user_dir: ???\ntask:\n  data: ???\n  source_lang: de\n{MODEL}")
    for override in ("task.data=here", "+task.data=here"):
        found = configure(path, [override])
        check_nothing_missing(found)
        assert found.values["task.data"] == "here" and found.overrides == ["task.data=here"]
    with pytest.raises(
        ValueError, match=r"^task\.data is missing, which .*x\.yaml leaves to you; give task\.data=VALUE"
    ):
        check_nothing_missing(configure(path, ["task.source_lang=en"]))
    path.write_text("common:\n  seed: 1\n")
    with pytest.raises(ValueError, match=r"^model\._name is missing, .*; give model\._name=VALUE"):
        check_nothing_missing(configure(path, []))
    with pytest.raises(ValueError, match=r"^bpe\.sentencepiece_model is missing"):  # which a class of fairseq asks for
        check_nothing_missing(small("+bpe=sentencepiece"))


def test_values_left_to_the_user_in_a_list_of_defaults(tmp_path):
    path = tmp_path / "y.yaml"
    path.write_text(f"defaults:\n  - _self_\n  - corpus: own\n{MODEL}")
    with pytest.raises(ValueError, match=r"y\.yaml: .*Could not .*corpus/own"):
        configure(path, [])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/own.yaml").write_text("# @package _global_\ntask:\n  data: ???\n")
    assert configure(path, []).values["task.data"] == "???"
    (tmp_path / "corpus/other.yaml").write_text("# @package _global_\ntask:\n  data: there\n")
    assert configure(path, ["corpus=other"]).values["task.data"] == "there"


@pytest.mark.parametrize("content, sentence", [
    ("model:\n  _name: moec_transformer\n  dropuot: 0.3\n", "Key 'dropuot' not in .*; nearest: dropout"),
    ("model:\n  _name: moec_transformer\n  dropout: abc\n", "could not be converted to Float"),
    ("optimization:\n  max_updat: 3\n", "Key 'max_updat' not in 'OptimizationConfig'"),
    ("modle:\n  dropout: 0.3\n", "Key 'modle' not in 'FairseqConfig'"),
    ("task: {data: [}", "x.yaml"),
    ("task:\n  _name: translaton\n", "task._name is translaton, which fairseq does not know; nearest: translation"),
])  # fmt: skip
def test_what_is_wrong_in_the_file(tmp_path, content, sentence):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        configure(tmp_path / "x.yaml", [])


@pytest.mark.parametrize("name", ["my file", "a.b", "x=y,z"])
def test_files_of_any_name(tmp_path, name):
    (tmp_path / f"{name}.yaml").write_text(f"task:\n  _name: translation\n  data: mine\n{MODEL}")
    assert configure(tmp_path / f"{name}.yaml", []).values["task.data"] == "mine"


@pytest.mark.parametrize("name", ["x.yml", "x", "config.yaml", "common.yaml"])
def test_names_that_hydra_would_not_find(tmp_path, name):
    with pytest.raises(ValueError, match=f"hydra cannot find .*{name}; let its name end in .yaml"):
        configure(tmp_path / name, [])


@pytest.mark.parametrize("folder", ["/a (copy)/ü", "/it's/x", "/a=b,c/{d}", "/back\\slash\\'/"])
def test_a_checkout_may_lie_anywhere(monkeypatch, folder):
    monkeypatch.setattr("moec_fairseq.launch.configuration.USER_DIR", folder)
    assert OverridesParser.create().parse_override(configuration.user_dir()).value() == folder


def test_the_folders_of_the_data(tmp_path):
    def check(data):
        check_data(Configuration(Path("x.yaml"), [], {"task.data": data}))

    check(f"{tmp_path}:{tmp_path}")
    for data in (None, "${hydra:job.config_name}-bin"):  # given by the task, or what only hydra knows
        check(data)
    with pytest.raises(ValueError, match="^task.data is nowhere, but there is no folder nowhere; make it with"):
        check("nowhere")
    with pytest.raises(ValueError, match="^task.data is .*:b, but there is no folder b; make it with"):
        check(f"{tmp_path}:b")
