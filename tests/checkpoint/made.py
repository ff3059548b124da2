"""Small checkpoints made by hand, whose split over ranks is written down independently of the tools."""

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

EMBED = "encoder.embed_tokens.weight"
TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
W1 = "encoder.layers.0.moe.experts.sublayers.0.w1_NFD"
B1 = "encoder.layers.0.moe.experts.sublayers.0.b1_NF"
DECODER_W1 = "decoder.layers.1.fc1.moe.experts.sublayers.0.w1_NFD"
EXPERTS = (W1, B1, DECODER_W1)
# their numbers among the 7 parameters
EXPERT_INDICES = (3, 4, 6)


def numbered(*shape: int, start: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (start + torch.arange(float(torch.Size(shape).numel()))).reshape(shape).to(dtype)


def whole(n: int = 4, updates: int = 100, start: float = 0.0, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A checkpoint of one process with n experts; every value can be told from every other."""

    def tensor(*shape: int, number: int) -> Tensor:
        return numbered(*shape, start=start + 100 * number, dtype=dtype)

    embedding = tensor(5, 3, number=0)
    model = {
        "encoder.version": torch.tensor([3.0]),
        EMBED: embedding,
        "encoder.embed_positions._float_tensor": torch.zeros(1),
        "encoder.layers.0.fc1.weight": tensor(3, 3, number=1),
        "encoder.layers.0.moe.router.expert_embeddings_NK": tensor(n, 2, number=2),
        W1: tensor(n, 2, 3, number=3),
        B1: tensor(n, 2, number=4),
        "encoder.layers.0.final_layer_norm.weight": tensor(3, number=5),
        "decoder.version": torch.tensor([3.0]),
        TIED[0]: embedding,
        DECODER_W1: tensor(n, 2, 3, number=6),
        TIED[1]: embedding,
        "decoder.steps": torch.tensor([updates]),
    }
    names = [EMBED, *(name for name in model if "weight" in name and name not in (EMBED, *TIED))]
    order = [EMBED, names[1], "encoder.layers.0.moe.router.expert_embeddings_NK", W1, B1, names[2], DECODER_W1]
    adam = {
        index: {"step": updates, "exp_avg": model[name].float() + 0.25, "exp_avg_sq": model[name].float() + 0.5}
        for index, name in enumerate(order)
    }
    return {
        "args": None,
        "cfg": {
            "model": Namespace(moe_expert_count=n, arch="x"),
            "distributed_training": {"distributed_world_size": 1, "distributed_rank": 0},
            "checkpoint": {"checkpoint_suffix": ""},
            "criterion": {"moe_gate_loss_wt": 0.01},
            "optimization": {"lr": [0.1]},
        },
        "criterion": None,
        "model": model,
        "optimizer_history": [{"num_updates": updates}],
        "task_state": {},
        "extra_state": {
            "train_iterator": {"epoch": 3},
            "run": "a",
            "ema": {name: value + 7 for name, value in model.items()},
            "previous_training_time": torch.tensor(1.5),
        },
        "last_optimizer_state": {"state": adam, "param_groups": [{"lr": 0.1, "params": list(range(len(order)))}]},
    }


def owned(n: int, world_size: int, rank: int) -> slice:
    """The experts of a rank."""
    if world_size > n:
        return slice(rank % n, rank % n + 1)
    return slice(rank * (n // world_size), (rank + 1) * (n // world_size))


def split(state: dict[str, Any], world_size: int) -> list[dict[str, Any]]:
    """The checkpoints of the ranks, from that of one process."""
    shards = []
    for rank in range(world_size):
        shard = copy.deepcopy(state)
        mine = owned(vars(state["cfg"]["model"])["moe_expert_count"], world_size, rank)
        for tensors in (shard["model"], shard["extra_state"]["ema"]):
            tensors.update({name: tensors[name][mine].clone() for name in EXPERTS})
        for index in EXPERT_INDICES if "last_optimizer_state" in shard else ():
            adam = shard["last_optimizer_state"]["state"][index]
            adam.update({key: adam[key][mine].clone() for key in ("exp_avg", "exp_avg_sq")})
        shard["cfg"]["distributed_training"].update(distributed_world_size=world_size, distributed_rank=rank)
        shard["cfg"]["checkpoint"]["checkpoint_suffix"] = f"-rank-{rank}"
        shards.append(shard)
    return shards


def save(folder: Path, name: str, state: dict[str, Any], world_size: int = 1) -> Path:
    """Write the files of a training on that many processes; return NAME.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    if world_size == 1:
        torch.save(state, folder / f"{name}.pt")
    else:
        for rank, shard in enumerate(split(state, world_size)):
            torch.save(shard, folder / f"{name}-rank-{rank}.pt")
    return folder / f"{name}.pt"


def load(path: Path) -> dict[str, Any]:
    import moec_fairseq  # noqa: F401  lets torch read a Namespace

    return torch.load(path, weights_only=True)


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """All tensors have the same bits, dtype and name; the configuration of ranks may differ."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key in expected:
            if (place, key) != ("", "cfg"):
                assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected), place
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{place}/{number}")
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected), place
    else:
        assert found == expected, place


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
