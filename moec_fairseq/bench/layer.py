"""The layer suite: our layer compared with a dense block and with fairscale's layer."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from moec_fairseq.bench.contenders import Shape, maker, moec_layer, router_losses
from moec_fairseq.bench.measure import Contender, interleave
from moec_fairseq.bench.report import Row, Target, rows_of, with_peaks
from moec_fairseq.bench.sizes import LayerSizes

SUITE = "layer"


def _compare(case: str, entries: list[tuple[str, Shape, int]], sizes: LayerSizes, memory: bool = False) -> list[Row]:
    """Time each (contender, shape, experts) relative to the first."""
    makers = {}
    meant = {}
    for contender, shape, experts in entries:
        dtype = "" if shape.dtype == torch.float32 else " bf16"
        name = contender + (f" {experts}" if experts else "") + dtype + (" autocast" if shape.autocast else "")
        makers[name], meant[name] = maker(contender, shape, experts), (experts, shape.tokens)
    device = torch.device(entries[0][1].device)
    times = interleave(case, {name: make() for name, make in makers.items()}, sizes.repeats, sizes.warmup, device)
    rows = rows_of(SUITE, case, times, meant)
    return with_peaks(rows, makers, device) if memory else rows


def parts(shape: Shape, experts: int, repeats: int, warmup: int) -> list[Row]:
    """Time the parts of the layer one by one, forward and backward."""
    torch.manual_seed(1)
    device = torch.device(shape.device)
    layer = moec_layer(shape, experts).to(device, shape.dtype)
    x_TD = torch.randn(shape.tokens, shape.dim, device=device, dtype=shape.dtype).requires_grad_()
    active_ids_S = torch.arange(experts, device=device)
    with layer.collector.collect() as records:
        layer(x_TD.unsqueeze(1))
    (record,) = records
    scores_TS = record.routing.scores_TS.detach().requires_grad_()
    record = replace(record, routing=replace(record.routing, scores_TS=scores_TS))
    dispatched = layer.dispatcher.dispatch(x_TD.detach(), record.routing.expert_T)
    grouped_AD = dispatched.tokens_AD.requires_grad_()

    def whole() -> Tensor:
        with layer.collector.collect() as own:
            outputs = layer(x_TD.unsqueeze(1))
        return outputs.sum() + router_losses(own[0])[0]

    def router() -> Tensor:
        routing = layer.router(x_TD, active_ids_S)
        return routing.gate_T.sum() + routing.scores_TS.sum()

    def dispatch_and_combine() -> Tensor:
        own = layer.dispatcher.dispatch(x_TD, record.routing.expert_T)
        return layer.dispatcher.combine(own.tokens_AD, own, shape.tokens).sum()

    def losses() -> Tensor:
        return router_losses(record)[0]

    def experts_alone() -> Tensor:
        return layer.experts(grouped_AD, dispatched.segments).sum()

    def reset() -> None:
        for tensor in (x_TD, scores_TS, grouped_AD, *layer.parameters()):
            tensor.grad = None

    pieces = {
        "whole layer": whole,
        "experts": experts_alone,
        "router": router,
        "dispatch and combine": dispatch_and_combine,
        "losses and metrics": losses,
    }
    contenders = {name: Contender(part, lambda result: result.backward(), reset) for name, part in pieces.items()}
    case = f"parts of the layer, {experts} experts, {shape.tokens} tokens"
    times = interleave(case, contenders, repeats, warmup, device)
    return rows_of(SUITE, case, times, {name: (experts, shape.tokens) for name in pieces})


def exponent(rows: list[Row], contender: str) -> float:
    """Return b in time = a·tokensᵇ, fitted to the medians."""
    own = [row for row in rows if row.contender == contender]
    tokens = np.log([row.tokens for row in own])
    seconds = np.log([np.median(row.times.total) for row in own])
    return float(np.polyfit(tokens, seconds, 1)[0])


def run(sizes: LayerSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Run the suite and compare with the targets."""
    at = partial(Shape, sizes.dim, sizes.ffn_dim, device=device.type)
    few, many, most = sizes.experts
    small, large = sizes.tokens, 2 * sizes.tokens
    base = at(small)
    entries = [("dense", base, 0), *[("moec", base, n) for n in (1, few, many, most)]]
    against_dense = _compare(f"{small} tokens", entries, sizes, memory=True)
    others: dict[tuple[int, int], list[Row]] = {}
    for tokens in (small, large):
        for experts in (few, many):
            pair = [("moec", at(tokens), experts), ("fairscale", at(tokens), experts)]
            case = f"fairscale (top-2), {experts} experts, {tokens} tokens"
            others[tokens, experts] = _compare(case, pair, sizes, memory=tokens == large)
    growth = [
        row
        for tokens in sizes.sweep
        for row in _compare(f"growth, {tokens} tokens", [("dense", at(tokens), 0), ("moec", at(tokens), few)], sizes)
    ]
    half = replace(base, dtype=torch.bfloat16)
    precision = _compare(
        "bfloat16",
        [("moec", base, few), ("moec", half, few), ("moec", replace(base, autocast=True), few), ("dense", base, 0),
         ("dense", half, 0), ("dense", replace(base, autocast=True), 0)],
        sizes,
    )  # fmt: skip
    of_parts = [row for experts in (few, many) for row in parts(base, experts, sizes.repeats, sizes.warmup)]

    by_name = {row.contender: row for row in against_dense}
    of_most = [
        a / b for a, b in zip(by_name[f"moec {most}"].times.total, by_name[f"moec {few}"].times.total, strict=True)
    ]
    targets = [
        Target(f"{few} experts / dense", by_name[f"moec {few}"].time_ratio.median, 1.10),
        Target(f"{many} experts / dense", by_name[f"moec {many}"].time_ratio.median, 1.30),
        Target(f"{most} experts / {few}", float(np.median(of_most)), 1.45),
    ]
    for (tokens, experts), (ours, theirs) in others.items():
        what = f"fairscale / ours, {experts} experts, {tokens} tokens"
        targets.append(Target(what, theirs.time_ratio.median, 4.5 if tokens == small else 7.0, at_most=False))
        if ours.torch_bytes and theirs.torch_bytes and ours.process_bytes and theirs.process_bytes:
            targets.append(Target(f"{what}: memory by torch", theirs.torch_bytes / ours.torch_bytes, 8, at_most=False))
            of_process = theirs.process_bytes / ours.process_bytes
            targets.append(Target(f"{what}: memory of the process", of_process, 8, at_most=False))
    targets.append(Target(f"exponent of time in tokens, {few} experts", exponent(growth, f"moec {few}"), 1.05))
    slower = {row.contender: row.time_ratio.median for row in precision}
    targets.append(Target("bf16 model / fp32", slower[f"moec {few} bf16"], 1.0))
    targets.append(Target("bf16 autocast / fp32", slower[f"moec {few} autocast"], 1.0))
    return [*against_dense, *(row for rows in others.values() for row in rows), *growth, *precision, *of_parts], targets
