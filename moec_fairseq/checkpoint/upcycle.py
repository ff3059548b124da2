"""The command ``moec checkpoint upcycle``: a trained dense model becomes one with experts, which computes the same.

A block adds α·(E(h) − h) to a token, and E(h) − h is what an expert's blocks add. So:

- ``inserted``: E(h) = h, because W2 = 0, whatever α is.
- ``replaced``: an expert is the feed-forward block that it replaces, with W2 and b2 divided by α. That is possible
  where α is the same for all tokens: a dot product with embeddings of length 10⁻⁶ makes every score 0 up to 10⁻⁵, hence
  α = ½. Scores still differ, so tokens are spread over the experts, and the gradient of embeddings is not small.
- A dense model of this project has one expert per block, and α depends on the token. All new experts are that one, with
  embeddings that differ by 10⁻⁶ of their length, so that α is the same.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moec_fairseq.checkpoint import state as contents
from moec_fairseq.checkpoint.names import listed, whole_path
from moec_fairseq.checkpoint.sharded import assemble, open_checkpoint
from moec_fairseq.checkpoint.state import EMBEDDINGS, MARK, OPTIMIZER, State, group, parameters
from moec_fairseq.checkpoint.tools import write_ranks
from moec_fairseq.launch.configuration import as_typed
from moec_fairseq.models.without_data import build_with_experts
from moec_fairseq.moe.clusters import ExpertClusters

TEMPERATURE = ".router.temperature"  # the end of the name of a parameter
REPLACED = ".fc1.moe"  # the end of the name of a block in the place of a feed-forward block
# parameters of an expert's first block -> those of fairseq's layer
COPIED = {"w1_NFD": "fc1.weight", "b1_NF": "fc1.bias", "w2_NDF": "fc2.weight", "b2_ND": "fc2.bias"}
GATE = 0.5  # α of a score of 0
EMBEDDING_SCALE = 1e-5  # of new embeddings, whose length is 0.1
SPREAD = 1e-6  # of embeddings that are copies, relative to their length
NOISE_INSIDE = 0.1  # noise of the experts of a cluster, relative to that of clusters
# what a training that takes the optimizer's state asks for: the name of its criterion
CRITERIONS = {"moec_transformer": "MoECLabelSmoothedCrossEntropyCriterion", "moec_roberta": "MoECMaskedLmCriterion"}


@dataclass(frozen=True)
class Blocks:
    """Which blocks a model without experts gets.

    Attributes:
        layout: ``replaced`` or ``inserted``.
        encoder_moe_layers: numbers of layers from 1, with commas, or none; None: the middle layer.
        decoder_moe_layers: likewise.
        sublayers: blocks in an expert; None: 1 for ``replaced``, or as many as the model has by default.
    """

    layout: str | None = None
    encoder_moe_layers: str | None = None
    decoder_moe_layers: str | None = None
    sublayers: int | None = None

    def options(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of the model; ``before``: those of the model without experts."""
        options: dict[str, Any] = {
            "moec_layout": self.layout or "replaced",
            "encoder_moe_layers": self.encoder_moe_layers,
            "decoder_moe_layers": self.decoder_moe_layers,
            "moe_freq": 0,
        }
        if self.sublayers is not None:
            options["moec_sublayers"] = self.sublayers
        if options["moec_layout"] == "replaced":
            dropped = before.get("activation_dropout") or before.get("relu_dropout") or 0.0
            options |= {
                "moec_sublayers": self.sublayers or 1,
                "moec_router": "dot",
                "moec_expert_norm": "none",
                "moec_expert_ffn_embed_dim": 0,
                "moec_activation_dropout": dropped,
            }
        return options


def upcycle(
    dense: Path,
    experts: int,
    clusters: int,
    out: Path,
    layout: str | None,
    encoder_moe_layers: str | None,
    decoder_moe_layers: str | None,
    sublayers: int | None,
    noise: float,
    optimizer: bool,
) -> None:
    """Write a model with experts that computes what a dense one does; the arguments are the options of the command.

    Args:
        dense: NAME.pt, NAME or NAME-rank-R.pt of a Transformer or RoBERTa of fairseq, or of ours with no or one expert.
        experts: N of each block.
        clusters: C.
        out: the new NAME.pt.
        layout: see ``Blocks``.
        encoder_moe_layers: likewise.
        decoder_moe_layers: likewise.
        sublayers: likewise.
        noise: of copied blocks, relative to the root of the mean square of each parameter: clusters differ by this, the
            experts of a cluster by a tenth of it; 0: all are equal.
        optimizer: copy the optimizer's state.

    Raises:
        ValueError: something is wrong with what was given.
    """
    blocks = Blocks(layout, encoder_moe_layers, decoder_moe_layers, sublayers)
    if not 0 <= noise < math.inf:
        raise ValueError(f"--noise is {noise}, but must be 0 or more, such as 0.01")
    ExpertClusters(experts, clusters)
    try:
        source = open_checkpoint(dense, optimizer)
    except ValueError as error:
        raise ValueError(str(error).replace("leave it out with --no-optimizer", "leave out --optimizer")) from error
    if source.num_experts > 1:
        raise ValueError(f"{source.path} has {source.num_experts} experts already; give a model with none or one")
    if source.num_experts == 1 and blocks != Blocks():
        raise ValueError(
            f"{source.path} has blocks of one expert, which get more experts where they are; leave out --layout, "
            "--encoder-moe-layers, --decoder-moe-layers and --sublayers"
        )
    if optimizer and not source.load(0).get(OPTIMIZER):
        raise ValueError(f"{source.path} has no optimizer's state; leave out --optimizer")
    upcycled: list[Upcycled] = []

    def content(_: range) -> State:
        before = assemble(source, range(source.num_experts))
        upcycled.append(_upcycled(source.path, before, blocks, ExpertClusters(experts, clusters), noise))
        return upcycled[0].state

    files = write_ranks(source, whole_path(out), 1, content)
    print(f"{source.path} -> {listed(files)}: {experts} experts in {clusters} clusters, in each of")
    print("".join(f"  {name}\n" for name in upcycled[0].blocks), end="")
    print(f"train it further with the options of its training, and these:\n{_advice(files[0], upcycled[0])}")


@dataclass(frozen=True)
class Upcycled:
    """A checkpoint with experts.

    Attributes:
        state: its content.
        blocks: names of its MoE blocks.
        options: those that differ from the dense model's.
    """

    state: State
    blocks: list[str]
    options: dict[str, Any]


def _upcycled(path: Path, state: State, blocks: Blocks, clusters: ExpertClusters, noise: float) -> Upcycled:
    had_expert = contents.num_experts(state) == 1
    changes: dict[str, Any] = {
        "moe_expert_count": clusters.num_experts,
        "moec_cluster_count": clusters.num_clusters,
        **({} if had_expert else blocks.options(group(state, "model"))),
    }
    of_optimizer = {name: state[OPTIMIZER]["state"].get(index, {}) for index, (name, _) in
                    contents.optimizer_parameters(state).items()}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(group(state, "common").get("seed") or 1))
        model, options = build_with_experts(path, state, changes)
        before = dict(state["model"])
        names = model.add_new_blocks(state)
        if not names:
            raise ValueError(f"{path} would get no block: none of its layers was chosen; give --encoder-moe-layers")
        if noise and not had_expert and options["moec_layout"] == "inserted":
            raise ValueError("--noise is for copied blocks, but inserted ones begin as the identity; leave it out")
        origins = {name: origin for block in names for name, origin in _origins(block, before).items()}
        expected = model.state_dict()  # type: ignore[attr-defined]
        copied = set(origins.values())
        wrong = (expected.keys() ^ state["model"].keys()) - copied | (copied - before.keys())
        if wrong := {name for name in wrong if not contents.BUFFER.fullmatch(name)}:
            raise ValueError(f"{path} has other parameters than its options say: {', '.join(sorted(wrong))}")
        for block in names:
            _fill(state["model"], block, before, clusters, noise)
    # in the order of the model's, by which optimizers know parameters
    state["model"] = {name: state["model"].get(name, value) for name, value in expected.items()}
    for name, value in expected.items():
        if value.shape != (found := state["model"][name].shape):
            raise ValueError(f"{path}: {name} has the shape {tuple(found)}, but its options say {tuple(value.shape)}")
    if isinstance(state.get("cfg"), dict):
        state["cfg"]["model"] = options
    else:
        group(state, "model").update(options)
    contents.leave_out_averages(state)
    if OPTIMIZER in state:
        _copy_optimizer(state, of_optimizer, origins)
        state["optimizer_history"][-1]["criterion_name"] = CRITERIONS[options.get("_name") or options["arch"]]
    return Upcycled(state, names, changes)


def _origins(block: str, before: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the parameters of a block's experts that are copies, each with the name of what it is a copy of."""
    if existed := {name: name for name in before if name.startswith(f"{block}.")}:
        return existed
    if not block.endswith(REPLACED):
        return {}
    layer = block.removesuffix(REPLACED)
    return {f"{block}{MARK}0.{own}": f"{layer}.{of_layer}" for own, of_layer in COPIED.items()}


def _fill(
    model: dict[str, Tensor], block: str, before: Mapping[str, Tensor], clusters: ExpertClusters, noise: float
) -> None:
    """Give a new block its values, in place of those that were drawn for it."""
    origins = _origins(block, before)
    for name, origin in origins.items():
        value = before[origin]
        if MARK in name:
            one = value[0] if origin == name else value
            copies_N = one.float().expand(clusters.num_experts, *one.shape)
            model[name] = _apart(copies_N, clusters, noise).to(value.dtype)
        elif name.endswith(EMBEDDINGS):
            (embedding_K,) = value.float()
            spread_NK = torch.randn(model[name].shape) / math.sqrt(len(embedding_K))
            model[name] = embedding_K + SPREAD * embedding_K.norm() * spread_NK
        else:
            model[name] = value
    if origins.keys() - origins.values():  # a feed-forward block was replaced
        for name in (f"{block}{MARK}0.{last}" for last in ("w2_NDF", "b2_ND")):
            model[name] = model[name] / GATE
        model[f"{block}{EMBEDDINGS}"] *= EMBEDDING_SCALE
        model[f"{block}{TEMPERATURE}"] = torch.ones_like(model[f"{block}{TEMPERATURE}"])


def _apart(copies_N: Tensor, clusters: ExpertClusters, noise: float) -> Tensor:
    """Return copies of a parameter, (N, …), with noise: see ``upcycle``."""
    if not noise:
        return copies_N.contiguous()
    of_clusters = torch.randn(clusters.num_clusters, *copies_N.shape[1:]).repeat_interleave(clusters.cluster_size, 0)
    drawn_N = of_clusters + NOISE_INSIDE * torch.randn(copies_N.shape)
    return copies_N + noise * copies_N[0].square().mean().sqrt() * drawn_N


def _copy_optimizer(state: State, before: Mapping[str, dict[str, Any]], origins: Mapping[str, str]) -> None:
    """Give each parameter what the optimizer has kept of its origin, and new ones zeros, in place."""
    named = {**parameters(state["model"]), **parameters(state.get("criterion") or {})}
    some = next((kept for kept in before.values() if kept), {})
    kept_of = {}
    for index, (name, parameter) in enumerate(named.items()):
        kept = before.get(origins.get(name, name))
        kept_of[index] = {
            key: (value if kept else torch.zeros(())).expand(parameter.shape).clone()
            if isinstance(value, Tensor) and value.dim() > 0
            else value
            for key, value in (kept or some).items()
        }
    state[OPTIMIZER]["state"] = kept_of
    state[OPTIMIZER]["param_groups"][0]["params"] = list(kept_of)


def _advice(file: Path, upcycled: Upcycled) -> str:
    """Return what to add to the commands that train further."""
    start = "restore_file" if upcycled.state.get(OPTIMIZER) else "finetune_from_model"
    given = {name: value for name, value in upcycled.options.items() if value not in (None, 0)}
    ours = {f"checkpoint.{start}": file, **{f"model.{name}": value for name, value in given.items()}}
    options = {start: file, **given}
    fairseqs = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return f"  moec train:     {as_typed(ours)}\n  fairseq-train:  {shlex.join(fairseqs)}"
