"""Real training steps of a small model, on one rank of a job."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from fairseq.data.iterators import ShardedIterator

from moec_fairseq.criterions.router_losses import SUMS
from moec_fairseq.moe.routing_metrics import averages, by_name
from tests.batches import Pair, collate, random_pairs

SENTENCES = 24
EXACT = ("--moe-expert-count", "4", "--moec-cluster-count", "2")


def even(world_size):
    return [SENTENCES * rank // world_size for rank in range(world_size + 1)]


def arguments(folder: Path, world_size: int, rank: int, *flags: str) -> list[str]:
    return [
        str(folder), "--user-dir", "moec_fairseq", "--task", "translation", "-s", "src", "-t", "tgt", "--cpu",
        "--arch", "moec_transformer_tiny", "--dropout", "0", "--attention-dropout", "0", "--activation-dropout", "0",
        "--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam",
        "--adam-betas", "(0.9, 0.98)", "--lr", "0.003", "--clip-norm", "0.5", "--max-tokens", "1000", "--seed", "3",
        # at the kink of ReLU, rounding decides between two gradients
        "--activation-fn", "gelu", "--moec-expert-dropout", "0",
        "--distributed-world-size", str(world_size), "--distributed-rank", str(rank),
        "--distributed-no-spawn", "--ddp-backend", "legacy_ddp", "--distributed-backend", "gloo", *flags,
    ]  # fmt: skip


def build(folder: Path, world_size: int, rank: int, *flags: str) -> tuple[Any, Any]:
    """Return task and trainer as fairseq-train makes them."""
    import moec_fairseq  # noqa: F401, I001  (puts our trainer in the place of fairseq's)
    from fairseq import options, tasks
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed import utils as distributed_utils
    from fairseq.trainer import Trainer

    parser = options.get_training_parser()
    args = options.parse_args_and_arch(parser, input_args=arguments(folder, world_size, rank, *flags))
    config = convert_namespace_to_omegaconf(args)
    if world_size > 1:
        distributed_utils._GLOBAL_GROUP = torch.distributed.group.WORLD
    torch.manual_seed(config.common.seed)
    task = tasks.setup_task(config.task)
    model = task.build_model(config.model)
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.moe_layers:  # new experts are the identity, whose gradients are too simple
            for block in layer.experts.sublayers:
                shard = range(len(block.w2_NDF)) if world_size == 1 else layer.experts.groups.shard.experts
                everyone = 0.1 * torch.randn(
                    layer.router.clusters.num_experts, *block.w2_NDF.shape[1:], generator=source
                )
                block.w2_NDF.copy_(everyone[shard.start : shard.stop])
    trainer = Trainer(config, task, model, task.build_criterion(config.criterion))
    return task, trainer


def batch(task: Any, pairs: list[Pair]) -> dict[str, Any]:
    return collate(task.source_dictionary, pairs)


def corpus(task: Any, update: int, size: int) -> list[Pair]:
    return random_pairs(task.source_dictionary, update, size)


def everyones_experts(trainer: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return parameters or gradients by name, those of experts of all ranks together."""
    groups = trainer.get_model().groups
    return {
        name: groups.gather(value) if groups is not None and ".experts." in name else value.clone()
        for name, value in values.items()
    }


def epochs(task: Any, world_size: int, update_freq: int, batches: int) -> list[list[tuple[list[Pair], ...]]]:
    """Return the updates of three epochs of uneven batches: micro-batches of each, as the ranks share them.

    As fairseq does: a rank that has no batch left, while others have one, gets none.
    """
    updates = []
    for epoch in range(3):
        sizes = [(3 * batch + epoch) % 5 + 1 for batch in range(batches)]
        made = [corpus(task, 100 * epoch + batch, size) for batch, size in enumerate(sizes)]
        shards = [list(ShardedIterator(made, world_size, rank, fill_value=[])) for rank in range(world_size)]
        steps = list(zip(*shards, strict=True))
        updates += [steps[start : start + update_freq] for start in range(0, len(steps), update_freq)]
    return updates


def train_epochs(
    rank: int, world_size: int, folder: Path, flags: tuple[str, ...], of_ranks: int, update_freqs: tuple[int, ...]
) -> list[dict[str, Any]]:
    """Train three epochs with each ``--update-freq``, in float64; return logs and parameters of every update.

    ``of_ranks`` share each micro-batch; one process takes it whole.
    """
    torch.set_default_dtype(torch.float64)
    try:
        return _train_epochs(*build(folder, world_size, rank, *flags), rank, world_size, of_ranks, update_freqs)
    finally:
        torch.set_default_dtype(torch.float32)


def _train_epochs(
    task: Any, trainer: Any, rank: int, world_size: int, of_ranks: int, update_freqs: tuple[int, ...]
) -> list[dict[str, Any]]:
    trainer._dummy_batch = batch(task, corpus(task, 0, 2))
    found: list[dict[str, Any]] = []
    reduce_and_log_stats = trainer._reduce_and_log_stats

    def reduce(logs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
        # what the trainer returns is rounded
        summed = {name: sum(torch.as_tensor(log[name]) for log in logs) for name in logs[0]}
        routing = averages(by_name(summed.pop(SUMS))) if SUMS in summed else {}
        found.append({**summed, **routing, "of the update": sample_size})
        return reduce_and_log_stats(logs, sample_size, grad_norm)

    trainer._reduce_and_log_stats = reduce
    trainer.clip_grad_norm = lambda _: torch.ones(())  # fairseq's norm does not take float64
    for update in (update for freq in update_freqs for update in epochs(task, of_ranks, freq, 2 * of_ranks + 1)):
        shares = [micro_batch[rank] if world_size > 1 else sum(micro_batch, []) for micro_batch in update]
        trainer.train_step([batch(task, share) if share else None for share in shares])
        parameters = everyones_experts(trainer, dict(trainer.get_model().named_parameters()))
        found[-1] |= {name: value.detach().clone() for name, value in parameters.items()}
    return [{name: torch.as_tensor(value).double() for name, value in update.items()} for update in found]


def train(rank: int, world_size: int, folder: Path, flags: tuple[str, ...], options: Namespace) -> dict[str, Any]:
    """Train some updates; return losses, norms, the gradients of the first update and the parameters of the last.

    ``options``: updates; update_freq; split, the share of each rank in the sentences of a micro-batch, as borders.
    """
    task, trainer = build(folder, world_size, rank, *flags, "--update-freq", str(options.update_freq))
    found: dict[str, Any] = {"loss": [], "norm": []}
    optimizer_step = trainer.optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        if "gradients" not in found:
            model = trainer.get_model()
            found["gradients"] = everyones_experts(
                trainer, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            )
        return optimizer_step(*args, **kwargs)

    clip_grad_norm = trainer.clip_grad_norm

    def clip(*args: Any) -> Any:
        norm = clip_grad_norm(*args)
        found["norm"].append(float(norm))
        return norm

    reduce_and_log_stats = trainer._reduce_and_log_stats

    def reduce(logs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
        # what the trainer returns is rounded
        found["loss"].append(float(sum(log["loss"] for log in logs)) / float(sample_size) / math.log(2))
        return reduce_and_log_stats(logs, sample_size, grad_norm)

    trainer.optimizer.step, trainer.clip_grad_norm, trainer._reduce_and_log_stats = step, clip, reduce
    if world_size > 1 and "pytorch_ddp" in flags:
        assert isinstance(trainer.model.module, torch.nn.parallel.DistributedDataParallel)
    for update in range(options.updates):
        samples = []
        for micro in range(options.update_freq):
            sentences = corpus(task, 100 * update + micro, SENTENCES)
            if world_size > 1:
                sentences = sentences[options.borders[rank] : options.borders[rank + 1]]
            samples.append(batch(task, sentences) if sentences else None)
        if any(sample is None for sample in samples):
            trainer._dummy_batch = batch(task, corpus(task, 0, 2))
        trainer.train_step(samples)
    found["parameters"] = everyones_experts(trainer, dict(trainer.get_model().named_parameters()))
    return {
        key: value if isinstance(value, list) else {n: t.detach() for n, t in value.items()}
        for key, value in found.items()
    }
