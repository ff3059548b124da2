"""What cannot work in a training, and what would be slow, found before it starts.

The configuration is the one that the ranks will have. Task, model and criterion are built as fairseq-train builds them,
so that their own checks are made, but the parameters take no memory.
"""

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch.distributed as dist
from fairseq import tasks, utils
from omegaconf import open_dict

from moec_fairseq.compat.versions import shapes_only
from moec_fairseq.launch.configuration import Configuration, check_data, complete
from moec_fairseq.moe.expert_parallel import Shard
from moec_fairseq.trainer import check_options
from moec_fairseq.util import machine
from moec_fairseq.util.files import whole_texts

OK, SLOW, WRONG = "ok", "slow", "wrong"
GIB = 1 << 30
# bytes that an optimizer keeps for each parameter, in float32; others keep two values
OPTIMIZER_STATE = {"sgd": 0, "nag": 4, "adagrad": 4}
# published updates: tokens of a batch, batches, GPUs
PUBLISHED = {
    **dict.fromkeys(("wmt14_en_de", "wmt16_en_de", "wmt14_en_fr"), (4096, 16, 8)),
    "iwslt14_de_en": (4096, 1, 1),
    **dict.fromkeys(("multi30k_en_de", "multi30k_en_fr"), (4096, 2, 1)),
    "roberta_pretraining": (8192, 16, 8),
}
# forms of the variance loss that grow with the square of the tokens of all processes
GROWING_FORMS = ("global", "intra", "intra_inter", "intra_inter_sorted")
VOCABULARY = 32_000  # assumed as long as there are no data
# whose data are a dictionary for each language, or one, and sentences
WITHOUT_DATA = ("translation", "masked_lm")
# whose data can be loaded as a whole, and say how long they are
TASKS = (*WITHOUT_DATA, "sentence_prediction")


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        state: OK; SLOW: it works, but could work better; WRONG: it cannot work.
        subject: what was checked, in a word.
        text: what was found and, unless it is OK, what to do about it; without a full stop.
    """

    state: str
    subject: str
    text: str


@dataclass(frozen=True)
class Job:
    """A training before it starts.

    Attributes:
        configuration: as it was given.
        own: KEY=VALUE that the launcher gives to all ranks.
        world_size: W, the processes of all machines.
        here: processes on each machine.
        gpus: that it uses of each machine.
    """

    configuration: Configuration
    own: Sequence[str]
    world_size: int
    here: int
    gpus: int

    @cached_property
    def config(self) -> Any:
        """All options of fairseq, as a rank has them."""
        return complete(self.configuration, self.own)

    @cached_property
    def memory(self) -> int | None:
        """Bytes of each GPU, or without GPUs of this machine; None: unknown."""
        return min((gpu.memory for gpu in machine.gpus()), default=None) if self.gpus else machine.memory()

    @property
    def update_freq(self) -> int:
        """Batches of each process in an update, of the first epoch."""
        return int(self.config.optimization.update_freq[0])

    @property
    def batch(self) -> tuple[int, str]:
        """Size of a batch, and in what."""
        dataset = self.config.dataset
        return (dataset.batch_size, "examples") if dataset.max_tokens is None else (dataset.max_tokens, "tokens")


def refuse(job: Job) -> None:
    """Raise ValueError if a training cannot work; it says the first reason."""
    for finding in findings(job):
        if finding.state == WRONG:
            raise ValueError(f"{finding.text}.")


def findings(job: Job) -> Iterator[Finding]:
    """Check everything that can be known before a training starts.

    Yields:
        what was found; checks that need what is wrong are left out.
    """
    yield _batch(job)
    if job.gpus:
        yield from _gpus(job)
    has_data = True
    try:
        check_data(job.configuration)
    except ValueError as error:
        yield _wrong("data", error)
        has_data = False
        if job.config.task._name not in WITHOUT_DATA:
            return
    with ExitStack() as stack:
        if not has_data:
            stack.enter_context(_stand_in_for_data(job.config.task))
        try:
            task = tasks.setup_task(job.config.task)
            with shapes_only():
                model = task.build_model(job.config.model)
                task.build_criterion(job.config.criterion)
            with open_dict(job.config):  # as the trainer does: fine-tuning takes some from its checkpoint
                job.config.model.update(task.moec_model.options if hasattr(task, "moec_model") else {})
            if job.world_size > 1 and getattr(job.config.model, "moe_expert_count", None):
                check_options(job.config)
        except (ValueError, AssertionError, FileNotFoundError, RuntimeError) as error:
            if isinstance(error, RuntimeError) or not str(error):  # it may look at values while it is built
                yield Finding(OK, "model", f"can only be checked by training ({error!r:.200})")
            else:
                yield _wrong("model", error)
            return
    shard = None
    if num_experts := getattr(job.config.model, "moe_expert_count", None):
        shard, found = _sharing(job, num_experts)
        yield found
        if shard is None:
            return
    sizes = Sizes.of(model, 1 if shard is None else shard.num_ranks)
    if shard is not None and shard.num_ranks > 1:
        yield _traffic(job, shard, model)
    epochs = math.inf
    if has_data and job.config.task._name in TASKS:
        yield from _dictionaries(job, task)
        try:
            yield from _lengths(job, task, model)
            epochs = most_epochs(job, task.dataset(job.config.dataset.train_subset))
        except (ValueError, FileNotFoundError) as error:
            yield _wrong("data", error)
    yield _memory(job, sizes, "" if has_data else f", assuming {VOCABULARY:,} subwords")
    yield _disk(job, sizes, epochs)


def _wrong(subject: str, error: Exception) -> Finding:
    return Finding(WRONG, subject, " ".join(str(error).split()).rstrip("."))


def _sharing(job: Job, num_experts: int) -> tuple[Shard | None, Finding]:
    """Return who has which experts, None if that cannot be, and whether clusters stay together."""
    try:
        shard = Shard(num_experts, job.world_size)
    except ValueError as error:
        return None, _wrong("experts", error)
    model = job.config.model
    clusters, own = model.moec_cluster_count, len(shard.experts)
    has = f"{num_experts} experts in {clusters} clusters, {own} on each of {shard.num_ranks} processes"
    if shard.num_ranks == 1:
        return shard, Finding(OK, "experts", f"{num_experts} experts in {clusters} clusters, all in one process")
    size = num_experts / clusters
    if own % size == 0:
        return shard, Finding(OK, "experts", f"{has}, no cluster on several")
    if model.moec_expert_dropout == 0:
        return shard, Finding(OK, "experts", f"{has}, clusters on several of them (without expert dropout no matter)")
    together = [w for w in range(1, job.world_size) if num_experts % w == 0 and num_experts // w % size == 0]
    return shard, Finding(
        SLOW,
        "experts",
        f"{has}, so that some clusters are on several, which expert dropout leaves with more or less to do; give "
        f"--processes {' or '.join(map(str, together[-3:]))}, or {shard.num_ranks} or more clusters "
        "(model.moec_cluster_count)",
    )


def _traffic(job: Job, shard: Shard, model: Any) -> Finding:
    """Say how much the ranks send each other: hidden states to their experts and back, and gradients likewise."""
    elsewhere = 1 - 1 / shard.num_ranks
    abroad = 1 - min(job.here, shard.num_ranks) / shard.num_ranks
    text = f"{elsewhere:.0%} of the tokens go to experts of other processes"
    if abroad > 0:
        text += f", {abroad:.0%} to other machines"
    size, unit = job.batch
    if unit == "tokens":
        dim = model.moe_layers[0].experts.sublayers[0].w1_NFD.shape[-1]
        trips = 8 if job.config.model.moec_token_shuffle else 4
        volume = trips * len(model.moe_layers) * size * dim * Bytes.of(job.config).in_model * elsewhere
        text += f"; each process sends about {volume / 1e6:,.0f} MB for a batch of {size:,} tokens"
    return Finding(OK, "traffic", text)


def _gpus(job: Job) -> Iterator[Finding]:
    """Say whether processes can send to each other, and whether the precision is the fast one."""
    common = job.config.common
    if job.world_size > 1 and not dist.is_nccl_available():
        yield Finding(WRONG, "NCCL", "this torch has no NCCL, by which GPUs send to each other; install one with CUDA")
    there = machine.gpus()
    has_bfloat16 = bool(there) and all(gpu.capability >= 8 for gpu in there)
    bfloat16, float16 = "common.fp16=false common.bf16=true", "common.fp16=true common.fp16_no_flatten_grads=true"
    if common.bf16 or common.memory_efficient_bf16:
        yield Finding(OK, "precision", "bfloat16")
    elif common.amp:
        yield Finding(OK, "precision", "mixed")
    elif not (common.fp16 or common.memory_efficient_fp16):
        yield Finding(SLOW, "precision", f"float32; give {bfloat16 if has_bfloat16 else float16}")
    elif has_bfloat16:
        yield Finding(SLOW, "precision", f"float16, which needs a loss scale; experts are faster with {bfloat16}")
    else:
        yield Finding(OK, "precision", "float16")


def _batch(job: Job) -> Finding:
    """Compare the size of an update with the published one, if the recipe has one."""
    size, unit = job.batch
    at_once = size * job.world_size
    now = at_once * job.update_freq
    shown = f"{size:,} {unit} x {job.update_freq} x {job.world_size} (update_freq, processes) = {now:,} in an update"
    published = PUBLISHED.get(job.configuration.path.stem)
    if published is None or unit != "tokens":
        return Finding(OK, "batch", shown)
    wanted = math.prod(published)
    advice = []
    if now != wanted:
        advice.append(f"optimization.update_freq=[{max(1, round(wanted / at_once))}]")
    criterion = job.config.criterion
    weight = published[0] * published[2] / at_once  # 1 with as many GPUs as published
    form = getattr(criterion, "moec_variance", None)
    if form in GROWING_FORMS and not math.isclose(criterion.moec_variance_wt, weight):
        advice.append(f"criterion.moec_variance_wt={weight:g} (the loss grows with the square of {at_once:,} tokens)")
    if not advice:
        return Finding(OK, "batch", f"{shown}, as published")
    return Finding(SLOW, "batch", f"{shown}, published with {wanted:,}; give {' '.join(advice)}")


@dataclass(frozen=True)
class Bytes:
    """What a parameter takes.

    Attributes:
        in_model: itself, as the model has it.
        in_training: itself, its gradient, the state of the optimizer, copies of them in float32, a moving average.
        in_checkpoint: in a file.
    """

    in_model: int
    in_training: int
    in_checkpoint: int

    @classmethod
    def of(cls, config: Any) -> "Bytes":
        """Return them for a configuration of fairseq, all of it."""
        common = config.common
        efficient = common.memory_efficient_fp16 or common.memory_efficient_bf16
        half = efficient or common.fp16 or common.bf16
        model = 2 if half else 4
        copies = 8 if half and not efficient else 0  # of parameter and gradient
        optimizer = OPTIMIZER_STATE.get(config.optimizer._name, 8)
        average = 4 if config.ema.store_ema else 0
        saved = 0 if config.checkpoint.no_save_optimizer_state else optimizer
        return cls(model, 2 * model + copies + optimizer + average, (model if efficient else 4) + saved + average)


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters that are trained.

    Attributes:
        shared: outside of the experts.
        experts: of all ranks together.
        ranks: that share them.
    """

    shared: int
    experts: int
    ranks: int

    @classmethod
    def of(cls, model: Any, ranks: int) -> "Sizes":
        """Count those of a model that has all experts."""
        experts = sum(p.numel() for layer in getattr(model, "moe_layers", ()) for p in layer.experts.parameters())
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return cls(trained - experts, experts, ranks)

    @property
    def of_rank(self) -> int:
        """Those that a rank trains."""
        return self.shared + self.experts // self.ranks


def _memory(job: Job, sizes: Sizes, note: str) -> Finding:
    """Compare what parameters take in training with the memory that there is; activations are not known before."""
    size = Bytes.of(job.config)
    sharing = 1 if job.gpus else job.here  # processes that share a memory
    training = sharing * sizes.of_rank * size.in_training
    of_each = f" of each of {sharing} processes" if sharing > 1 else ""
    text = (
        f"{_gib(training)} for {sizes.of_rank:,} parameters{of_each}, {size.in_training} bytes each with gradient and "
        f"{job.config.optimizer._name}"
    )
    gathered = 0
    if sizes.ranks > 1 and job.config.model.moec_evaluation == "gathered":
        gathered = sharing * sizes.experts * size.in_model
        text += f", {_gib(gathered)} more for all experts at validation"
    text += f", and activations{note}"
    if job.memory is None:
        return Finding(OK, "memory", f"{text}; how much there is is not known")
    text += f"; there are {_gib(job.memory)}{' on each GPU' if job.gpus else ''}"
    if training + gathered <= job.memory:
        return Finding(OK, "memory", text)
    if training <= job.memory:
        return Finding(WRONG, "memory", f"{text}; give model.moec_evaluation=exchanged")
    return Finding(
        WRONG, "memory",
        f"{text}; give fewer experts (model.moe_expert_count), a smaller model, or more GPUs or machines, which share "
        "the experts",
    )  # fmt: skip


def _gib(size: float) -> str:
    return f"{size / GIB:,.1f} GiB" if size >= 0.1 * GIB else f"{size / (1 << 20):,.1f} MiB"


@contextmanager
def _stand_in_for_data(task: Any) -> Iterator[None]:
    """Let a task find dictionaries of a usual size where its data will be."""
    with TemporaryDirectory() as folder, open_dict(task):
        names = ["dict.txt"] + [f"dict.{task.get(f'{side}_lang') or side}.txt" for side in ("source", "target")]
        with whole_texts([Path(folder, name) for name in names]) as files:
            for file in files:
                file.writelines(f"{number} 1\n" for number in range(VOCABULARY))
        task.data = folder
        if task._name == "translation":
            task.source_lang, task.target_lang = (task.get(f"{side}_lang") or side for side in ("source", "target"))
        yield


def _dictionaries(job: Job, task: Any) -> Iterator[Finding]:
    """Say whether the languages share their subwords, and the model its embeddings."""
    shared = getattr(job.config.model, "share_all_embeddings", None)
    if shared is None or task.target_dictionary is None:
        return
    number = len(task.source_dictionary)
    if task.source_dictionary != task.target_dictionary:
        yield Finding(OK, "dictionary", f"{number:,} source and {len(task.target_dictionary):,} target subwords")
    elif shared:
        yield Finding(OK, "dictionary", f"joint, {number:,} subwords, whose embeddings are shared")
    else:
        yield Finding(
            SLOW,
            "dictionary",
            f"joint, {number:,} subwords, but source and target have embeddings of their own; give "
            "model.share_all_embeddings=true",
        )


def _lengths(job: Job, task: Any, model: Any) -> Iterator[Finding]:
    """Load the data, and compare their lengths with what model and batches take, as fairseq will.

    Raises:
        ValueError, FileNotFoundError: a part is missing.
    """
    dataset = job.config.dataset
    own = (task.max_positions(), model.max_positions())
    splits = [dataset.train_subset, *([] if dataset.disable_validation else dataset.valid_subset.split(","))]
    for split in splits:
        training = split == dataset.train_subset
        task.load_dataset(split, combine=training or dataset.combine_valid_subsets, epoch=1)
        examples = task.dataset(split)
        positions = utils.resolve_max_positions(*own, *([dataset.max_tokens] if training else []))
        indices = examples.ordered_indices()
        kept, ignored = examples.filter_indices_by_size(indices, positions)
        longest = _lengths_of(examples).max(axis=0).tolist()
        number = len(kept) + len(ignored)
        text = f"{split}: {number:,} examples, the longest of {' and '.join(map(str, longest))}"
        limits = " and ".join(map(str, positions if isinstance(positions, Sequence) else [positions]))
        if not len(ignored):
            yield Finding(OK, "lengths", f"{text} subwords, positions for {limits}")
        elif not len(kept):
            yield Finding(
                WRONG, "lengths", f"{text} subwords, but there are positions for {limits} only, fewer than any needs"
            )
        elif training or dataset.skip_invalid_size_inputs_valid_test:
            yield Finding(
                SLOW, "lengths",
                f"{text} subwords, but there are positions for {limits}: {len(ignored):,} are left out; give more "
                "(task.max_source_positions, …) or prepare the data with --max-length",
            )  # fmt: skip
        else:
            yield Finding(
                WRONG, "lengths",
                f"{text} subwords, but there are positions for {limits}: {len(ignored):,} would end the training at "
                "its first validation; give dataset.skip_invalid_size_inputs_valid_test=true, or more positions",
            )  # fmt: skip


def _lengths_of(examples: Any) -> Any:
    """Return the length of each example in subwords, on one side or two: (examples, sides)."""
    return np.asarray(examples.sizes).reshape(len(examples), -1)


def most_epochs(job: Job, examples: Any) -> float:
    """Return the most epochs that a training can have; inf where nothing limits them."""
    size, unit = job.batch
    content = len(examples) if unit == "examples" else int(_lengths_of(examples).max(axis=1).sum())
    updates = max(1, content // (size * job.update_freq * job.world_size))  # in an epoch, if no batch had padding
    options = job.config.optimization
    by_updates = math.ceil(options.max_update / updates) if options.max_update > 0 else math.inf
    return min(by_updates, options.max_epoch if options.max_epoch > 0 else math.inf)


def kept_checkpoints(config: Any, epochs: float) -> float:
    """Return how many checkpoints there are at once, at most, the one included that is being written.

    Args:
        config: of fairseq, all of it.
        epochs: of the training.
    """
    checkpoint = config.checkpoint
    if checkpoint.no_save:
        return 0

    def kept(made: float, limit: int) -> float:
        number = min(made, limit) if limit > 0 else made
        return number if number == math.inf else int(number)

    of_epochs = 0 if checkpoint.no_epoch_checkpoints else epochs / checkpoint.save_interval
    number = kept(of_epochs, checkpoint.keep_last_epochs)
    if checkpoint.save_interval_updates > 0:
        updates = (config.optimization.max_update or math.inf) / checkpoint.save_interval_updates
        number += kept(updates, checkpoint.keep_interval_updates)
    best = 0 if config.dataset.disable_validation else 1 + max(0, checkpoint.keep_best_checkpoints)
    return number + best + (not checkpoint.no_last_checkpoints) + 1


def _disk(job: Job, sizes: Sizes, epochs: float) -> Finding:
    """Compare the size of the checkpoints that are kept with the space on the disk."""
    files = job.world_size if sizes.ranks > 1 else 1
    size = files * sizes.of_rank * Bytes.of(job.config).in_checkpoint
    folder = Path(job.config.checkpoint.save_dir)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    room = shutil.disk_usage(there).free + sum(path.stat().st_size for path in folder.glob("checkpoint*.pt"))
    number = kept_checkpoints(job.config, epochs)
    text = f"{_gib(room)} for checkpoints of {_gib(size)} each in {folder}"
    fit = room // size
    of_updates = job.config.checkpoint.save_interval_updates > 0
    limit = f"checkpoint.keep_last_epochs={max(1, fit - 3 - of_updates)}"  # best, last and the one being written, too
    limit += " checkpoint.keep_interval_updates=1" if of_updates else ""
    if number == math.inf:
        return Finding(SLOW, "disk", f"{text}, of which all are kept, and {fit:,} fit; give {limit}")
    if number * size > room:
        return Finding(
            WRONG, "disk",
            f"{text}, of which up to {number:,.0f} are kept, and {fit:,} fit; make room, or give {limit}, or another "
            "checkpoint.save_dir",
        )  # fmt: skip
    return Finding(OK, "disk", f"{text}, of which up to {number:,.0f} are kept")
