"""The gpu suite: what of it needs no GPU."""

import json
import os
import time
import warnings

import pytest
import torch

from moec_fairseq.bench import gpu, gpu_checks
from moec_fairseq.bench.contenders import Shape, computed_by, moec_layer
from moec_fairseq.bench.gpu import Part, layers, run
from moec_fairseq.bench.gpu_checks import WARNING, errors, noted_waits
from moec_fairseq.bench.measure import Times
from moec_fairseq.bench.models import PRECISIONS
from moec_fairseq.bench.report import Row, Target, outcome_table, rows_of
from moec_fairseq.bench.sizes import SIZES
from moec_fairseq.bench.suites import bench
from moec_fairseq.moe import experts as experts_module
from moec_fairseq.moe.segments import Segments
from moec_fairseq.moe.ways import WAYS, Work, choose
from tests.python import forkserver

SIZES_HERE, CPU = SIZES["small"].gpu, torch.device("cpu")
TARGET = Target("speed", 1.0, 0.8, at_most=False)


def finds(sizes, device):
    yield from rows_of("layer", "case", {"dense": Times([1.0], [2.0])}, {"dense": (0, 4)})
    yield TARGET
    yield f"{os.getpid()}"


def fails(sizes, device):
    yield TARGET
    raise RuntimeError("no such kernel")


def dies(sizes, device):
    yield TARGET
    os._exit(3)


def hangs(sizes, device):
    yield TARGET
    time.sleep(1000)


@pytest.fixture
def workers_of_forks(monkeypatch):
    """Run parts in processes that need not import torch and fairseq first."""
    monkeypatch.setattr(gpu, "get_context", lambda method: forkserver)


def test_what_fails_is_told_and_the_rest_still_runs(workers_of_forks):
    parts = {"one": finds, "two": finds, "fails": fails, "three": finds, "dies": dies, "four": finds}
    parts = {name: Part(part) for name, part in parts.items()} | {"only there": Part(finds, needs_gpu=True)}
    found = {outcome.name: outcome for outcome in run(SIZES_HERE, CPU, parts)}
    assert list(found) == list(parts)
    states = {name: outcome.state for name, outcome in found.items()}
    assert {name for name, state in states.items() if state == "done"} == {"one", "two", "three", "four"}
    assert states["only there"] == "needs a GPU"
    assert "no such kernel" in found["fails"].message
    assert found["dies"].message == "the process ended with exit code 3"
    # what was found before is kept
    assert all(found[name].targets == [TARGET] for name in parts if name != "only there")
    assert found["four"].rows[0].contender == "dense"
    (one, two, three, four) = (int(found[name].remarks[0]) for name in ("one", "two", "three", "four"))
    assert one == two and len({two, three, four, os.getpid()}) == 4  # a new process after each failure
    assert "RuntimeError: no such kernel" in outcome_table(found.values())


def test_time_that_is_over(workers_of_forks):
    (outcome,) = run(SIZES_HERE, CPU, {"hangs": Part(hangs)}, seconds_of_part=2)
    assert (outcome.state, outcome.message) == ("failed", "still at it after 2 s")
    (outcome,) = run(SIZES_HERE, CPU, {"one": Part(finds)}, seconds=0)
    assert outcome.state == "left out: the 0 s were over" and not outcome.rows


@pytest.mark.parametrize("skew, fullest", [(1, 8), (3, 24), (8, 64)])
def test_skew(skew, fullest):
    layer = moec_layer(Shape(16, 32, 64), 8, skew)
    with layer.collector.collect() as records:
        layer(torch.randn(64, 1, 16))
    counts = records[0].tokens_per_expert_N.tolist()
    assert counts[0] == fullest and sum(counts) == 64 and max(counts[1:]) - min(counts[1:]) <= 1


def test_skew_with_dropout():
    layer = moec_layer(Shape(16, 32, 64), 8, 1, dropout=0.5)
    with layer.collector.collect() as records:
        layer(torch.randn(64, 1, 16))
    assert sorted(records[0].tokens_per_expert_N.tolist()) == 4 * [0] + 4 * [16]


def test_one_way():
    work, segments = Work("cpu", None, torch.float32, 2, 8, 8), Segments(torch.tensor([0, 1]), 2)
    with computed_by("padded"):
        assert experts_module.choose(work, segments) == "padded"
    with computed_by(None):
        assert experts_module.choose(work, segments) == "loop"
    assert experts_module.choose is choose


@pytest.fixture
def sync_debug_mode(monkeypatch):
    """Let torch warn of ``item`` and ``tolist`` on the CPU as it warns of them on a GPU."""
    own = {name: getattr(torch.Tensor, name) for name in ("item", "tolist")}

    def set_mode(mode):
        for name, function in own.items():

            def warning(self, function=function):
                warnings.warn(WARNING, stacklevel=1)
                warnings.warn("something else", stacklevel=1)
                return function(self)

            monkeypatch.setattr(torch.Tensor, name, warning if mode == "warn" else function)

    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", set_mode)


def test_waits_are_noted_where_they_happen(sync_debug_mode):
    own = Segments(torch.tensor([0, 1]), 2), Segments(torch.tensor([0, 0]), 2)
    with noted_waits() as waits:
        assert [segments.counts for segments in own] == [[1, 1], [2, 0]]
        torch.ones(()).item()
    assert waits == {"moec_fairseq/moe/segments.py:counts": 2, "autograd": 1}
    torch.ones(()).item()
    assert waits.total() == 3


def test_waits_of_a_training_step(sync_debug_mode):
    *found, log = gpu_checks.synchronisations(SIZES_HERE, CPU)
    assert log.what == "synchronisations of ours for the log"
    targets, remarks = found[::2], found[1::2]
    assert [target.what.rpartition(" ")[2] for target in targets] == list(PRECISIONS)
    assert all(" fairseq/logging/meters.py:safe_round (log) " in remark for remark in remarks), remarks
    assert all(target.value == ours_in(remark) for target, remark in zip(targets, remarks, strict=True))


def ours_in(remark):
    """Return the sum of the counts of our places in ``PRECISION: PLACE COUNT, PLACE COUNT``."""
    waits = (wait.rsplit(" ", 1) for wait in remark.partition(": ")[2].split(", "))
    return sum(int(count) for place, count in waits if place.startswith("moec_fairseq/") and "(log)" not in place)


def test_a_torch_that_does_not_warn(monkeypatch):
    monkeypatch.setattr("torch.cuda.set_sync_debug_mode", lambda mode: None)
    with pytest.raises(RuntimeError, match="does not warn"):
        next(gpu_checks.synchronisations(SIZES_HERE, CPU))


def test_kernels_of_each_way(monkeypatch):
    counts = iter(range(10, 20))
    monkeypatch.setattr(gpu_checks, "kernels", lambda contender: next(counts))
    found = list(gpu_checks.kernel_counts(SIZES_HERE, CPU))
    assert [target.value for target in found if isinstance(target, Target)] == [10, 14, 4]
    assert found[1] == "2 experts: chosen 10, loop 11, padded 12, grouped 13" and found[-1] == "dense: 18"


def refuse(*_):
    raise TypeError("'NoneType' object is not callable")


def test_what_torch_lacks_is_left_out(monkeypatch):
    monkeypatch.setitem(WAYS, "grouped", refuse)
    remarks = [found for found in gpu_checks.equality(SIZES_HERE, CPU) if isinstance(found, str)]
    assert "grouped, float32, routed: 'NoneType' object is not callable" in remarks
    found = list(layers(SIZES_HERE, CPU, torch.bfloat16))
    contenders = {row.contender for row in found if isinstance(row, Row)}
    assert "padded 4" in contenders and "grouped 4" not in contenders
    assert found[0] == "4 experts, 64 tokens, bfloat16, grouped 4: 'NoneType' object is not callable"


def test_errors_are_relative():
    assert errors({"x": torch.tensor([3.0, 4.5])}, {"x": torch.tensor([3.0, 4.0])}) == {"x": pytest.approx(0.1)}
    assert errors({"x": torch.tensor([torch.nan])}, {"x": torch.ones(1)}) == {"x": torch.inf}


def test_every_part_that_a_cpu_can_run(tmp_path, capsys):
    bench("gpu", tmp_path / "found.json", "small", "cpu", None, None)
    found = json.loads((tmp_path / "found.json").read_text())
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    parts = {part["name"]: part for part in found["parts"]}
    left_out = ["synchronisations", "kernels", "layer, float16"]
    assert [name for name, part in parts.items() if part["state"] == "needs a GPU"] == left_out
    assert all(part["state"] == "done" and part["seconds"] > 0 for name, part in parts.items() if name not in left_out)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in shown[-2 - len(parts) : -2]] == list(parts)  # a table comes last
    targets = {target["what"]: target for target in found["targets"]}
    assert {"speed of a training step / dense, 4 experts"} <= targets.keys()
    assert {"time of the layer / dense, 4 experts, 64 tokens, bfloat16"} <= targets.keys()
    for what in ("difference of losses after resuming, --amp", "difference from the CPU, padded, float32"):
        assert targets[what]["value"] <= targets[what]["bound"]
    contenders = {row["contender"] for row in found["rows"]}
    ways = {f"{way} 4" for way in ("moec", "loop", "padded", "fairscale")}
    assert ways | {"padded 4 skew 2", "moec 2 dropout 0.5", "moec 4 fused_adam", "router"} <= contenders
    lacks_grouped = any("grouped 4" in remark for remark in parts["layer, bfloat16"]["remarks"])
    assert ("grouped 4" in contenders) is not lacks_grouped
