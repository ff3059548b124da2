"""Checkpoints of version 0.2.0, whose routers had other names for their parameters, still do all they did.

``version_0.2.0.tar.xz`` was written by that version: the data; a training of 3 updates by one process (``one``) and by
two (``two``), with moving averages; and in ``expected.pt`` the logits of ``one`` and, after 3 more updates, all
parameters and averages of ``one`` and of ``two`` merged.
"""

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils
from torch import Tensor

from moec_fairseq.checkpoint.state import BUFFER, load_state
from moec_fairseq.checkpoint.tools import average, merge
from moec_fairseq.compat.versions import FUSED_WEIGHTS
from moec_fairseq.moe.router import rename_old_parameters
from tests.conftest import USER_DIR, Command

OLD = Path(__file__).with_name("version_0.2.0.tar.xz")
FLAGS = (
    "bin", "-s", "src", "-t", "tgt", "--user-dir", USER_DIR, "--cpu", "--arch", "moec_transformer_tiny",
    "--share-all-embeddings", "--encoder-embed-dim", 4, "--encoder-ffn-embed-dim", 4, "--moec-router-dim", 2,
    "--moe-expert-count", 2, "--moec-cluster-count", 1, "--moec-expert-dropout", 0, "--encoder-layers", 1,
    "--decoder-layers", 1, "--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", 0.1,
    "--optimizer", "adam", "--adam-betas", "(0.9,0.98)", "--lr", 0.003, "--clip-norm", 1, "--dropout", 0,
    "--max-tokens", 60, "--num-workers", 0, "--seed", 1, "--store-ema", "--ema-decay", 0.9, "--ema-fp32",
    "--no-epoch-checkpoints", "--disable-validation", "--max-source-positions", 16, "--max-target-positions", 16,
    "--max-update", 6,
)  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(old: Path) -> dict[str, Any]:
    return raw(old / "expected.pt")


def raw(path: Path) -> dict[str, Any]:
    """Return what a file holds, with the names that it has there."""
    return torch.load(path, weights_only=hasattr(torch.serialization, "add_safe_globals"))


def flat(tensors: dict[str, Tensor]) -> Tensor:
    """Return all parameters; fairseq 0.12.2 has others, too, which are not trained."""
    names = [name for name in tensors if not BUFFER.fullmatch(name) and name.split(".")[-1] not in FUSED_WEIGHTS]
    return torch.cat([tensors[name].flatten().float() for name in names])


def names_of_routers(tensors: dict[str, Tensor]) -> list[str]:
    return [name.partition(".router.")[2] for name in tensors if ".encoder." in f".{name}" and ".router." in name]


NEW_NAMES = ["expert_embeddings_NK", "temperature", "query_proj.weight"]


def test_outputs_are_the_same(old, expected, monkeypatch):
    monkeypatch.chdir(old)
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(["one/checkpoint_last.pt"])
    sources, targets = torch.tensor([[4, 5, 4, 2], [1, 5, 5, 2]]), torch.tensor([[2, 4, 5, 4], [2, 5, 5, 1]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(sources, torch.tensor([4, 3]), targets)[0], expected["logits"])


def test_a_bare_state_dict_is_upgraded(old, monkeypatch):
    monkeypatch.chdir(old)
    state = raw(Path("one/checkpoint_last.pt"))["model"]
    assert names_of_routers(state) == ["experts_NK", "temperature", "reduction.weight"]
    (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task(["one/checkpoint_last.pt"])
    for parameter in model.parameters():
        parameter.data.zero_()
    model.load_state_dict(state)
    torch.testing.assert_close(flat(model.state_dict()), flat(state), rtol=0, atol=0)


@pytest.mark.parametrize("ranks", ["one", "two"])
def test_training_resumes_after_merging(old, expected, fairseq: Command, ranks, tmp_path):
    last = tmp_path / "checkpoint_last.pt"
    merge(old / ranks / "checkpoint_last.pt", last)
    assert names_of_routers(load_state(last)["model"]) == NEW_NAMES
    average([old / ranks / "checkpoint_last.pt", last], tmp_path / "mean.pt")  # of old and new names
    if ranks == "one":  # as it was
        last.write_bytes((old / "one" / "checkpoint_last.pt").read_bytes())
    done = fairseq("train", *FLAGS, "--save-dir", tmp_path, cwd=old)
    assert "Loaded checkpoint" in done.stderr + done.stdout
    state = raw(last)
    averages = state["extra_state"]["ema_fp32_params"]
    for found, wanted in ((state["model"], "model"), (averages, "ema")):
        assert names_of_routers(found) == NEW_NAMES
        # Attention does not depend on the bias of its keys. The gradient of that is but rounding, which differs from
        # processor to processor, and of which Adam makes steps.
        is_bias = flat({name: torch.full_like(of, name.endswith("k_proj.bias")) for name, of in found.items()}).bool()
        ours, theirs = flat(found), expected[ranks][wanted]
        torch.testing.assert_close(ours[~is_bias], theirs[~is_bias], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours[is_bias], theirs[is_bias], rtol=0, atol=5e-4)
    (name,) = [n for n in averages if n.startswith("encoder") and n.endswith("expert_embeddings_NK")]
    assert not torch.equal(averages[name], state["model"][name])


def test_renaming_keeps_the_order_and_other_names():
    state = {
        "experts_NK": 1, "a.router.experts_NK": 2, "router.reduction.weight": 3, "b.router.temperature": 4,
        "c.query_router.experts_NK": 5,
    }  # fmt: skip
    rename_old_parameters(state)
    assert list(state.items()) == [
        ("experts_NK", 1), ("a.router.expert_embeddings_NK", 2), ("router.query_proj.weight", 3),
        ("b.router.temperature", 4), ("c.query_router.experts_NK", 5),
    ]  # fmt: skip
