from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from moec_fairseq.moe import experts, grouped, torch_features
from moec_fairseq.moe.expert_parallel import Shard
from moec_fairseq.moe.experts import Experts, ExpertSublayer, matmul_dtype
from moec_fairseq.moe.padded import padding_pays
from moec_fairseq.moe.ways import WAYS, Work, choose

from .stubs import Kernels, grouped_mm_by_loop, quick, randomise, segments_of

DIM, FFN_DIM = 16, 32  # grouped products want multiples of 8
COUNTS = {
    "mixed": [5, 0, 70, 0, 1, 20],
    "equal": [8, 8, 8, 8],
    "all to one": [0, 0, 40, 0],
    "one expert": [9],
    "no tokens": [0, 0, 0],
}
# largest error of a tensor, relative to its norm
TOLERANCES = {torch.float64: 1e-13, torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}
HALF = (torch.bfloat16, torch.float16)


def torch_groups_on_cpu():
    try:
        torch_features.grouped_mm(torch.ones(8, 8), torch.ones(1, 8, 8), torch.tensor([8], dtype=torch.int32))
    except (NotImplementedError, RuntimeError, TypeError):
        return False
    return True


@pytest.fixture(autouse=True)
def grouped_products(request, monkeypatch):
    """Let torch compute grouped products if it can do so here; it has none in float64."""
    arguments = getattr(request.node, "callspec", None)
    double = arguments is not None and arguments.params.get("dtype") == torch.float64
    if double or "gradcheck" in request.node.name or not torch_groups_on_cpu():
        monkeypatch.setattr(grouped, "grouped_mm", grouped_mm_by_loop)


def make_block(num_experts, dtype=torch.float32, activation=F.gelu):
    block = ExpertSublayer(Shard(num_experts), DIM, FFN_DIM, activation)
    randomise(block)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(0.3)
    return block.to(dtype)


def tokens_of(counts, dtype=torch.float32):
    return torch.randn(sum(counts), DIM, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(function, tokens_AD, parameters):
    """Return the outputs of ``function(tokens, parameters)`` and all gradients."""
    tokens_AD = tokens_AD.detach().clone().requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    outputs_AD = function(tokens_AD, parameters)
    direction = torch.linspace(-1, 1, outputs_AD.numel()).view_as(outputs_AD)
    outputs_AD.backward(direction.to(outputs_AD.dtype))
    return [outputs_AD.detach(), tokens_AD.grad, *[p.grad for p in parameters]]


def run_way(way, counts, tokens_AD, parameters, activation=F.gelu):
    return run(lambda t, p: WAYS[way](activation, t, segments_of(counts), p), tokens_AD, parameters)


def run_reference(counts, tokens_AD, parameters):
    """Run ``ExpertSublayer.residual`` in float64."""
    expert_A = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def function(tokens_AD, parameters):
        block = make_block(len(counts)).double()
        for name, parameter in zip(dict(block.named_parameters()), parameters, strict=True):
            delattr(block, name)
            setattr(block, name, parameter)
        return block.residual(tokens_AD, expert_A)

    return run(function, tokens_AD.double(), [p.double() for p in parameters])


def errors(ours, reference):
    return [float((a.double() - b.double()).norm() / (b.double().norm() + 1e-30)) for a, b in zip(ours, reference)]  # noqa: B905


def assert_close(ours, reference, dtype):
    names = ["outputs", "tokens", "norm_weight", "norm_bias", "w1", "b1", "w2", "b2"]
    found = dict(zip(names, errors(ours, reference), strict=True))
    assert max(found.values()) <= TOLERANCES[dtype], found


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_against_the_reference(way, counts, dtype):
    tokens_AD, parameters = tokens_of(counts, dtype), list(make_block(len(counts), dtype).parameters())
    ours = run_way(way, counts, tokens_AD, parameters)
    assert all(tensor.dtype == dtype for tensor in ours)
    assert_close(ours, run_reference(counts, tokens_AD, parameters), dtype)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_dropout_after_the_activation(way, counts, dtype):
    tokens_AD, parameters = tokens_of(counts, dtype), list(make_block(len(counts), dtype).parameters())
    mask_AF = torch.arange(sum(counts) * FFN_DIM).view(-1, FFN_DIM).remainder(3).to(dtype)

    def by_hand(tokens_AD, parameters):
        results = [tokens_AD.new_empty(0, DIM)]
        for own, mask, *weights in zip(tokens_AD.split(counts), mask_AF.split(counts), *parameters, strict=True):
            norm_weight, norm_bias, w1, b1, w2, b2 = weights
            x = F.layer_norm(own, (DIM,), norm_weight, norm_bias)
            results.append(F.linear(F.gelu(F.linear(x, w1, b1)) * mask, w2, b2))
        return torch.cat(results)

    ours = run(lambda t, p: WAYS[way](F.gelu, t, segments_of(counts), p, mask_AF), tokens_AD, parameters)
    assert_close(ours, run(by_hand, tokens_AD, parameters), dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("way", WAYS)
def test_without_a_norm(way, counts, dtype):
    tokens_AD, parameters = tokens_of(counts, dtype), list(make_block(len(counts), dtype).parameters())[2:]

    def by_hand(tokens_AD, parameters):
        results = [tokens_AD.new_empty(0, DIM)]
        for own, w1, b1, w2, b2 in zip(tokens_AD.split(counts), *parameters, strict=True):
            results.append(F.linear(F.gelu(F.linear(own, w1, b1)), w2, b2))
        return torch.cat(results)

    reference = run(by_hand, tokens_AD.double(), [p.double() for p in parameters])
    ours = run_way(way, counts, tokens_AD, parameters)
    assert all(tensor.dtype == dtype for tensor in ours)
    assert max(errors(ours, reference)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("way", ["padded", "grouped"])
def test_no_less_precise_than_the_loop(way, dtype):
    counts = COUNTS["mixed"]
    tokens_AD, parameters = tokens_of(counts, dtype), list(make_block(len(counts), dtype).parameters())
    reference = run_reference(counts, tokens_AD, parameters)
    ours = errors(run_way(way, counts, tokens_AD, parameters), reference)
    loops = errors(run_way("loop", counts, tokens_AD, parameters), reference)
    assert all(a <= 2 * b + 2 * torch.finfo(dtype).eps for a, b in zip(ours, loops, strict=True))


@pytest.mark.parametrize("activation", [F.gelu, torch.tanh])
@pytest.mark.parametrize("way", WAYS)
def test_gradcheck(way, activation):
    counts = [2, 0, 3]
    block = ExpertSublayer(Shard(3), 4, 5, activation).double()
    randomise(block)
    tokens = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def function(tokens, *parameters):
        return WAYS[way](activation, tokens, segments_of(counts), parameters)

    assert torch.autograd.gradcheck(function, (tokens, *block.parameters()))


@pytest.mark.parametrize("way", ["padded", "grouped"])
def test_any_counts(way):
    @quick
    @given(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    def check(counts):
        tokens_AD, parameters = tokens_of(counts), list(make_block(len(counts)).parameters())
        loops = run_way("loop", counts, tokens_AD, parameters)
        assert_close(run_way(way, counts, tokens_AD, parameters), loops, torch.float32)

    check()


def use(monkeypatch, way):
    monkeypatch.setattr(experts, "choose", lambda work, segments: way)


@pytest.mark.parametrize("tokens_dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("way", WAYS)
def test_autocast(way, tokens_dtype, monkeypatch):
    """Tokens of any dtype, parameters in float32: as in float32, up to rounding."""
    use(monkeypatch, way)
    counts = COUNTS["mixed"]
    block, tokens_AD = make_block(len(counts)), tokens_of(counts, tokens_dtype)

    def function(tokens_AD, parameters):
        with torch.autocast("cpu", torch.bfloat16):
            return block(tokens_AD, segments_of(counts), parameters)

    ours = run(function, tokens_AD, block.parameters())
    assert ours[0].dtype == torch.bfloat16
    assert ours[1].dtype == tokens_dtype and all(gradient.dtype == torch.float32 for gradient in ours[2:])
    exact = run_reference(counts, tokens_AD, block.parameters())
    assert_close(ours, exact, torch.bfloat16)
    assert max(errors(ours, exact)) > 1e-4  # it did compute in half precision


# what CUDA refuses unless all its operands have one dtype
ONE_DTYPE = {"native_layer_norm", "native_layer_norm_backward", "mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}


@pytest.mark.parametrize("tokens_dtype, norm_dtype", list(product([torch.float32, *HALF], repeat=2)))
@pytest.mark.parametrize("way", WAYS)
def test_no_kernel_gets_two_dtypes(way, tokens_dtype, norm_dtype):
    """On a device; the loop leaves mixed norms to the kernels of a CPU, which take them."""
    device = "meta" if way == "loop" else "cpu"
    counts = COUNTS["mixed"]
    norm_weight, norm_bias, *linear = (
        p.detach().to(device) for p in make_block(len(counts), torch.bfloat16).parameters()
    )
    parameters = [norm_weight.to(norm_dtype), norm_bias.to(norm_dtype), *linear]
    segments = segments_of(counts, device)
    vars(segments)["counts"] = counts  # a tensor on the device "meta" has no values that could be read
    parameters = [p.requires_grad_() for p in parameters]
    tokens_AD = tokens_of(counts, tokens_dtype).to(device).requires_grad_()
    with Kernels() as kernels:
        outputs_AD = WAYS[way](F.relu, tokens_AD, segments, parameters)
        outputs_AD.backward(torch.ones_like(outputs_AD))
    assert outputs_AD.dtype == torch.bfloat16 and tokens_AD.grad.dtype == tokens_dtype
    checked = [(name, dtypes) for name, dtypes in kernels.calls if name in ONE_DTYPE]
    assert len(checked) >= 8
    # a layer norm in half precision may keep its statistics in float32
    assert [(name, dtypes) for name, dtypes in checked if len(set(dtypes) - {torch.float32}) > 1] == []
    assert [(n, d) for n, d in checked if len(set(d)) > 1 and not n.startswith("native_layer_norm_b")] == []


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_on_a_cpu_keeps_its_numbers(way):
    """Norms of tokens in half precision with weights in float32: as the kernel of the CPU computes them."""
    counts = [3, 4]
    tokens_AD = tokens_of(counts, torch.bfloat16)
    norm_weight, norm_bias, *_ = make_block(2).parameters()
    linear = [torch.eye(DIM).expand(2, -1, -1), torch.zeros(2, DIM)] * 2
    found = WAYS[way](
        lambda x: x, tokens_AD, segments_of(counts), [norm_weight, norm_bias, *(p.bfloat16() for p in linear)]
    )
    for i, own in enumerate(tokens_AD.split(counts)):
        expected = F.layer_norm(own, (DIM,), norm_weight[i].detach(), norm_bias[i].detach())
        if way == "loop":
            assert torch.equal(found.split(counts)[i], expected)
        torch.testing.assert_close(found.split(counts)[i], expected)


# non-view operations of one block, forward and backward
MOST_KERNELS = {"padded": 25, "grouped": 39}


@pytest.mark.parametrize("way", MOST_KERNELS)
def test_kernels_do_not_depend_on_the_number_of_experts(way, monkeypatch):
    use(monkeypatch, way)

    def kernels(num_experts, sublayers):
        bank = Experts(num_experts, DIM, FFN_DIM, sublayers).bfloat16()
        tokens_AD = tokens_of([4] * num_experts, torch.bfloat16).requires_grad_()
        ones_AD, segments = torch.ones_like(tokens_AD), segments_of([4] * num_experts)
        with Kernels() as found:
            bank(tokens_AD, segments).backward(ones_AD)
        return len(found.calls)

    one = {num_experts: kernels(num_experts, 1) for num_experts in (2, 8, 64)}
    assert len(set(one.values())) == 1
    assert one[8] <= MOST_KERNELS[way] + 11  # of the segments, and of h + r − h
    # which are computed once for all blocks
    assert kernels(8, 3) - one[8] <= 2 * MOST_KERNELS[way]


@pytest.mark.parametrize("way", ["padded", "grouped"])
def test_no_gradient_is_added_up_by_atomics(way):
    counts = COUNTS["mixed"]
    parameters = [p.bfloat16().detach().requires_grad_() for p in make_block(len(counts)).parameters()]
    with Kernels() as kernels:
        WAYS[way](F.relu, tokens_of(counts, torch.bfloat16), segments_of(counts), parameters).sum().backward()
    names = {name for name, _ in kernels.calls}
    assert not {n for n in names if "index_add" in n or "scatter" in n or "put" in n or "bincount" in n or "bag" in n}


@pytest.mark.skipif(not torch_groups_on_cpu(), reason="this torch has no grouped products")
def test_the_host_reads_nothing_for_grouped_products():
    # a tensor on the device "meta" has no values that could be read
    block = make_block(3).to("meta", torch.bfloat16)
    tokens_AD = torch.empty(5, DIM, dtype=torch.bfloat16, device="meta", requires_grad=True)
    outputs_AD = WAYS["grouped"](F.relu, tokens_AD, segments_of([2, 0, 3], "meta"), list(block.parameters()))
    outputs_AD.sum().backward()
    assert tokens_AD.grad.shape == (5, DIM) and block.w1_NFD.grad.shape == (3, FFN_DIM, DIM)


@pytest.mark.parametrize("way", WAYS)
def test_gathered_parameters(way, monkeypatch):
    use(monkeypatch, way)
    own, gathered = make_block(1), make_block(3)
    tokens_AD, segments = tokens_of([2, 0, 3]), segments_of([2, 0, 3])
    with torch.no_grad():
        expected = gathered(tokens_AD, segments)
        found = own.eval()(tokens_AD, segments, [p.data for p in gathered.parameters()])
    assert torch.equal(found, expected) and found.any()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_kept_without_gradients(way, monkeypatch):
    use(monkeypatch, way)
    with torch.no_grad():
        assert make_block(2)(tokens_of([1, 2]), segments_of([1, 2])).grad_fn is None


def hopper(dtype=torch.bfloat16, experts=64, dim=512, ffn_dim=2048, has_grouped_mm=True, capability=(9, 0)):
    return Work("cuda", capability, dtype, experts, dim, ffn_dim, has_grouped_mm)


@pytest.mark.parametrize(
    "work, way",
    [
        (Work("cpu", None, torch.float32, 64, 512, 2048), "loop"),
        (Work("cpu", None, torch.bfloat16, 64, 512, 2048, True), "loop"),
        (hopper(), "grouped"),
        (hopper(dtype=torch.float16), "padded"),
        (hopper(dtype=torch.float32), "padded"),
        (hopper(dtype=torch.float64), "padded"),
        (hopper(dim=508), "padded"),
        (hopper(ffn_dim=2050), "padded"),
        (hopper(experts=1023), "grouped"),
        (hopper(experts=1024), "padded"),
        (hopper(has_grouped_mm=False), "padded"),
        # wrong results for experts without tokens, or a loop that waits for the device
        (hopper(capability=(10, 0)), "padded"),
        (hopper(capability=(8, 0)), "padded"),
        (hopper(capability=(7, 0), dtype=torch.float16), "padded"),
        (Work("xpu", None, torch.bfloat16, 64, 512, 2048, True), "padded"),
        (Work("mps", None, torch.float16, 8, 512, 2048, True), "padded"),
    ],
)
def test_which_way_is_taken(work, way):
    assert choose(work, segments_of([20, 40, 0])) == way


def test_grouped_products_are_chosen_without_reading_counts():
    assert choose(hopper(), segments_of([20, 40, 0], "meta")) == "grouped"


def test_padded_products_give_way_to_the_loop():
    assert choose(hopper(dtype=torch.float16), segments_of([900] * 7 + [9000])) == "loop"


@pytest.mark.parametrize(
    "counts, dtype, pays",
    [
        ([1024] * 64, torch.bfloat16, True),
        ([0] * 64, torch.bfloat16, True),
        # 794 rows of 12 · 512 · 2 048 operations take as long as 20 launches
        ([256] * 63 + [256 + 807], torch.bfloat16, True),
        ([256] * 63 + [256 + 808], torch.bfloat16, False),
        # a tenth of that in float32
        ([256] * 63 + [256 + 80], torch.float32, True),
        ([256] * 63 + [256 + 81], torch.float32, False),
        # few tokens, as in a beam search: always, even if one expert has all of them
        ([40] + [0] * 63, torch.bfloat16, True),
        ([128] + [0] * 63, torch.bfloat16, True),
        # memory: 64 times that of the tokens
        ([200] + [0] * 63, torch.bfloat16, False),
    ],
)
def test_when_padding_pays(counts, dtype, pays):
    assert padding_pays(counts, 512, 2048, dtype) == pays


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALF])
@pytest.mark.parametrize("autocast", [False, True])
def test_dtype_of_products(dtype, autocast):
    one = torch.ones(1, 1, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with Kernels() as kernels:
            found = matmul_dtype(one)
        assert found == torch.mm(one, one).dtype
    assert kernels.calls == []


@pytest.mark.filterwarnings("ignore:.*autocast:DeprecationWarning")
def test_older_torch_is_asked_for_autocast_by_other_names(monkeypatch):
    monkeypatch.setattr(torch_features, "_AUTOCAST_BY_DEVICE", False)
    assert torch_features.autocast_dtype("cpu") is torch_features.autocast_dtype("cuda") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert torch_features.autocast_dtype("cpu") == torch.bfloat16
        assert torch_features.autocast_dtype("cuda") is None
