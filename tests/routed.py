"""A small translation model whose routers are set by hand."""

from pathlib import Path

import torch

from moec_fairseq.checkpoint.state import load_state
from tests.whole_trainings import train

ENCODER, DECODER = "encoder.layers.0.moe", "decoder.layers.0.moe"
ROUTER = "{}.router.expert_embeddings_NK"
EXPERT = "{}.experts.sublayers.0."


def write_model(folder: Path, corpus: Path) -> Path:
    """Encoder: every token goes to expert 0; decoder: to 0 or 3, by the sign of a score. No expert is the identity."""
    flags = ("--max-tokens", 200, "--moe-expert-count", 4, "--moec-expert-dropout", 0, "--disable-validation")
    train(corpus, folder, *flags, max_update=1)
    state = load_state(folder / "checkpoint_last.pt")
    torch.manual_seed(1)
    for name, value in state["model"].items():
        if ".experts." in name:
            value += 0.3 * torch.randn(value.shape)
    encoder, decoder = (state["model"][ROUTER.format(layer)] for layer in (ENCODER, DECODER))
    encoder[:] = 1  # of equal scores, the first
    decoder[0], decoder[3] = 1, -1
    decoder[1:3] = 0
    torch.save(state, folder / "set.pt")
    return folder / "set.pt"
