import argparse
import pickle

import numpy as np
import pytest
import torch

import moec_fairseq.compat  # noqa: F401  (importing it applies the patches)


class Evil:
    """Runs code when it is unpickled the unsafe way."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_safe_loader_reads_the_namespace_of_a_fairseq_checkpoint(tmp_path):
    torch.save({"args": argparse.Namespace(arch="x")}, tmp_path / "checkpoint.pt")
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["args"].arch == "x"


def test_safe_loader_reads_the_arrays_that_eval_bleu_leaves(tmp_path):
    saved = {"counts": np.array([3, 2, 1]), "bleu": np.float64(1.5), "share": np.array(0.25, dtype=np.float32)}
    torch.save(saved, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert loaded["counts"].tolist() == [3, 2, 1] and loaded["bleu"] == 1.5 and loaded["share"] == 0.25


def test_safe_loader_still_refuses_code(tmp_path):
    torch.save({"args": Evil(str(tmp_path / "ran"))}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("flags", [(), ("--encoder-layers", "6", "--encoder-layerdrop", "0.9")], ids=str)
def test_no_encoder_layer_takes_a_fused_path(build, flags):
    encoder = build("--encoder-moe-layers", "1", *flags).model.encoder
    assert not any(layer.can_use_fastpath for layer in encoder.layers.children())
