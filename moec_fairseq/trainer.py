"""fairseq's trainer, for experts that are spread over ranks and trainings that resume as if they had never stopped.

``compat`` puts ``MoECTrainer`` in the place of fairseq's ``Trainer``.
"""

import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.optim.lr_scheduler.reduce_lr_on_plateau import ReduceLROnPlateauLRSchedule
from fairseq.trainer import Trainer
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from moec_fairseq.checkpoint.names import rank_suffix
from moec_fairseq.checkpoint.state import OF_THE_MODEL, differing, load_if_readable
from moec_fairseq.compat.modules import seed_layer_drop
from moec_fairseq.compat.versions import attention_as_matmul, gloo_takes_bfloat16
from moec_fairseq.moe.expert_parallel import sum_over_ranks

logger = logging.getLogger(__name__)

# fairseq's Adam and ours, by what a checkpoint calls them
ADAMS = ("FairseqAdam", "FusedAdam")
# what reduce_lr_on_plateau counts
PLATEAU_COUNTERS = ("num_bad_epochs", "cooldown_counter")


class MoECTrainer(Trainer):
    """The trainer of all models.

    Attributes:
        is_moec: whether the model is one of this plug-in.
        shares_experts: whether this process has some of the experts only.
        source: the file to load instead of the one that fairseq asks for.
        early_stopping: what fairseq counts for ``--patience``: ``best`` and ``num_runs``.
        run: what the training calls itself in its checkpoints, the same on all ranks, and after it is resumed.
    """

    def __init__(self, cfg: Any, task: Any, model: Any, criterion: Any, quantizer: Any = None) -> None:
        check_started_together(cfg.distributed_training, os.environ)
        # fairseq's help says so of these options, but only its command line does it, not fairseq-hydra-train;
        # float16 is for GPUs: the same YAML file trains in float32 on a CPU
        cfg.common.bf16 |= cfg.common.memory_efficient_bf16
        cfg.common.fp16 |= cfg.common.memory_efficient_fp16 and not cfg.common.cpu
        self.is_moec = hasattr(task, "moec_model")
        if self.is_moec:
            with open_dict(cfg):  # a checkpoint has all options, wherever they come from
                cfg.model.update(task.moec_model.options)
        self.shares_experts = any(hasattr(parameter, "expert") for parameter in model.parameters())
        if self.shares_experts:
            check_options(cfg)
            _save_on_every_rank(cfg)
        super().__init__(cfg, task, model, criterion, quantizer)
        self.source: Path | None = None
        self.run = uuid4().hex
        self.early_stopping = _early_stopping()
        self._stopping_before: dict[str, Any] = {}
        self._own_losses: list[Any] = []
        self._counted: list[tuple[Any, dict[str, Any]]] = []
        task.train_step = self._counting(task.train_step)
        self._loaded: dict[str, Tensor] = {}
        if cfg.common.amp and not self.cuda:
            _mix_precision_on_cpu(self._criterion)
        if cfg.common.bf16 or cfg.common.fp16:
            self._note_what_is_loaded()

    # Experts on several ranks

    def _prepare_sample(self, sample: Any, is_dummy: bool = False) -> tuple[Any, bool]:
        """Tell the MoE layers of a dummy batch.

        A rank that has run out of data gets one, so that ranks stay in step; no expert and no router loss of any rank
        must see its tokens.
        """
        num_tokens = self._count_tokens(sample)
        sample, is_dummy_batch = super()._prepare_sample(sample, is_dummy)
        self._mark_dummy(is_dummy_batch)
        if self.is_moec:
            self.task.moec_model.collector.num_tokens = num_tokens
        return sample, is_dummy_batch

    def _count_tokens(self, sample: Any) -> dict[str, int]:
        """Return the tokens of each stack that are not padding, counted before the batch goes to a GPU."""
        if not (self.is_moec and self.cuda and sample):
            return {}
        inputs = {"encoder": "src_tokens", "decoder": "prev_output_tokens"}
        net_input = sample.get("net_input", {})  # tasks that rank sentences have several
        found = {stack: net_input.get(name) for stack, name in inputs.items()}
        pad = self.task.source_dictionary.pad()
        return {stack: int((tokens != pad).sum()) for stack, tokens in found.items() if tokens is not None}

    def _mark_dummy(self, is_dummy: bool) -> None:
        if self.is_moec:
            self.task.moec_model.collector.is_dummy = is_dummy

    def train_step(self, samples: Any, raise_oom: bool = False) -> Any:
        """Make an update; all ranks fail together.

        fairseq leaves out a batch that is too large for the memory of this rank, while the others would wait in an
        all-to-all forever. Gradients of one rank that are not finite are everybody's: all ranks name it.
        """
        self._stopping_before = dict(self.early_stopping)
        self._counted = []
        self._own_losses = []  # not those of the last update, which may have been skipped, or of a validation
        try:
            return super().train_step(samples, raise_oom or self.shares_experts)
        except FloatingPointError as error:
            if not self.shares_experts:
                raise
            failed = torch.zeros(dist.get_world_size())
            failed[dist.get_rank()] = not all(math.isfinite(loss) for loss in self._own_losses)
            ranks = sum_over_ranks(failed.to(self.device)).nonzero().flatten().tolist()
            whose = f"the loss of rank {', '.join(map(str, ranks))}" if ranks else "no loss, but a gradient"
            message = f"in update {self.get_num_updates() + 1} {whose} was not finite; {error}"
            raise FloatingPointError(message) from error
        finally:
            self._counted = []
            self._mark_dummy(False)
            if self.is_moec:
                self.task.moec_model.collector.num_tokens = {}

    def _counting(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the task's ``train_step``, of which this keeps the sample size and the logs of batches that count."""

        def counting(*inputs: Any, ignore_grad: bool = False, **options: Any) -> Any:
            loss, sample_size, log = step(*inputs, ignore_grad=ignore_grad, **options)
            if not ignore_grad:
                self._counted.append((sample_size, log))
            return loss, sample_size, log

        return counting

    def _aggregate_logging_outputs(self, logs: list[dict[str, Any]], *sums: Any, ignore: bool = False) -> Any:
        """Add up sample sizes and logs of all ranks: those of all batches of an update but dummy ones.

        fairseq asks only whether the last batch of this rank is a dummy: its others, whose gradients are there, would
        not count. Keeps the losses of this rank; ``train_step`` reads them, which waits for a GPU, only when something
        fails.
        """
        self._own_losses = [log["loss"] for log in logs if "loss" in log]
        if self._counted:
            sizes, real = zip(*self._counted, strict=True)
            return super()._aggregate_logging_outputs(list(real), sum(sizes), *sums[1:])
        return super()._aggregate_logging_outputs(logs, *sums, ignore=ignore)

    def valid_step(self, sample: Any, raise_oom: bool = False) -> Any:
        """Validate with a batch, once where ranks share experts.

        fairseq tries a batch again that was too large for the memory, but the other ranks have gone on: its experts and
        tokens would arrive twice.
        """
        try:
            return super().valid_step(sample, raise_oom or self.shares_experts)
        finally:
            self._mark_dummy(False)

    def clip_grad_norm(self, clip_norm: float) -> Any:
        """Complete the gradients of experts, then clip by the norm of shared parameters and the experts of all ranks.

        fairseq leaves parameters marked ``expert`` out of the norm, but scales them by it; the norm of the same batch
        would depend on the number of ranks.
        """
        if self.is_moec and self.task.moec_model.groups is not None:
            self.task.moec_model.groups.add_replicas(self.get_model().parameters())
        with_experts = self._with_experts if self.shares_experts else None
        if with_experts is None and not self.cuda:
            with_experts = self._on_its_device
        if self.cfg.common.amp and not self.cuda:
            # past AMPOptimizer, which does not scale there, and would step with gradients that are not finite
            norm = self.optimizer.fp32_optimizer.clip_grad_norm(clip_norm, with_experts)
            if not torch.isfinite(norm):
                raise FloatingPointError("gradients are Nan/Inf")
            return norm
        if with_experts is None:
            return super().clip_grad_norm(clip_norm)
        return self.optimizer.clip_grad_norm(clip_norm, with_experts)

    def _on_its_device(self, norm: Tensor) -> Tensor:
        """Return a norm where the gradients are; with ``--cpu``, fairseq computes it on a GPU, where there is one."""
        return norm.to(self.device)

    def _check_grad_norms(self, grad_norm: Tensor) -> None:
        """Check that all ranks have the same norm; fairseq takes one that is not finite for a difference."""
        try:
            super()._check_grad_norms(grad_norm)
        except FloatingPointError:
            if torch.isfinite(self._grad_norm_buf).all():
                raise
            raise FloatingPointError("gradients are Nan/Inf") from None

    def _with_experts(self, norm: Tensor) -> Tensor:
        """Return the norm of shared parameters and the experts of all ranks, given that of shared parameters."""
        # the mark is the number of ranks that hold a replica
        norm = self._on_its_device(norm)
        squares = [norm.new_zeros(())] + [
            parameter.grad.float().square().sum() / parameter.expert
            for parameter in self.optimizer.params
            if hasattr(parameter, "expert") and parameter.grad is not None
        ]
        return (norm.float().square() + sum_over_ranks(torch.stack(squares).sum())).sqrt()

    def _set_seed(self) -> None:
        super()._set_seed()
        if self.is_moec:
            seed_layer_drop(self.get_model(), self.cfg.common.seed, self.get_num_updates())

    # Precision: with --bf16 and --fp16 the optimizer keeps a copy of each parameter in float32, of which the model has
    # the rounded value. fairseq saves the rounded ones, and would resume from them.

    def _copies(self) -> dict[int, Tensor]:
        """Return the copies that the optimizer keeps in float32, by the ``id`` of the parameter."""
        optimizer = self.optimizer
        if not isinstance(optimizer, FP16Optimizer) or optimizer.has_flat_params:
            return {}
        return {id(p): copy for p, copy in zip(optimizer.fp16_params, optimizer.fp32_params, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return the content of a checkpoint, with parameters as the optimizer has them, and all that is counted."""
        saved = super().state_dict()
        saved["extra_state"]["run"] = self.run
        copies = self._copies()
        for name, parameter in self.get_model().state_dict(keep_vars=True).items():
            if id(parameter) in copies:
                saved["model"][name] = copies[id(parameter)].data
        if isinstance(self.lr_scheduler, ReduceLROnPlateauLRSchedule):
            counted = vars(self.lr_scheduler.lr_scheduler)
            saved["optimizer_history"][-1]["lr_scheduler_state"] |= {name: counted[name] for name in PLATEAU_COUNTERS}
        return saved

    def _note_what_is_loaded(self) -> None:
        """Keep the parameters of a checkpoint until the optimizer's copies are made of them."""
        model = self.get_model()

        def note(module: Any, state_dict: dict[str, Tensor], *_: Any) -> None:
            if module is model:  # not its moving average, which has inherited this
                self._loaded = dict(state_dict)

        model._register_load_state_dict_pre_hook(note, with_module=True)

    def _build_optimizer(self) -> None:
        """Build the optimizer, whose copies are of what was loaded, not rounded, and marked like the parameters.

        fairseq resumes only with an optimizer of the same name, but the state of ``adam`` is that of ``fused_adam``.
        """
        super()._build_optimizer()
        if self.cfg.common.amp and not self.cuda:
            self.optimizer._grad_scaler = torch.cuda.amp.GradScaler(enabled=False)  # also where there is a GPU
        name, last = type(self.optimizer).__name__, (self._optim_history or [{}])[-1]
        if name in ADAMS and last.get("optimizer_name") in ADAMS:
            last["optimizer_name"] = name
        copies = self._copies()
        for name, parameter in self.get_model().state_dict(keep_vars=True).items():
            if (copy := copies.get(id(parameter))) is None:
                continue
            if hasattr(parameter, "expert"):
                copy.expert = parameter.expert  # type: ignore[attr-defined]  # fairseq's mark is no number of ranks
            loaded = self._loaded.get(name)
            if loaded is not None and torch.equal(loaded.to(parameter), parameter.data):  # it has not changed since
                copy.data.copy_(loaded)
        self._loaded = {}

    # Resuming

    def load_checkpoint(
        self,
        filename: str,
        reset_optimizer: bool = False,
        reset_lr_scheduler: bool = False,
        optimizer_overrides: Any = None,
        reset_meters: bool = False,
    ) -> Any:
        """Load a checkpoint; warn if the training has other settings than the checkpoint's.

        fairseq resumes from whatever checkpoint is in ``--save-dir``, without a word about the options that were given
        this time; who tries one after the other gets a model that is half of this and half of that.
        """
        filename = str(self.source or filename)
        if self.is_moec and not reset_optimizer:
            now = OmegaConf.to_container(self.cfg, resolve=True, enum_to_str=True)  # as fairseq saves it
            saved = load_if_readable(Path(filename))
            if changed := differing(saved.get("cfg") or {}, now, OF_THE_MODEL) if saved else []:
                logger.warning(
                    "%s was trained with %s; for a model of its own give another --save-dir (checkpoint.save_dir).",
                    filename,
                    ", ".join(f"{name}={before} (now {after})" for name, before, after in changed),
                )
        extra_state = super().load_checkpoint(
            filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters
        )
        plateau = isinstance(self.lr_scheduler, ReduceLROnPlateauLRSchedule)
        if plateau and self.get_num_updates() > 0 and not reset_lr_scheduler:
            saved = self._optim_history[-1]["lr_scheduler_state"]
            counted = {name: saved[name] for name in PLATEAU_COUNTERS if name in saved}
            vars(self.lr_scheduler.lr_scheduler).update(counted)
        return extra_state

    def save_checkpoint(self, filename: str, extra_state: dict[str, Any]) -> Any:
        """Save a checkpoint, with what fairseq counts outside of the trainer; each rank its own ``crash.pt``.

        fairseq counts for ``--patience`` in attributes of a function, and the updates since an overflow in the loss
        scaler, and forgets both when the process ends. A validation that is made only because the process ends does not
        count: the undisturbed training would not make it.
        """
        if "train_iterator" not in extra_state:  # crash.pt, which all ranks write
            if self.shares_experts:
                filename = filename.removesuffix(".pt") + self.checkpoint_suffix + ".pt"
        elif self.cfg.checkpoint.patience > 0:
            is_due = self._is_validation_due(extra_state["train_iterator"])
            stopping = self.early_stopping if is_due else self._stopping_before
            if "best" in stopping:
                extra_state["patience"] = {"best": stopping["best"], "runs": stopping["num_runs"]}
        extra_state |= self._loss_scaler_state()
        return super().save_checkpoint(filename, extra_state)

    def _loss_scaler_state(self) -> dict[str, Any]:
        """Return the counts of what chooses the loss scale of fp16, or of amp on a GPU, and the scale of the latter."""
        scaler = getattr(self.optimizer, "scaler", None)
        if isinstance(scaler, DynamicLossScaler):  # its other attributes are options
            return {"loss_scaler": {name: count for name, count in vars(scaler).items() if name.startswith("_")}}
        state = {} if scaler is None else scaler.state_dict()  # of torch's, empty on a CPU
        return {"loss_scaler": state} if state else {}

    def _load_loss_scaler_state(self, state: Mapping[str, Any]) -> None:
        scaler = getattr(self.optimizer, "scaler", None)
        if isinstance(scaler, DynamicLossScaler):
            vars(scaler).update({name: count for name, count in state.items() if name in vars(scaler)})
        elif scaler is not None and scaler.is_enabled() and "scale" in state:  # not of a training with fp16
            scaler.load_state_dict(state)

    def _is_validation_due(self, iterator: Mapping[str, Any]) -> bool:
        """Whether an undisturbed training would validate now, too, and not only one that is about to end here."""
        dataset, checkpoint, updates = self.cfg.dataset, self.cfg.checkpoint, self.get_num_updates()

        def is_due(interval: int) -> bool:
            return interval > 0 and updates % interval == 0

        if is_due(dataset.validate_interval_updates):
            return True
        if iterator["iterations_in_epoch"] == 0:
            return (iterator["epoch"] - 1) % dataset.validate_interval == 0
        return is_due(checkpoint.save_interval_updates)

    def get_train_iterator(self, epoch: int, combine: bool = True, load_dataset: bool = True, **options: Any) -> Any:
        """Load the data, and put them into batches, as in the first epoch of the training.

        fairseq does both once in a process, with ``--seed`` and the number of that process's first epoch, so that a
        training which resumes in its second epoch has other batches. Data in several folders are loaded in each epoch,
        in every training.
        """
        if load_dataset and epoch > 1 and not self.task.has_sharded_data("train"):
            super().get_train_iterator(1, combine, load_dataset, **options)
            # before there are workers, which keep the number that the dataset has then, and draw masks by it
            self.task.dataset(self.cfg.dataset.train_subset).set_epoch(epoch)
            load_dataset = False
        return super().get_train_iterator(epoch, combine, load_dataset, **options)

    def resume(self, extra_state: Mapping[str, Any]) -> None:
        """Continue where the loaded training stopped, beyond what fairseq loads; stop at once if it was finished.

        fairseq gives a training that is restarted the whole patience again. One that was finished makes one more
        update, or the epochs of that patience, and overwrites its last checkpoints. And the learning rate does not hear
        of the last validation of an epoch, because checkpoints are written between the two.
        """
        iterator, cfg, updates = extra_state["train_iterator"], self.cfg, self.get_num_updates()
        self.run = extra_state.get("run", self.run)
        if iterator["iterations_in_epoch"] == 0:
            loss = extra_state["val_loss"] if self._is_validation_due(iterator) else None
            self.lr_step(iterator["epoch"] - 1, loss)
        self._load_loss_scaler_state(extra_state.get("loss_scaler", {}))
        if cfg.ema.store_ema:
            # counts from 0 to --ema-update-freq, and only in the process
            self.ema.update_freq_counter = updates % max(1, cfg.ema.ema_update_freq)
        if cfg.checkpoint.restore_file != "checkpoint_last.pt":
            return
        patience = extra_state.get("patience") or {"runs": 0}
        if "best" in patience:
            self.early_stopping.update(best=patience["best"], num_runs=patience["runs"])
        finished = ""
        if 0 < cfg.optimization.max_update <= updates:
            finished = f"--max-update {cfg.optimization.max_update}, optimization.max_update"
        elif 0 < cfg.checkpoint.patience <= patience["runs"]:
            finished = f"--patience {cfg.checkpoint.patience}, checkpoint.patience"
        if finished:
            logger.warning(
                "The training in %s was finished (%s) and stays as it is, at update %d; raise that option to continue.",
                cfg.checkpoint.save_dir,
                finished,
                updates,
            )
            cfg.optimization.max_epoch = -1  # fairseq's loop ends before its first epoch; 0 would mean no limit


def _early_stopping() -> dict[str, Any]:
    """Return the attributes in which fairseq-train's function counts for ``--patience``, to read and to change."""
    main = sys.modules["__main__"]  # after python -m fairseq_cli.train
    loop = main if hasattr(main, "should_stop_early") else sys.modules.get("fairseq_cli.train")
    return {} if loop is None else vars(loop.should_stop_early)


def _save_on_every_rank(config: Any) -> None:
    """Make every rank write and read a file of its own, NAME-rank-R.pt.

    fairseq does so for models with ``base_layers`` only, and names the files before it knows the model's defaults
    (fairseq-hydra-train); with one file for all, the experts of all ranks but one would be lost.
    """
    with open_dict(config):
        config.model.base_layers = config.distributed_training.distributed_world_size
        suffix = rank_suffix(config.distributed_training.distributed_rank)
        if not config.checkpoint.checkpoint_suffix.endswith(suffix):
            config.checkpoint.checkpoint_suffix += suffix


def _mix_precision_on_cpu(criterion: Any) -> None:
    """Let ``--amp`` work on a CPU, too: forward passes of training in mixed precision, with bfloat16.

    fairseq asks for the mixed precision of CUDA, whatever the device. bfloat16 has the range of float32, so the loss is
    not scaled.
    """
    forward = criterion.forward

    def mixed(*inputs: Any, **options: Any) -> Any:
        if not criterion.training:
            return forward(*inputs, **options)
        with torch.autocast("cpu", torch.bfloat16), attention_as_matmul():
            return forward(*inputs, **options)

    criterion.forward = mixed


# fairseq knows each under two names
LEGACY_DDP, PYTORCH_DDP = ("legacy_ddp", "no_c10d"), ("pytorch_ddp", "c10d")

# what starts several processes, and the variables that tell each its number and how many there are
STARTERS = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("mpirun", "PMI_RANK", "PMI_SIZE"),
)


def check_started_together(distributed: Any, environment: Mapping[str, str]) -> None:
    """Refuse to train one of several models side by side, each on its own, instead of one together.

    Args:
        distributed: fairseq's options of the job.
        environment: variables of this process.

    Raises:
        ValueError: something has started several processes, but this one knows of no other.
    """
    for starter, rank, size in STARTERS if distributed.distributed_world_size == 1 else ():
        processes = environment.get(size, "")
        if rank not in environment or not processes.isdecimal() or int(processes) < 2:
            continue
        if size == "SLURM_NTASKS" and environment[rank] == "0" and "SLURM_JOB_ID" in environment:
            continue  # the script that sbatch runs, once for all tasks; srun would have named those of its step
        # torchrun's own store is in the way of another
        meeting = "env://" if starter == "torchrun" else "tcp://HOST:PORT"
        raise ValueError(
            f"{starter} has started {processes} processes ({rank}={environment[rank]}, {size}={processes}), but "
            "--distributed-world-size is 1, so that each would train a model of its own; start one training with "
            f"moec train CONFIG --processes {processes}, or give fairseq-train --distributed-world-size "
            f"{processes} --distributed-rank {environment[rank]} --distributed-init-method {meeting} "
            "--distributed-no-spawn --ddp-backend legacy_ddp (and on a CPU --distributed-backend gloo); to train with "
            f"one process all the same, unset {size}."
        )


def check_options(config: Any) -> None:
    """Refuse a configuration (of fairseq, all of it) that would train experts of several ranks wrongly, or hang.

    Raises:
        ValueError: says the first problem, and what to give instead.
    """
    for found, message in _problems(config):
        if found:
            raise ValueError(message)


def _problems(config: Any) -> Sequence[tuple[bool, str]]:
    common, distributed, backend = config.common, config.distributed_training, config.distributed_training.ddp_backend
    return [
        (
            common.fp16 and not (common.fp16_no_flatten_grads or common.memory_efficient_fp16),
            "--fp16 flattens all parameters into one, in which experts and shared parameters cannot be told apart; "
            "add --fp16-no-flatten-grads or --memory-efficient-fp16, or give --bf16.",
        ),
        (
            common.amp and not common.cpu,
            "--amp scales the gradients of each process on its own, and skips an update where one overflows, which "
            "processes with other experts do not notice; give --bf16, or --fp16 --fp16-no-flatten-grads.",
        ),
        (
            backend not in LEGACY_DDP + PYTORCH_DDP,
            f"--ddp-backend {backend} would shard the experts a second time; "
            "give --ddp-backend legacy_ddp or pytorch_ddp.",
        ),
        (
            backend in PYTORCH_DDP
            and not distributed.find_unused_parameters
            and any(getattr(config.model, f"{side}_layerdrop", 0) > 0 for side in ("encoder", "decoder")),
            f"--ddp-backend {backend} waits for the gradients of layers that --encoder-layerdrop or "
            "--decoder-layerdrop has dropped; give --ddp-backend legacy_ddp, or --find-unused-parameters.",
        ),
        (
            backend in PYTORCH_DDP
            and not distributed.find_unused_parameters
            and getattr(config.task, "_name", None) == "sentence_prediction",
            f"--ddp-backend {backend} waits for the gradients of the head that predicts masked subwords, which --task "
            "sentence_prediction does not use; add --find-unused-parameters "
            "(distributed_training.find_unused_parameters=true), or give --ddp-backend legacy_ddp.",
        ),
        (
            distributed.zero_sharding != "none",
            f"--zero-sharding {distributed.zero_sharding} shards the optimizer over ranks that have different "
            "experts; leave it out: every rank already keeps the state of its own experts only.",
        ),
        (
            common.model_parallel_size > 1,
            f"--model-parallel-size {common.model_parallel_size} cannot be combined with experts on several ranks; "
            "leave it out.",
        ),
        (
            config.optimization.use_bmuf,
            "--use-bmuf averages all parameters over ranks, but their experts are different; leave it out.",
        ),
        (
            config.checkpoint.write_checkpoints_asynchronously,
            "--write-checkpoints-asynchronously would leave files of different updates after a kill, because no rank "
            "knows when all have written theirs; leave it out.",
        ),
        (
            getattr(config.model, "moec_evaluation", None) == "exchanged" and getattr(config.task, "eval_bleu", False),
            "--moec-evaluation exchanged makes ranks wait for each other at every step, but with --eval-bleu they make "
            "different numbers of steps; leave one of them out.",
        ),
        (
            common.bf16 and distributed.distributed_backend == "gloo" and not gloo_takes_bfloat16(),
            f"--bf16 sends bfloat16 between processes, which the gloo of torch {torch.__version__} cannot; give "
            "--amp, or use a newer torch.",
        ),
        (
            distributed.distributed_backend == "mpi",
            "--distributed-backend mpi has no all-to-all with unequal splits; give nccl (GPUs) or gloo (CPU).",
        ),
    ]
