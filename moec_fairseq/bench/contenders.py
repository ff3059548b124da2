"""The layers that are compared."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

import torch
import torch.distributed as dist
from fairscale.nn.moe import MOELayer, Top2Gate
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.bench.measure import Contender
from moec_fairseq.moe import experts as experts_of
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.feed_forward import Activation
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.losses import GateLoss, gate_statistics
from moec_fairseq.moe.router import Router, Routing
from moec_fairseq.moe.routing_metrics import model_sums
from moec_fairseq.moe.routing_records import RoutingCollector, RoutingRecord

GATE_LOSS_WEIGHT = 0.01


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer and its input.

    Attributes:
        dim: model dimension.
        ffn_dim: hidden dimension of the dense block and of each expert.
        tokens: tokens of the batch.
        device: ``cpu`` or ``cuda``.
        dtype: of parameters and input.
        autocast: whether to compute by autocast, in the dtype of the input, or in bfloat16 if that is float32.
    """

    dim: int
    ffn_dim: int
    tokens: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    autocast: bool = False


class DenseBlock(nn.Module):
    """x + W2·relu(W1·LayerNorm(x)): what one expert computes, for all tokens."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, ffn_dim), nn.Linear(ffn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, D) to (…, D)."""
        return x + self.fc2(F.relu(self.fc1(self.norm(x))))


def router_losses(record: RoutingRecord) -> tuple[Tensor, Tensor]:
    """Return the gate loss and the routing metrics, as the criterion computes them for a model of one layer."""
    statistics = gate_statistics([record])
    losses = GateLoss()(statistics)
    return torch.stack(losses).sum(), model_sums([record], statistics, losses, 1)


class SkewedRouter(Router):
    """A router that sends ``skew`` times the mean to the first expert, and equally many tokens to all others.

    It computes what a router does; only the experts are not those that it has found.
    """

    def __init__(self, dim: int, clusters: ExpertClusters, skew: float) -> None:
        super().__init__(dim, clusters)
        self.skew = skew
        self._index = dict[tuple[int, int], Tensor]()

    def forward(self, tokens_TD: Tensor, active_ids_S: Tensor) -> Routing:
        """Route the tokens to the active experts."""
        routing = super().forward(tokens_TD, active_ids_S)
        tokens, experts = size = len(tokens_TD), len(active_ids_S)
        if size not in self._index:
            fullest = min(tokens, round(self.skew * tokens / experts)) if experts > 1 else tokens
            others_T = 1 + torch.arange(tokens - fullest) % max(1, experts - 1)
            index_T = torch.cat([others_T.new_zeros(fullest), others_T])
            order_T = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))
            self._index[size] = index_T[order_T].to(tokens_TD.device)
        return replace(routing, expert_T=active_ids_S.index_select(0, self._index[size]))


def moec_layer(
    shape: Shape, experts: int, skew: float | None = None, dropout: float = 0, activation: Activation = F.relu
) -> MoELayer:
    """Return our layer, with experts that are not the identity.

    Args:
        shape: its sizes.
        experts: their number.
        skew: share of the fullest expert / mean share; None: as the router finds.
        dropout: rate of expert dropout.
        activation: of the experts.
    """
    clusters = ExpertClusters(experts, max(1, experts // 8) if experts > 8 else min(2, experts))
    layer = MoELayer(
        Router(shape.dim, clusters) if skew is None else SkewedRouter(shape.dim, clusters, skew),
        Experts(experts, shape.dim, shape.ffn_dim, activation=activation),
        LocalDispatcher(experts),
        ExpertDropout(dropout),
        collector=RoutingCollector(),
    )
    for block in layer.experts.sublayers:
        nn.init.normal_(block.get_parameter("w2_NDF"), std=0.02)
    return layer


@contextmanager
def computed_by(way: str | None) -> Iterator[None]:
    """Compute experts in one way (a name in ``moe.ways.WAYS``), in whatever place; None: the one chosen for it."""
    if way is None:
        yield
    else:
        with patch.object(experts_of, "choose", lambda work, segments: way):
            yield


def with_gate_loss(layer: MoELayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the gate loss; routing metrics are computed, too."""
    with layer.collector.collect() as records:
        outputs = layer(x)
    return outputs, router_losses(records[0])[0]


def fairscale_layer(shape: Shape, experts: int) -> MOELayer:
    """Return fairscale's MOELayer with its top-2 gate and experts of the same size; needs a process group."""
    if not dist.is_initialized():
        store = Path(mkdtemp(prefix="moec-bench-")) / "store"
        backend = "nccl" if shape.device == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=0, world_size=1)
    own = nn.ModuleList(DenseBlock(shape.dim, shape.ffn_dim) for _ in range(experts))
    return MOELayer(Top2Gate(shape.dim, experts), own)


def with_aux_loss(layer: MOELayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same with fairscale's layer."""
    outputs = layer(x)
    return outputs, layer.l_aux


def _alone(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), x.new_zeros(())


def training(layer: nn.Module, run: Callable[..., tuple[Tensor, Tensor]], shape: Shape) -> Contender:
    """Return forward and backward of a layer.

    Args:
        layer: moved to the device and dtype of ``shape``.
        run: takes the layer and its input (L, B, D), gives outputs and loss.
        shape: of the input.
    """
    device = torch.device(shape.device)
    layer = layer.to(device, shape.dtype)
    source = torch.Generator().manual_seed(1)
    size = (shape.tokens // 4, 4, shape.dim)  # fairscale needs the first to be a multiple of the number of experts
    x = torch.randn(size, generator=source).to(device, shape.dtype).requires_grad_()
    direction = torch.randn(size, generator=source).to(device, shape.dtype)

    half = torch.bfloat16 if shape.dtype == torch.float32 else shape.dtype

    def forward() -> Tensor:
        with torch.autocast(shape.device, half, enabled=shape.autocast):
            outputs, loss = run(layer, x)
        return (outputs * direction).sum() + GATE_LOSS_WEIGHT * loss

    def reset() -> None:
        x.grad = None
        for parameter in layer.parameters():
            parameter.grad = None

    return Contender(forward, lambda result: result.backward(), reset)


def dense(shape: Shape) -> Contender:
    """Return a dense block of the same active size."""
    torch.manual_seed(1)
    return training(DenseBlock(shape.dim, shape.ffn_dim), _alone, shape)


def moec(shape: Shape, experts: int) -> Contender:
    """Return our layer with router, losses and routing metrics."""
    torch.manual_seed(1)
    return training(moec_layer(shape, experts), with_gate_loss, shape)


def fairscale(shape: Shape, experts: int) -> Contender:
    """Return fairscale's MOELayer with its auxiliary loss (top-2: twice the FLOPs)."""
    torch.manual_seed(1)
    return training(fairscale_layer(shape, experts), with_aux_loss, shape)


def maker(contender: str, shape: Shape, experts: int) -> Callable[[], Contender]:
    """Return a picklable function that builds a contender."""
    if contender == "dense":
        return partial(dense, shape)
    return partial({"moec": moec, "fairscale": fairscale}[contender], shape, experts)
