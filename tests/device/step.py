"""One training step on the fake device, in a process of its own: python -m tests.device.step PRECISION EXPERTS FOLDER.

Prints as JSON what ``Watch`` has counted, and the kernels of one layer, losses and metrics included. The step is that
of fairseq's trainer: forward, backward, clip, update; then the log.
"""

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
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


def kernels_of_layer(layer: MoELayer, watch: Watch, precision: str) -> int:
    """Return the kernels of forward and backward of a layer with its losses and metrics, (20, 8, D), no padding.

    Gradients come from outside, and are the first of an update: there are none yet to which they would be added.
    """
    dtype = layer.experts.sublayers[0].w1_NFD.dtype
    hidden = torch.randn(20, 8, layer.router.query_proj.in_features).to(DEVICE, dtype).requires_grad_()
    layer.zero_grad()
    before = watch.kernels.total()
    with watch.recording(), layer.collector.collect() as records:
        with autocast(precision):
            output = layer(hidden)
        statistics = gate_statistics(records)
        losses = GateLoss()(statistics)
        model_sums(records, statistics, losses, layer.layer_index + 1)
    gradients = [torch.ones_like(tensor) for tensor in (output, *losses)]
    with watch.recording():
        torch.autograd.backward([output, *losses], gradients)
    return watch.kernels.total() - before


def main(precision: str, experts: int, folder: Path) -> None:
    libraries = set_up()
    torch.manual_seed(1)
    task, model, criterion = built(folder, experts)
    batch = collate(dictionary_of(), random_pairs(dictionary_of(), seed=1, size=8))
    inputs = {"encoder": "src_tokens", "decoder": "prev_output_tokens"}
    pad = task.source_dictionary.pad()
    watch = Watch()
    with Factories(), watch:
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
        layer_kernels = kernels_of_layer(model.moe_layers[0], watch, precision)
    assert libraries  # they work as long as they are kept
    counters = {"waits": step_waits, "log_waits": log_waits, "mixed": watch.mixed, "failing": watch.failing}
    counted = {name: [[*key, n] for key, n in counter.items()] for name, counter in counters.items()}
    print(json.dumps(counted | {"kernels": step_kernels, "layer_kernels": layer_kernels}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # autograd's thread for the device needs Python's lock, and aborts a process whose Python has ended
