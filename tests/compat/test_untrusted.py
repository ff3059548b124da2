import ast
import importlib
import io
import json
import subprocess
import sys
import tarfile
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import checkpoint_utils, file_utils, hub_utils, optim, utils
from fairseq.criterions import build_criterion
from fairseq.data import FastaDataset
from fairseq.dataclass.utils import eval_str_list
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from hypothesis import given
from hypothesis import strategies as st

import moec_fairseq  # noqa: F401  (importing it applies the workarounds)
from moec_fairseq.compat.untrusted import LONGEST, NOT_OF_A_FILE, literal
from tests.conftest import ROOT

FAIRSEQ = Path(fairseq.__file__).parent
SOURCES = [path for path in FAIRSEQ.rglob("*.py") if "examples" not in path.relative_to(FAIRSEQ).parts]


def evaluations(path: Path) -> list[ast.Call]:
    """Return the calls in a file of what can run a text."""
    runs = ("eval", "exec", "compile", "__import__")
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in runs]


EVALUATING = {path: calls for path in SOURCES if (calls := evaluations(path))}


def test_no_module_of_fairseq_evaluates_python():
    assert len(EVALUATING) > 10
    for path, calls in EVALUATING.items():
        module = importlib.import_module(".".join(path.relative_to(FAIRSEQ.parent).with_suffix("").parts))
        assert {call.func.id for call in calls} == {"eval"} and module.eval is literal, module


def evaluated_options() -> set[str]:
    """Return the names of the options that fairseq evaluates by themselves: ``eval(args.NAME)``."""
    arguments = [call.args[0] for calls in EVALUATING.values() for call in calls]
    return {argument.attr for argument in arguments if isinstance(argument, ast.Attribute)}


def test_every_default_of_fairseq_is_evaluated_as_before():
    names = evaluated_options() | {"adaptive_softmax_cutoff", "adaptive_input_cutoff", "decoder_attention"}
    assert {"adam_betas", "encoder_layers", "conv_feature_layers", "pretrained"} <= names
    defaults = set()
    for preset in ARCH_CONFIG_REGISTRY.values():
        preset(args := Namespace(dropout=0.1, attention_dropout=0.1))  # which some take from the command line
        defaults |= {vars(args)[name] for name in names & vars(args).keys()}
    for registry in (MODEL_DATACLASS_REGISTRY, optim.OPTIMIZER_DATACLASS_REGISTRY):
        defaults |= {f.default for dataclass in registry.values() for f in fields(dataclass) if f.name in names}
    texts = sorted(default for default in defaults if isinstance(default, str) and not default.startswith("${"))
    assert len(texts) > 10 and "[(512, 3)] * 20" in texts
    assert [literal(text) for text in texts] == [eval(text) for text in texts]


# as fairseq's own documentation and examples give them
DOCUMENTED = [
    "(0.9, 0.98)", "(0.9,0.999)", "[0.9, 0.98]", "(1e-30, 1e-3)", "0.25", "5e-4", "1,2,4", "[4]", " 3 ", "10000,20000",
    "None", "True", "False", "-1", "+1.5", "'text'", "{'encoder': 1, 'b': [None, True]}", "{}", "()", "[]",
    "[(512, 3)] * 9 + [(1024, 3)] * 4 + [(2048, 1)] * 2", "[True] + [False]*5", "[(512, 10, 5)] + [(512,2,2)] * 2",
    "[3,7,15] + [31] * 4", '("lexicon.txt", "4gram.bin", 2.0, -1.0)', "{'drop_rate': 0.1,\n 'groups': (1, 2)}",
]  # fmt: skip


@pytest.mark.parametrize("text", DOCUMENTED)
def test_what_users_type_is_evaluated_as_before(text):
    assert literal(text) == eval(text)


SIMPLE = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SIMPLE, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(SIMPLE, inner), max_leaves=8
)


@given(VALUES)
def test_every_literal_is_evaluated_as_before(value):
    assert literal(repr(value)) == value


OPEN = "open('ran', 'w')"
CODE = [
    "__import__('os').system('touch ran')", OPEN, f"[{OPEN}]", f"{{'a': {OPEN}}}", f"{{{OPEN}: 1}}", f"{{**{OPEN}}}",
    f"[*{OPEN}]", f"[1] * {OPEN}.write('x')", f"[{OPEN}] * 2", f"[1] + [2] + list({OPEN})", f"(lambda: {OPEN})()",
    f"[{OPEN} for x in [1]]", f"f'{{{OPEN}}}'".replace("'ran'", '"ran"').replace("'w'", '"w"'), f"x := {OPEN}",
    f"(x := {OPEN})", f"1 if {OPEN} else 2", f"[1][{OPEN}]", f"not {OPEN}", f"1 == {OPEN}", f"-{OPEN}", "().__class__",
    "os", "copyright", "", "1 +", "import os", "a=1", "\0", "\udc80", "(" * 5000, "-" * 100_000 + "1",
    "+".join(["[1]"] * 50_000), f"[1] * {LONGEST + 1}", "[1] * 10**9", "[1] * 9999 * 9999", "'9' * 9999999",
    "9 ** 9 ** 9",
]  # fmt: skip
EVALUATE = [literal, utils.eval_str_list, utils.eval_str_dict, utils.eval_bool, eval_str_list]


@pytest.mark.parametrize("evaluate", EVALUATE)
def test_no_code_is_evaluated(tmp_path, monkeypatch, evaluate):
    monkeypatch.chdir(tmp_path)
    for text in CODE:
        if text or evaluate is not eval_str_list:  # which is an empty list for it
            with pytest.raises(ValueError, match="which is not evaluated, as it could be any code; give") as raised:
                evaluate(text)
            assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_what_is_no_text_is_treated_as_before():
    assert utils.eval_bool(None, default=True) is True and utils.eval_bool(True) is False  # fairseq's eval(True) fails
    assert utils.eval_bool(b"open('ran', 'w')") is False
    assert utils.eval_str_list(0.5) == [0.5] and utils.eval_str_list(None) is None and utils.eval_str_dict({}) == {}


def test_code_on_the_command_line_is_refused_by_the_name_of_its_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Namespace(optimizer="adam", adam_betas=OPEN, adam_eps=1e-8, weight_decay=0.0, lr=[0.1], use_old_adam=False)
    with pytest.raises(ValueError, match=r"^adam_betas is \"open\('ran', 'w'\)\", which is not evaluated"):
        optim.build_optimizer(cfg, [torch.nn.Parameter(torch.zeros(1))]).optimizer_config  # noqa: B018
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attacked")
    command = [sys.executable, "-W", "ignore", "-m", "tests.compat.hostile", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_no_option_of_a_checkpoint_is_run_or_imported_or_written_to(attacked):
    assert {name.partition(".")[0] for name in attacked["places"]} >= {
        "common", "common_eval", "dataset", "generation", "model", "task", "criterion", "optimizer", "lr_scheduler",
        "scoring", "bpe", "tokenizer", "optimization", "checkpoint", "distributed_training", "interactive", "ema",
    }  # fmt: skip
    assert len(attacked["places"]) > 100 and attacked["done"] == []


def test_code_in_a_checkpoint_is_refused_by_the_name_of_its_option(attacked):
    names = [f"model.{side}_xformers_att_config" for side in ("encoder", "decoder")] + ["model.adaptive_softmax_cutoff"]
    for name in names:
        code = f"open('ran-{name.replace('.', '-')}','w')"
        assert attacked["failed"][name].startswith(f'ValueError: {name} is "{code}", which is not evaluated')
    refused = [command for command, error in attacked["evaluated"].items() if error and "is not evaluated" in error]
    assert refused == ["hub", "fairseq-generate", "fairseq-interactive", "fairseq-validate"]  # others build no model
    assert "adaptive_softmax_cutoff is" in attacked["old"] and "is not evaluated" in attacked["old"]


def test_all_other_options_of_a_checkpoint_change_nothing(attacked):
    assert set(attacked["harmless"].values()) == {None} and attacked["unchanged, old"] is None
    assert len(attacked["places"]) - len(attacked["failed"]) > 75


def checkpoint(path: Path, **parts: object) -> Path:
    history = [{"optimizer_name": "A", "lr_scheduler_state": {}, "num_updates": 1}]
    state = {"model": {}, "optimizer_history": history, "extra_state": {"train_iterator": {"epoch": 1}}}
    torch.save(state | parts, path)
    return path


@pytest.mark.parametrize("kind", ["cfg", "args"])
def test_what_a_training_was_told_to_import_run_and_write_is_forgotten(tmp_path, kind):
    given = dict.fromkeys(NOT_OF_A_FILE, str(tmp_path / "victim"))
    nested = {"common": dict(given), "task": {"w2v_args": {"task": dict(given)}}, "model": Namespace(**given)}
    parts = {"cfg": nested} if kind == "cfg" else {"args": Namespace(**given, arch="transformer"), "cfg": None}
    file = str(checkpoint(tmp_path / "checkpoint.pt", **parts))
    assert "victim" not in str(checkpoint_utils.load_checkpoint_to_cpu(file))
    # what is asked for today holds
    assert "mine" in str(checkpoint_utils.load_checkpoint_to_cpu(file, {"save_predictions": "mine"}))


def test_criterion_of_a_checkpoint_overwrites_no_file(tmp_path):
    (victim := tmp_path / "victim").write_text("kept")
    group = {"_name": "sentence_ranking", "ranking_head_name": "x", "num_classes": 1, "save_predictions": str(victim)}
    file = checkpoint(tmp_path / "checkpoint.pt", cfg={"criterion": group})
    loaded = checkpoint_utils.load_checkpoint_to_cpu(str(file))["cfg"].criterion
    build_criterion(loaded, task=None)
    assert victim.read_text() == "kept"


def test_name_of_a_fasta_file_is_one_word_of_the_shell(tmp_path):
    prefix = str(tmp_path / "a b; touch ran; $(touch ran) '")
    Path(f"{prefix}.fasta").write_text(">one\nAB\nC\n>two\nDEFG\n")
    data = FastaDataset(prefix)
    assert [data[number] for number in range(len(data))] == [(">one", "ABC"), (">two", "DEFG")]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".fasta"]


def archive(path: Path, *names: str) -> str:
    with tarfile.open(path, "w:gz") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            file.addfile(member, io.BytesIO(b"text"))
    return str(path)


def test_archives_are_unpacked_into_their_folder(tmp_path):
    folder = file_utils.load_archive_file(archive(tmp_path / "good.tar.gz", "model/a", "model/b/c"))
    assert sorted(path.name for path in Path(folder).iterdir()) == ["a", "b"]


@pytest.mark.parametrize("name", ["../victim", "model/../../victim", "{}/victim"])
def test_archives_are_unpacked_nowhere_else(tmp_path, monkeypatch, name):
    (victim := tmp_path / "victim").write_text("kept")
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(file_utils.tempfile, "mkdtemp", lambda: str(temporary))
    with pytest.raises(tarfile.FilterError):
        hub_utils.from_pretrained(archive(tmp_path / "bad.tar.gz", name.format(tmp_path)))
    assert victim.read_text() == "kept"
