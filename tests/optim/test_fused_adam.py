import pytest
import torch
from fairseq.optim.adam import Adam
from torch.utils._python_dispatch import TorchDispatchMode

from moec_fairseq.compat.versions import FUSED_ADAMW_DEVICES
from moec_fairseq.optim import fused_adam
from moec_fairseq.optim.fused_adam import SinglePassAdam

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-3, "weight_decay": 0.1}


def parameters(dtype=torch.float32):
    source = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(n, 5, generator=source).to(dtype)) for n in (3, 700, 1)]


def train(optimizer, values, updates, seed=2, skip=None):
    source = torch.Generator().manual_seed(seed)
    for update in range(updates):
        for number, value in enumerate(values):
            gradient = torch.randn(value.shape, generator=source).to(value.dtype)
            value.grad = None if (update, number) == skip else gradient
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("skip", [None, (0, 1), (2, 0)])
def test_the_results_are_those_of_fairseq(weight_decay, skip):
    ours, theirs = parameters(), parameters()
    options = OPTIONS | {"weight_decay": weight_decay}
    mine, stock = SinglePassAdam(ours, **options), Adam(theirs, **options)
    train(mine, ours, 20, skip=skip)
    train(stock, theirs, 20, skip=skip)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
    for a, b in zip(mine.state_dict()["state"].values(), stock.state_dict()["state"].values(), strict=True):
        assert a["step"] == b["step"] and isinstance(a["step"], int)
        torch.testing.assert_close(a["exp_avg_sq"], b["exp_avg_sq"])


def test_a_state_of_fairseqs_adam_goes_on():
    ours, theirs = parameters(), parameters()
    stock, mine = Adam(theirs, **OPTIONS), SinglePassAdam(ours, **OPTIONS)
    before = Adam(ours, **OPTIONS)
    train(before, ours, 3)
    train(stock, theirs, 3)
    mine.load_state_dict(before.state_dict())
    train(mine, ours, 3, seed=5)
    train(stock, theirs, 3, seed=5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


def test_one_call_for_all_parameters_and_nothing_is_copied(monkeypatch):
    """The kernel gets the same step for each parameter, made where the parameters are."""
    if "cpu" not in FUSED_ADAMW_DEVICES:
        pytest.skip("this torch has no fused kernel for the CPU")
    steps, operations, torchs = [], [], fused_adam.FUSED_ADAMW

    def kernel(*arguments, **options):
        steps.append(arguments[5])
        return torchs(*arguments, **options)

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function._schema.name.startswith("aten::"):
                operations.append(function._schema.name.removeprefix("aten::"))
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(fused_adam, "FUSED_ADAMW", kernel)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a tensor is made on the host"))
    values = [torch.nn.Parameter(torch.zeros(3, dtype=dtype)) for dtype in 50 * [torch.float32] + [torch.float64]]
    optimizer = SinglePassAdam(values, **OPTIONS)
    train(optimizer, values, 1)
    with Operations():
        optimizer.step()
    for first, *others in steps:
        assert first.item() in (1, 2) and first.shape == () and all(other is first for other in others)
    assert [len(step) for step in steps] == [50, 1, 50, 1]
    assert sorted(operations) == ["_fused_adamw_", "_fused_adamw_", "full", "full"]


@pytest.mark.parametrize("dtype, fused", [(torch.bfloat16, True), (torch.float32, False)])
def test_what_torch_cannot_fuse_goes_fairseqs_way(dtype, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(fused_adam, "FUSED_ADAMW", None)
    ours, theirs = parameters(dtype), parameters(dtype)
    train(SinglePassAdam(ours, **OPTIONS), ours, 3)
    train(Adam(theirs, **OPTIONS), theirs, 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_by_its_name(build):
    from omegaconf import OmegaConf

    from moec_fairseq.optim.fused_adam import FairseqAdamConfig, FusedAdam

    config = OmegaConf.structured(FairseqAdamConfig(adam_betas="(0.9, 0.98)", lr=[0.1], tpu=False))
    assert isinstance(FusedAdam(config, parameters()).optimizer, SinglePassAdam)
    config.fp16_adam_stats = True
    with pytest.raises(ValueError, match="give --optimizer adam"):
        FusedAdam(config, parameters())
