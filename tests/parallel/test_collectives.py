"""How many messages an update takes; docs/distributed.md has the same numbers."""

import re
from collections import Counter
from pathlib import Path

import pytest

from .ranks import on_ranks
from .training import EXACT, batch, build, corpus

NAMES = (
    "all_gather", "all_gather_into_tensor", "all_reduce", "all_to_all", "all_to_all_single", "barrier", "broadcast",
    "gather", "reduce", "reduce_scatter", "scatter", "send", "recv", "all_gather_object", "broadcast_object_list",
)  # fmt: skip
CAPACITY = ("--moec-dispatch", "capacity")
SHUFFLE = ("--moec-token-shuffle",)
REPLICATED = ("--moe-expert-count", "2", "--moec-cluster-count", "1")
# ranks, options; collectives of an update with one micro-batch, and of each further one
COUNTS = [
    (2, EXACT, 15, 11),
    (4, EXACT, 15, 11),
    (4, REPLICATED, 16, 11),
    (2, (*EXACT, *CAPACITY), 15, 11),
    (4, (*EXACT, *CAPACITY), 15, 11),
    (4, (*REPLICATED, *CAPACITY), 16, 11),
    (2, (*EXACT, *SHUFFLE), 25, 21),
]


def count(rank, world_size, folder, flags):
    """Return the collectives of an update with one micro-batch, and of one with three."""
    import torch.distributed as dist

    task, trainer = build(folder, world_size, rank, *flags)
    sample, found = batch(task, corpus(task, rank, 4)), Counter()
    trainer.train_step([sample])  # builds the wrapper and the optimizer

    def counted(name, function):
        def call(*args, **kwargs):
            found[name] += 1
            return function(*args, **kwargs)

        return call

    before = {name: getattr(dist, name) for name in NAMES}
    counts = []
    try:
        for name, function in before.items():
            setattr(dist, name, counted(name, function))
        for micro_batches in (1, 3):
            found.clear()
            trainer.train_step([sample] * micro_batches)
            counts.append(dict(found))
    finally:
        for name, function in before.items():
            setattr(dist, name, function)
    return counts


@pytest.mark.parametrize("world_size, flags, first, further", COUNTS)
def test_messages_of_an_update(dictionaries, world_size, flags, first, further):
    for one, three in on_ranks(world_size, count, dictionaries, flags):
        assert set(one) <= {"all_reduce", "all_to_all_single", "all_gather"}
        assert (sum(one.values()), sum(three.values())) == (first, first + 2 * further), (one, three)


def test_the_documentation_has_these_numbers():
    page = (Path(__file__).parents[2] / "docs/distributed.md").read_text(encoding="utf-8")
    table = page.partition("## Messages of an update")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    assert {tuple(map(int, row)) for row in rows} == {(first, further) for *_, first, further in COUNTS}
