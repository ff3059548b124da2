"""The trainer: what it refuses, what it does where ranks share experts, in which precision, and what it resumes."""

import json
import math
import re
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from fairseq import options, tasks
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.model_parallel.megatron_trainer import MegatronTrainer
from fairseq.modules import LayerDropModuleList
from fairseq.trainer import Trainer

from moec_fairseq import compat
from moec_fairseq import trainer as module
from moec_fairseq.checkpoint.state import OF_THE_MODEL, differing
from moec_fairseq.trainer import MoECTrainer, check_options, check_started_together
from tests.conftest import ADAM, CRITERION, SCHEDULE, TINY
from tests.parallel.test_commands import finish, start


@pytest.fixture
def trainer(build, tmp_path):
    """Make a trainer from the flags of fairseq-train, as its command does."""
    build()  # writes the dictionaries

    def make(*flags):
        arguments = [tmp_path, "-s", "src", "-t", "tgt", *TINY, *CRITERION, *ADAM, "--max-tokens", 1000, *flags]
        parser = options.get_training_parser()
        config = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(parser, input_args=list(map(str, arguments)))
        )
        torch.manual_seed(1)
        task = tasks.setup_task(config.task)
        return Trainer(config, task, task.build_model(config.model), task.build_criterion(config.criterion))

    return make


STOCK = ("--arch", "transformer_tiny", "--criterion", "label_smoothed_cross_entropy")


def test_every_trainer_of_fairseq_is_this_one(trainer):
    from fairseq_cli import train

    assert train.Trainer is Trainer and issubclass(MegatronTrainer, MoECTrainer)
    for flags, is_moec in ((), True), (STOCK, False):
        made = trainer(*flags)
        assert type(made) is MoECTrainer and made.is_moec == is_moec and not made.shares_experts


@pytest.mark.parametrize("fails", [False, True])
def test_a_dummy_batch_is_one_until_its_step_ends(trainer, build, fails):
    made, batch, seen = trainer(), build().batch(), []
    collector, made._dummy_batch = made.task.moec_model.collector, batch

    def noting(step):
        def noted(*args, **kwargs):
            seen.append(collector.is_dummy)
            if fails:
                raise RuntimeError
            return step(*args, **kwargs)

        return noted

    made.task.train_step, made.task.valid_step = noting(made.task.train_step), noting(made.task.valid_step)
    steps = [lambda sample: made.train_step([sample]), made.valid_step]
    for sample in (None, batch, None):
        for step in steps:
            try:
                step(sample)
            except RuntimeError:
                assert fails
            assert not collector.is_dummy  # what comes next may be no step of the trainer
    assert seen == [True, True, False, False, True, True]
    if not fails:
        made.train_step([batch, None, batch])
        assert seen[6:] == [False, True, False]


@pytest.mark.parametrize("shares_experts", [False, True])
@pytest.mark.parametrize("step", ["train_step", "valid_step"])
def test_no_batch_is_skipped_or_tried_again_where_others_have_gone_on(trainer, monkeypatch, shares_experts, step):
    made, seen = trainer(), []
    made.shares_experts = shares_experts
    monkeypatch.setattr(Trainer, step, lambda trainer, samples, raise_oom: seen.append(raise_oom))
    for raise_oom in (False, True):
        getattr(made, step)([], raise_oom)
    assert seen == [shares_experts, True]


def test_layers_are_dropped_by_seed_and_update_in_moec_models_only(trainer):
    flags = ("--encoder-layers", 2, "--encoder-layerdrop", 0.5)

    def draws(made):
        made._set_seed()
        (stack,) = [m for m in made.get_model().modules() if isinstance(m, LayerDropModuleList)]
        return stack.draws.random_sample(5).tolist() if hasattr(stack, "draws") else None

    one, other = trainer(*flags), trainer(*flags)
    assert draws(one) == draws(other) is not None
    other.set_num_updates(1)
    assert draws(one) != draws(other)
    assert draws(trainer(*flags, *STOCK)) is None


def test_nothing_is_built_where_trainings_were_started_side_by_side(trainer, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Trainer, "__init__", lambda *_: pytest.fail("built"))
    with pytest.raises(ValueError, match="torchrun has started 2 processes"):
        trainer()


def config(**options):
    values = {
        "amp": False, "fp16": False, "fp16_no_flatten_grads": False, "memory_efficient_fp16": False, "cpu": False,
        "model_parallel_size": 1, "ddp_backend": "pytorch_ddp", "zero_sharding": "none", "use_bmuf": False,
        "distributed_backend": "nccl", "moec_evaluation": "gathered", "eval_bleu": False,
        "write_checkpoints_asynchronously": False, "find_unused_parameters": False, "encoder_layerdrop": 0,
        "decoder_layerdrop": 0, "bf16": False, **options,
    }  # fmt: skip
    everything = Namespace(**values)
    return Namespace(
        **dict.fromkeys(("common", "distributed_training", "optimization", "model", "task", "checkpoint"), everything)
    )


@pytest.mark.parametrize(
    "options, way_out",
    [
        ({"fp16": True}, "add --fp16-no-flatten-grads or --memory-efficient-fp16, or give --bf16"),
        ({"amp": True}, "--amp scales .* give --bf16, or --fp16 --fp16-no-flatten-grads"),
        ({"ddp_backend": "fully_sharded"}, "give --ddp-backend legacy_ddp or pytorch_ddp"),
        ({"ddp_backend": "slowmo"}, "--ddp-backend slowmo"),
        ({"zero_sharding": "os"}, "--zero-sharding os"),
        ({"model_parallel_size": 2}, "--model-parallel-size 2"),
        ({"use_bmuf": True}, "--use-bmuf"),
        ({"distributed_backend": "mpi"}, "give nccl"),
        ({"write_checkpoints_asynchronously": True}, "--write-checkpoints-asynchronously"),
        ({"moec_evaluation": "exchanged", "eval_bleu": True}, "--moec-evaluation exchanged .* leave one of them out"),
        ({"encoder_layerdrop": 0.1}, "--encoder-layerdrop .* give --ddp-backend legacy_ddp, or --find-unused"),
        ({"decoder_layerdrop": 0.1, "ddp_backend": "c10d"}, "--ddp-backend c10d waits"),
        ({"_name": "sentence_prediction"}, "waits for the gradients of the head .* add --find-unused-parameters"),
    ],
)
def test_what_cannot_work_is_refused_with_the_way_out(options, way_out):
    with pytest.raises(ValueError, match=way_out):
        check_options(config(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fp16": True, "fp16_no_flatten_grads": True},
        {"fp16": True, "memory_efficient_fp16": True},
        {"moec_evaluation": "exchanged"},
        {"eval_bleu": True},
        {"encoder_layerdrop": 0.1, "find_unused_parameters": True},
        {"_name": "sentence_prediction", "find_unused_parameters": True},
        {"decoder_layerdrop": 0.1, "ddp_backend": "legacy_ddp"},
        {"ddp_backend": "legacy_ddp", "cpu": True, "distributed_backend": "gloo", "amp": True},
        {"cpu": True, "distributed_backend": "gloo"},
    ],
)
def test_what_works_is_not(options):
    check_options(config(**options))


def test_bfloat16_is_refused_where_gloo_cannot_send_it(monkeypatch):
    options = {"bf16": True, "ddp_backend": "legacy_ddp", "distributed_backend": "gloo"}
    check_options(config(**options))
    monkeypatch.setattr(module, "gloo_takes_bfloat16", lambda: False)
    check_options(config(**options | {"distributed_backend": "nccl"}))
    with pytest.raises(ValueError, match="--bf16 sends bfloat16 .* give --amp"):
        check_options(config(**options))


def test_a_config_of_fairseq_itself_has_all_of_these():
    check_options(FairseqConfig())


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"}
SRUN = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}


@pytest.mark.parametrize(
    "environment, started, rank",
    [
        (TORCHRUN, "torchrun has started 4 processes (RANK=1, WORLD_SIZE=4)", 1),
        (SRUN, "srun has started 2 processes", 0),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, "srun has started 2 processes", 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, "srun has started 2 processes", 0),
        (MPIRUN, "mpirun has started 3 processes", 2),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "mpirun has started 2 processes", 0),
    ],
)
def test_trainings_side_by_side_are_refused_with_the_commands_for_one(environment, started, rank):
    with pytest.raises(ValueError) as caught:
        check_started_together(Namespace(distributed_world_size=1), environment)
    number = started.split()[3]
    meeting = "env://" if "torchrun" in started else "tcp://HOST:PORT"
    options = f"--distributed-world-size {number} --distributed-rank {rank} --distributed-init-method {meeting} "
    for words in (started, f"moec train CONFIG --processes {number},", options):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "environment, world_size",
    [
        ({}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1),
        ({"WORLD_SIZE": "2"}, 1),  # left over in a shell, without a rank
        ({"RANK": "0", "WORLD_SIZE": ""}, 1),
        ({"RANK": "x", "WORLD_SIZE": "many"}, 1),
        (TORCHRUN, 4),
        (TORCHRUN | SRUN | MPIRUN, 2),
        # the script that sbatch runs for a job of eight tasks, and a step of one task in it
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, 1),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, 1),
    ],
)
def test_one_training_is_not(environment, world_size):
    check_started_together(Namespace(distributed_world_size=world_size), environment)


class Plain:
    """An optimizer, as far as one step of the task asks for it."""

    def backward(self, loss):
        loss.backward()


def test_amp_computes_in_bfloat16_on_a_cpu(trainer, build):
    flags = ("--dropout", "0", "--moec-expert-dropout", "0")
    batch, dtypes, flash = build().batch(), [], []

    def loss_and_gradient(made):
        made.model.decoder.output_projection.register_forward_hook(
            lambda module, inputs, output: dtypes.append(output.dtype)
        )
        made.model.encoder.register_forward_hook(lambda *_: flash.append(torch.backends.cuda.flash_sdp_enabled()))
        made.criterion.train()
        loss = made.task.train_step(batch, made.model, made.criterion, Plain(), 0)[0]
        return loss.detach(), torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None])

    before = torch.backends.cuda.flash_sdp_enabled()
    amp = trainer("--amp", *flags)
    (mixed, mixed_gradient), (full, gradient) = loss_and_gradient(amp), loss_and_gradient(trainer(*flags))
    amp.valid_step(batch)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    can_choose = hasattr(getattr(torch.nn, "attention", None), "sdpa_kernel")
    assert flash == [before and not can_choose, before, before]
    torch.testing.assert_close(mixed, full, rtol=1e-2, atol=0)
    assert mixed != full and mixed_gradient.dtype == torch.float32
    assert torch.cosine_similarity(mixed_gradient, gradient, dim=0) > 0.99


def test_a_loss_that_is_not_finite_ends_a_training_with_amp_on_a_cpu(trainer, build, tmp_path):
    """It is an overflow on a GPU, where the loss is scaled: the batch is tried again, and left out."""
    made, batch = trainer("--amp", "--save-dir", tmp_path), build().batch()
    before = [parameter.clone() for parameter in made.model.parameters()]
    forward = made.criterion.compute_loss
    made.criterion.compute_loss = lambda *args, **kwargs: tuple(loss * torch.nan for loss in forward(*args, **kwargs))
    with pytest.raises(FloatingPointError, match="gradients are Nan/Inf"):
        made.train_step([batch])
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))


def test_the_loss_scale_of_amp_continues(trainer, monkeypatch):
    if not hasattr(torch.amp, "GradScaler"):
        pytest.skip("this torch scales on GPUs only")
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda *_: None)

    def make():
        made = trainer("--amp")
        made.optimizer._grad_scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=4)
        return made

    def scales(made, updates):
        found, (parameter, *_) = [], made.optimizer.params
        for _ in range(updates):
            made.optimizer.backward(parameter.sum())
            made.optimizer.clip_grad_norm(0.0)
            made.optimizer.step()
            found.append(made.optimizer.scaler.get_scale())
        return found

    stopped, state = make(), {"train_iterator": {"iterations_in_epoch": 3, "epoch": 1}}
    scales(stopped, 6)
    stopped.save_checkpoint("x.pt", state)
    resumed = make()
    resumed.resume(state)
    found = scales(resumed, 6)
    assert found == scales(make(), 12)[6:] == [16.0, 32.0, 32.0, 32.0, 32.0, 64.0]
    # of a training with another precision nothing fits
    for other in (trainer("--fp16", "--fp16-no-flatten-grads"), trainer("--bf16"), trainer("--amp"), trainer()):
        before = dict(vars(getattr(other.optimizer, "scaler", None) or Namespace()))
        other.resume(state)
        assert vars(getattr(other.optimizer, "scaler", None) or Namespace()) == before


def test_a_training_with_amp_learns_on_a_cpu_and_goes_on(fairseq, reversal_data, tmp_path):
    flags = (reversal_data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--amp", "--save-dir", tmp_path)
    fairseq("train", *flags, "--max-update", "60")
    done = fairseq("train", *flags, "--max-update", "120", "--log-format", "json")
    losses = [json.loads(line.split("|")[-1]) for line in done.stdout.splitlines() if '"valid_nll_loss"' in line]
    assert "Loaded checkpoint" in done.stdout and float(losses[-1]["valid_nll_loss"]) < 3


def precision(*flags, cpu=True):
    arguments = ["data", *(word for word in map(str, (*TINY, *CRITERION, *ADAM)) if cpu or word != "--cpu"), *flags]
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=arguments)
    config = convert_namespace_to_omegaconf(args)
    assert config.distributed_training.tpu == config.common.tpu
    return config.common


@pytest.mark.parametrize("cpu, gpu, torch_xla", [(True, False, False), (True, True, True), (False, True, False),
                                                 (False, True, True), (False, False, False)])  # fmt: skip
@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_bfloat16_is_no_wish_for_a_tpu(monkeypatch, flag, cpu, gpu, torch_xla):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(compat, "find_spec", lambda name: object() if torch_xla and name == "torch_xla" else None)
    common = precision(flag, cpu=cpu)
    assert common.bf16 and not common.tpu and not common.fp16 and common.cpu == cpu


def test_where_there_is_a_tpu_and_no_gpu_it_stays_one(monkeypatch):
    monkeypatch.setattr(compat, "find_spec", lambda name: object())
    assert precision("--bf16", cpu=False).tpu


def test_other_wishes_stay():
    assert precision("--tpu").tpu
    assert not precision().bf16


def test_a_norm_that_is_not_finite_is_no_difference_between_ranks(trainer, monkeypatch):
    monkeypatch.setattr("fairseq.trainer.distributed_utils.all_reduce", lambda *_, **__: None)  # this rank is alone
    made = trainer()
    made._grad_norm_buf = torch.zeros(1)  # as on a GPU
    made._check_grad_norms(torch.tensor(2.0))
    with pytest.raises(FloatingPointError, match="^gradients are Nan/Inf$"):
        made._check_grad_norms(torch.tensor(math.nan))


def test_the_norm_is_where_the_gradients_are(trainer, build, monkeypatch):
    """With --cpu, fairseq computes it on a GPU, where there is one."""
    made = trainer("--clip-norm", 0.5)
    moved = []
    monkeypatch.setattr(MoECTrainer, "_on_its_device", lambda _, norm: moved.append(norm) or norm)
    made.train_step([build().batch()])
    assert len(moved) == 1


def test_tasks_without_one_input_count_no_tokens(trainer):
    made = trainer()
    made.cuda = True
    assert made._count_tokens({"net_input1": {"src_tokens": torch.ones(2, 2)}}) == {}


@pytest.mark.parametrize("cpu", [False, True])
def test_memory_efficient_precision_is_that_precision(monkeypatch, cpu):
    seen = []

    def init(trainer, config, task, model, *_):
        seen.append((config.common.bf16, config.common.fp16))
        trainer._model = model

    monkeypatch.setattr(Trainer, "__init__", init)
    for given in ("bf16", "fp16", None):
        config = FairseqConfig()
        implied = {f"memory_efficient_{name}": name == given for name in ("bf16", "fp16")}
        config.common = SimpleNamespace(bf16=False, fp16=False, amp=False, cpu=cpu, **implied)
        Trainer(config, SimpleNamespace(train_step=None), torch.nn.Linear(1, 1), None)
    assert seen == [(True, False), (False, not cpu), (False, False)]


def test_a_model_that_was_trained_in_bfloat16_has_learned_and_translates(fairseq, reversal_data, tmp_path):
    flags = ("--bf16", "--max-tokens", 1000, "--max-epoch", 3, "--lr", 0.01, "--seed", 2)
    finish(start(reversal_data, tmp_path, 1, *flags), tmp_path)
    log = (tmp_path / "rank-0.log").read_text()
    losses = [float(loss) for loss in re.findall(r"\| valid \|.*? nll_loss ([\d.]+)", log)]
    assert len(losses) == 3 and losses[-1] + 0.3 < losses[0] and losses[-1] < 3.2
    path = tmp_path / "checkpoint_last.pt"
    done = fairseq("generate", reversal_data, *TINY[:3], "--path", path, "--beam", 2, "--gen-subset", "valid")
    assert "Translated 100 sentences" in done.stderr + done.stdout


SAVED = {
    "common": {"seed": 1, "log_interval": 100},
    "model": {"dropout": 0.3, "moec_dispatch": "exact", "seed": 1, "gone": True},
    "criterion": None,
    "optimization": {"lr": [0.1]},
}


def test_what_makes_another_model_is_named():
    now = {
        "common": {"seed": 2, "log_interval": 1},
        "model": {"dropout": 0.1, "moec_dispatch": "capacity", "seed": 2, "new": 5},
        "criterion": {"label_smoothing": 0.1},
        "optimization": {"lr": [0.2]},
    }
    assert differing(SAVED, now, OF_THE_MODEL) == [("common.seed", 1, 2), ("model.dropout", 0.3, 0.1)]


def test_nothing_has_changed():
    assert differing(SAVED, SAVED, OF_THE_MODEL) == []
    assert differing({}, SAVED, OF_THE_MODEL) == []


def test_the_loss_scale_of_fp16_continues(trainer, monkeypatch):
    """The scale doubles after so many updates in a row without an overflow, wherever the training was stopped."""
    monkeypatch.setattr(Trainer, "save_checkpoint", lambda *_: None)
    flags = ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4, "--fp16-scale-window", 4)

    def scales(made, updates):
        found = []
        for _ in range(updates):
            made.optimizer.scaler.update()
            found.append(made.optimizer.scaler.loss_scale)
        return found

    stopped, state = trainer(*flags), {"train_iterator": {"iterations_in_epoch": 3, "epoch": 1}}
    scales(stopped, 3)
    stopped.save_checkpoint("x.pt", state)
    resumed = trainer(*flags)
    resumed.resume(state)
    found, expected = scales(resumed, 6), scales(trainer(*flags), 9)
    assert found == expected[3:] and 8.0 in found


FP16 = ("--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", 4)


@pytest.mark.parametrize("first, second, flags", [
    ("fused_adam", "adam", ()),
    *(
        (first, "fused_adam", flags)
        for first in ("adam", "fused_adam") for flags in ((), FP16, ("--bf16",), ("--memory-efficient-bf16",))
    ),
])  # fmt: skip
def test_adam_and_fused_adam_go_on_from_each_others_checkpoints(trainer, tmp_path, first, second, flags):
    def update(made, number):
        source = torch.Generator().manual_seed(number)
        made.zero_grad()
        for parameter in made.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=source).to(parameter.dtype)
        made.optimizer._needs_sync = True  # as after a backward pass
        made.clip_grad_norm(1.0)
        made.optimizer.step()
        made.set_num_updates(number + 1)

    def make(optimizer):
        return trainer(*flags, "--optimizer", optimizer, "--save-dir", tmp_path)

    file, state = str(tmp_path / "checkpoint.pt"), {"epoch": 1, "iterations_in_epoch": 3, "version": 2}
    whole, stopped, resumed = make(first), make(first), make(second)
    for number in range(6):
        update(whole, number)
    for number in range(3):
        update(stopped, number)
    stopped.consolidate_optimizer()
    stopped.save_checkpoint(file, {"train_iterator": state, "val_loss": None})
    resumed.load_checkpoint(file)
    assert resumed.get_num_updates() == 3
    for number in range(3, 6):
        update(resumed, number)
    close = {"rtol": 0, "atol": 0} if first == second else {"rtol": 1e-5, "atol": 1e-5}
    for a, b in zip(whole.optimizer.params, resumed.optimizer.params, strict=True):
        torch.testing.assert_close(a, b, **close)
