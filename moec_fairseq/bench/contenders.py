"""The layers that are compared."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.distributed as dist
from fairscale.nn.moe import MOELayer, Top2Gate
from torch import Tensor, nn
from torch.nn import functional as F

from moec_fairseq.bench.measure import Contender
from moec_fairseq.moe.clusters import ExpertClusters
from moec_fairseq.moe.dispatch import LocalDispatcher
from moec_fairseq.moe.expert_dropout import ExpertDropout
from moec_fairseq.moe.experts import Experts
from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.losses import GateLoss, gate_statistics
from moec_fairseq.moe.router import Router
from moec_fairseq.moe.routing_metrics import layer_sums, model_sums
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
        autocast: whether to compute in bfloat16 by autocast.
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


def router_losses(record: RoutingRecord) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the gate loss and the routing metrics, as the criterion computes them for a model of one layer."""
    statistics = gate_statistics(record)
    balance, variance = GateLoss()(statistics)
    sums = layer_sums(record, statistics, balance, variance)
    experts = statistics.clusters.num_experts
    return balance + variance, model_sums([(0, sums)], 1, experts, balance.device)


def moec_layer(shape: Shape, experts: int) -> MoELayer:
    """Return our layer, with experts that are not the identity."""
    clusters = ExpertClusters(experts, max(1, experts // 8) if experts > 8 else min(2, experts))
    layer = MoELayer(
        Router(shape.dim, clusters),
        Experts(experts, shape.dim, shape.ffn_dim),
        LocalDispatcher(experts),
        ExpertDropout(),
        collector=RoutingCollector(),
    )
    for block in layer.experts.sublayers:
        nn.init.normal_(block.get_parameter("w2_NDF"), std=0.02)
    return layer


def _with_gate_loss(layer: MoELayer, x: Tensor) -> tuple[Tensor, Tensor]:
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


def _with_aux_loss(layer: MOELayer, x: Tensor) -> tuple[Tensor, Tensor]:
    outputs = layer(x)
    return outputs, layer.l_aux


def _alone(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    return layer(x), x.new_zeros(())


def _train(layer: nn.Module, run: Callable[..., tuple[Tensor, Tensor]], shape: Shape) -> Contender:
    device = torch.device(shape.device)
    layer = layer.to(device, shape.dtype)
    source = torch.Generator().manual_seed(1)
    size = (shape.tokens // 4, 4, shape.dim)  # fairscale needs the first to be a multiple of the number of experts
    x = torch.randn(size, generator=source).to(device, shape.dtype).requires_grad_()
    direction = torch.randn(size, generator=source).to(device, shape.dtype)

    def forward() -> Tensor:
        with torch.autocast(shape.device, torch.bfloat16, enabled=shape.autocast):
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
    return _train(DenseBlock(shape.dim, shape.ffn_dim), _alone, shape)


def moec(shape: Shape, experts: int) -> Contender:
    """Return our layer with router, losses and routing metrics."""
    torch.manual_seed(1)
    return _train(moec_layer(shape, experts), _with_gate_loss, shape)


def fairscale(shape: Shape, experts: int) -> Contender:
    """Return fairscale's MOELayer with its auxiliary loss (top-2: twice the FLOPs)."""
    torch.manual_seed(1)
    return _train(fairscale_layer(shape, experts), _with_aux_loss, shape)


def maker(contender: str, shape: Shape, experts: int) -> Callable[[], Contender]:
    """Return a picklable function that builds a contender."""
    if contender == "dense":
        return partial(dense, shape)
    return partial({"moec": moec, "fairscale": fairscale}[contender], shape, experts)
