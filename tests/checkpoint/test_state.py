import io
import pickle
import re
import sys
import warnings
from argparse import Namespace

import pytest
import torch
from fairseq import checkpoint_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moec_fairseq.__main__ import main
from moec_fairseq.checkpoint.state import load_if_readable, load_state
from moec_fairseq.checkpoint.tools import merge, reshard
from moec_fairseq.compat import versions
from tests.checkpoint.made import assert_same, load, save, whole


def from_fairseq(path):
    return checkpoint_utils.load_checkpoint_to_cpu(str(path))


class Calls:
    """Calls a function when it is unpickled the unsafe way."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def written(how, state):
    file = io.BytesIO()
    match how:
        case "zip":
            torch.save(state, file)
        case "zip, protocol 4":
            torch.save(state, file, pickle_protocol=4)
        case "before torch 1.6":
            torch.save(state, file, _use_new_zipfile_serialization=False)
        case "before torch 1.6, protocol 4":
            torch.save(state, file, pickle_protocol=4, _use_new_zipfile_serialization=False)
        case _:
            pickle.dump(state, file, protocol=how)
    return file.getvalue()


HOW = ["zip", "zip, protocol 4", "before torch 1.6", "before torch 1.6, protocol 4", 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("load", [load_state, from_fairseq])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["io.open", "eval"])
def test_code_is_named_in_one_sentence(tmp_path, monkeypatch, load, how, name):
    monkeypatch.chdir(tmp_path)
    code = Calls(open, "ran", "w") if name == "io.open" else Calls(eval, "open('ran', 'w')")
    others = {} if isinstance(how, int) else whole()  # pickle alone takes code for tensors
    (tmp_path / "x.pt").write_bytes(written(how, {**others, "extra_state": {"io": "open", "eval": code}}))
    refusal = rf"^\S*x\.pt contains code \(its pickle names '(\w+\.)?{name}'\) and was not loaded"
    with pytest.raises(ValueError, match=refusal) as raised:
        load(tmp_path / "x.pt")
    message = str(raised.value)
    assert message.endswith("use one from someone you trust.") and "\n" not in message and "only" not in message
    assert raised.value.__suppress_context__  # torch's advice to load it all the same is not shown above it
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_function_of_torch_is_code(tmp_path):
    torch.save({"model": Calls(torch.load, "other.pt")}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"its pickle names 'torch\.serialization\.load'"):
        load_state(tmp_path / "x.pt")


@pytest.mark.parametrize("load", [load_state, from_fairseq])
def test_a_torchscript_program_is_code(tmp_path, load):
    class Program(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Program()).save(str(tmp_path / "x.pt"))
        with pytest.raises(ValueError, match=r"x\.pt contains code \(a TorchScript program\)"):
            load(tmp_path / "x.pt")


@pytest.mark.parametrize("load", [load_state, from_fairseq])
@pytest.mark.parametrize(
    "text", ["", "hello\n", "common:\n  fp16: true\n", "checkpoint\nmodel\n", "{}", "(", "import os\n"]
)
def test_a_text_is_no_checkpoint(tmp_path, load, text):
    (tmp_path / "x.pt").write_text(text)
    with pytest.raises(
        ValueError, match=r"x\.pt is truncated, corrupt or not a checkpoint \(.*\); copy it again"
    ) as raised:
        load(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", ["zip", "before torch 1.6"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_cut_off_is_truncated(tmp_path, how, data):
    content = written(how, {"model": {"a": torch.ones(3)}, "cfg": {}})
    (tmp_path / "x.pt").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(ValueError, match="truncated, corrupt or not a checkpoint"):
        load_state(tmp_path / "x.pt")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=60))
def test_any_other_bytes_end_in_a_sentence(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError) as raised:
        load_state(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)


def test_files_from_before_torch_1_6_are_read(tmp_path):
    (tmp_path / "x.pt").write_bytes(written("before torch 1.6", whole()))
    read, state = load_state(tmp_path / "x.pt")["model"], whole()["model"]
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_from_before_fairseq_0_10_2_are_read(tmp_path, zipped):
    """They have all settings in one group."""
    state = whole()
    groups = state.pop("cfg")
    settings = [vars(group) if isinstance(group, Namespace) else group for group in groups.values()]
    state["args"] = Namespace(**{name: value for group in settings for name, value in group.items()})
    torch.save(state, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    reshard(tmp_path / "x.pt", 2, str(tmp_path / "y"))
    merge(tmp_path / "y.pt", tmp_path / "z.pt")
    assert_same(load(tmp_path / "z.pt")["model"], whole()["model"])
    assert load(tmp_path / "y-rank-1.pt")["args"].checkpoint_suffix == "-rank-1"


@pytest.mark.parametrize("load", [load_state, from_fairseq])
@pytest.mark.parametrize("how", ["zip, protocol 4", "before torch 1.6, protocol 4", 5])
def test_what_cannot_be_loaded_safely_is_told_from_damage(tmp_path, load, how):
    (tmp_path / "x.pt").write_bytes(written(how, {"model": {}, "cfg": {}} if how == 5 else whole()))
    if not versions.HAS_SAFE_GLOBALS:
        pytest.skip("this torch loads as fairseq does")
    protocol = how if how == 5 else 4
    with pytest.raises(ValueError, match=f"its pickle has protocol {protocol}, of which torch loads none above 2"):
        load(tmp_path / "x.pt")


def test_whoever_only_looks_is_told_nothing_of_code(tmp_path):
    torch.save({**whole(), "extra_state": Calls(open, str(tmp_path / "ran"), "w")}, tmp_path / "x.pt")
    assert load_if_readable(tmp_path / "x.pt") is None and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["source_lang", "target_lang", "data"])
@pytest.mark.parametrize("value", ["--user-dir=evil", "--user-dir", "../../evil", "/evil"])
@pytest.mark.parametrize("group", [dict, Namespace])
def test_names_that_lead_elsewhere(tmp_path, name, value, group):
    state = whole()
    state["cfg"]["task"] = group(
        **{"source_lang": "pt-BR", "target_lang": "zh_CN", "data": "/a:b/c", "beam": -1} | {name: value}
    )
    torch.save(state, tmp_path / "x.pt")
    if name == "data" and not value.startswith("-"):
        load_state(tmp_path / "x.pt")  # data are anywhere
    else:
        with pytest.raises(
            ValueError, match=rf"x\.pt has task\.{name}='{re.escape(value)}', which a command could mistake"
        ):
            load_state(tmp_path / "x.pt")


@pytest.mark.parametrize("command", [("info",), ("merge", "--out", "new"), ("reshard", "--ranks", "4", "--out", "new")])
def test_code_in_one_rank_ends_every_tool(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    save(tmp_path, "x", whole(), 2)
    torch.save({**whole(), "extra_state": Calls(open, "ran", "w")}, "x-rank-1.pt")
    monkeypatch.setattr(sys, "argv", ["moec", "checkpoint", command[0], "x.pt", *command[1:]])
    assert main() == 1
    errors = capsys.readouterr().err
    assert (
        errors.startswith("error: x-rank-1.pt contains code (its pickle names 'io.open')") and errors.count("\n") == 1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-rank-0.pt", "x-rank-1.pt"]


def test_files_that_are_missing_or_truncated_hold_nothing(tmp_path):
    truncated = tmp_path / "truncated.pt"
    truncated.write_bytes(b"PK\x03\x04 and then the disk was full")
    assert load_if_readable(truncated) is load_if_readable(tmp_path / "missing.pt") is None


def test_torch_that_cannot_map_files(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "HAS_MMAP", False)
    merge(save(tmp_path, "a", whole(), 2), tmp_path / "merged.pt")
    assert_same(load(tmp_path / "merged.pt"), whole())
