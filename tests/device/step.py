"""One training step on the fake device, in a process of its own: python -m tests.device.step PRECISION EXPERTS FOLDER.

Prints as JSON what ``Watch`` has counted, and the kernels of one layer, losses and metrics included. The step is that
of fairseq's trainer: forward, backward, clip, update; then the log.
"""

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from fairseq import metrics, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.utils import apply_to_sample

from moec_fairseq.moe.layer import MoELayer
from moec_fairseq.moe.losses import GateLoss, gate_statistics
from moec_fairseq.moe.routing_metrics import model_sums
from moec_fairseq.optim import fused_adam
from tests.batches import collate, dictionary_of, random_pairs, write_dictionaries
from tests.conftest import ADAM, CRITERION, TINY
from tests.device.fake_gpu import DEVICE, Factories, Watch, set_up

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "amp": torch.float32}


def built(folder: Path, experts: int) -> tuple[Any, Any, Any]:
    write_dictionaries(folder)
    flags = ["--moe-expert-count", experts, "--moec-cluster-count", 2, "--dropout", 0.1]
    arguments = map(str, [folder, "-s", "src", "-t", "tgt", *TINY, *CRITERION, *ADAM, "--max-tokens", 1000, *flags])
    parser = options.get_training_parser()
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=list(arguments)))
    task = tasks.setup_task(config.task)
    return task, task.build_model(config.model), task.build_criterion(config.criterion)


def move(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put the parameters on the device, tied ones together; ``Module.to`` cannot change the class of a tensor."""
    moved: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in moved:
                moved[id(parameter)] = torch.nn.Parameter(parameter.detach().to(DEVICE, dtype))
            setattr(module, name, moved[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(DEVICE, dtype if buffer.is_floating_point() else None))


def autocast(precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(DEVICE, torch.float16) if precision == "amp" else nullcontext()


def pass_layer(layer: MoELayer, hidden: torch.Tensor, watch: Watch, precision: str) -> list[torch.Tensor]:
    """Return the outputs, losses, metrics and gradients of a layer, as the first pass of an update."""
    layer.zero_grad()
    hidden.requires_grad_()
    with watch.recording(), layer.collector.collect() as records:
        with autocast(precision):
            output = layer(hidden)
        statistics = gate_statistics(records)
        losses = GateLoss()(statistics)
        sums = model_sums(records, statistics, losses, layer.layer_index + 1)
    gradients = [torch.ones_like(tensor) for tensor in (output, *losses)]  # they come from outside
    with watch.recording():
        torch.autograd.backward([output, *losses], gradients)
    return [output - hidden, *losses, sums, *(t.grad for t in (hidden, *layer.parameters()))]


def layer_alone(layer: MoELayer, on_cpu: MoELayer, watch: Watch, precision: str) -> dict[str, Any]:
    """Return the kernels of one pass, and its largest difference from the same in float32 on the CPU.

    The input is (20, 8, D), without padding. Differences are relative to the norm of each tensor.
    """
    dtype = layer.experts.sublayers[0].w1_NFD.dtype
    hidden = torch.randn(20, 8, layer.router.query_proj.in_features).to(dtype)
    torch.nn.init.normal_(on_cpu.experts.sublayers[0].w2_NDF, std=0.3)  # a new expert is the identity
    with torch.no_grad():
        for theirs, ours in zip(on_cpu.parameters(), layer.parameters(), strict=True):
            ours.copy_(theirs.to(dtype).to(DEVICE))
            theirs.copy_(theirs.to(dtype))
    before = watch.kernels.total()
    found = pass_layer(layer, hidden.to(DEVICE), watch, precision)
    kernels = watch.kernels.total() - before
    expected = pass_layer(on_cpu, hidden.float(), watch, "fp32")
    pairs = [(a.detach().to("cpu").double(), b.detach().double()) for a, b in zip(found, expected, strict=True)]
    return {"layer_kernels": kernels, "difference": max(float((a - b).norm() / b.norm()) for a, b in pairs)}


def main(precision: str, experts: int, folder: Path) -> None:
    libraries = set_up()
    torch.manual_seed(1)
    task, model, criterion = built(folder, experts)
    batch = collate(dictionary_of(), random_pairs(dictionary_of(), seed=1, size=8))
    inputs = {"encoder": "src_tokens", "decoder": "prev_output_tokens"}
    pad = task.source_dictionary.pad()
    watch = Watch()
    with Factories(), watch:
        on_cpu = deepcopy(model.moe_layers[0])
        move(model.train(), PRECISIONS[precision])
        fused_adam.FUSED_ADAMW_DEVICES |= {DEVICE}
        optimizer = fused_adam.SinglePassAdam(model.parameters(), lr=1e-3)
        for update in (0, 1):  # what is made once is made in the first
            optimizer.zero_grad()
            task.moec_model.collector.num_tokens = {
                stack: int((batch["net_input"][name] != pad).sum()) for stack, name in inputs.items()
            }
            sample = apply_to_sample(lambda tensor: tensor.to(DEVICE), batch)
            with watch.recording() if update else nullcontext():
                with autocast(precision):
                    loss, sample_size, log = criterion(model, sample)
                loss.backward()
                utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            step_waits = watch.waits.copy()
            with watch.recording() if update else nullcontext(), metrics.aggregate("train"):
                criterion.reduce_metrics([log])
        log_waits, step_kernels = watch.waits - step_waits, watch.kernels.total()
        layer = layer_alone(model.moe_layers[0], on_cpu, watch, precision)
    assert libraries  # they work as long as they are kept
    counters = {"waits": step_waits, "log_waits": log_waits, "mixed": watch.mixed, "failing": watch.failing}
    counted = {name: [[*key, n] for key, n in counter.items()] for name, counter in counters.items()}
    print(json.dumps(counted | layer | {"kernels": step_kernels}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the device needs Python's lock, and aborts a process whose Python has ended
