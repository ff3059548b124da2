import json
import re
from types import SimpleNamespace

import pytest
import torch
from fairseq import options
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.optim.amp_optimizer import AMPOptimizer

from moec_fairseq.compat.precision import half_if_memory_efficient
from tests.conftest import ADAM, CRITERION, SCHEDULE, TINY
from tests.parallel.test_commands import finish, model, start


class Plain:
    """An optimizer, as far as one step of the task asks for it."""

    def backward(self, loss):
        loss.backward()


class Amp(Plain, AMPOptimizer):
    """Likewise what fairseq builds for --amp."""

    def __init__(self):
        pass


def test_amp_computes_in_bfloat16_on_a_cpu(build):
    built = build("--dropout", "0", "--moec-expert-dropout", "0")
    batch, dtypes, flash = built.batch(), [], []
    built.model.decoder.output_projection.register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    built.model.encoder.register_forward_hook(lambda *_: flash.append(torch.backends.cuda.flash_sdp_enabled()))

    def loss_and_gradient(optimizer):
        built.model.zero_grad()
        loss = built.task.train_step(batch, built.model, built.criterion, optimizer, 0)[0]
        return loss.detach(), torch.cat([p.grad.flatten() for p in built.model.parameters() if p.grad is not None])

    before = torch.backends.cuda.flash_sdp_enabled()
    (mixed, mixed_gradient), (full, gradient) = loss_and_gradient(Amp()), loss_and_gradient(Plain())
    built.task.valid_step(batch, built.model, built.criterion)
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    can_choose = hasattr(getattr(torch.nn, "attention", None), "sdpa_kernel")
    assert flash == [before and not can_choose, before, before]
    torch.testing.assert_close(mixed, full, rtol=1e-2, atol=0)
    assert mixed != full and mixed_gradient.dtype == torch.float32
    assert torch.cosine_similarity(mixed_gradient, gradient, dim=0) > 0.99


def test_a_training_with_amp_learns_on_a_cpu_and_goes_on(fairseq, reversal_data, tmp_path):
    flags = (reversal_data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--amp", "--save-dir", tmp_path)
    fairseq("train", *flags, "--max-update", "60")
    done = fairseq("train", *flags, "--max-update", "120", "--log-format", "json")
    losses = [json.loads(line.split("|")[-1]) for line in done.stdout.splitlines() if '"valid_nll_loss"' in line]
    assert "Loaded checkpoint" in done.stdout and float(losses[-1]["valid_nll_loss"]) < 3


def precision(*flags):
    arguments = ["data", *map(str, (*TINY, *CRITERION, *ADAM)), *flags]
    args = options.parse_args_and_arch(options.get_training_parser(), input_args=arguments)
    config = convert_namespace_to_omegaconf(args)
    assert config.distributed_training.tpu == config.common.tpu
    return config.common


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_bfloat16_is_no_wish_for_a_tpu(monkeypatch, flag, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    common = precision(flag)
    assert common.bf16 and not common.tpu and not common.fp16


def test_other_wishes_stay():
    assert precision("--tpu").tpu
    assert not precision().bf16


@pytest.mark.parametrize("cpu", [False, True])
def test_memory_efficient_precision_is_that_precision(cpu):
    seen = []
    init = half_if_memory_efficient(lambda trainer, config: seen.append((config.common.bf16, config.common.fp16)))
    for given in ("bf16", "fp16", None):
        config = FairseqConfig()
        implied = {f"memory_efficient_{name}": name == given for name in ("bf16", "fp16")}
        config.common = SimpleNamespace(bf16=False, fp16=False, cpu=cpu, **implied)
        init(None, config)
    assert seen == [(True, False), (False, not cpu), (False, False)]


@pytest.mark.parametrize("flag", ["--bf16", "--memory-efficient-bf16"])
def test_a_training_in_bfloat16_goes_on_as_if_never_stopped(reversal_data, tmp_path, flag):
    def train(folder, end):
        flags = (flag, "--optimizer", "fused_adam", "--share-all-embeddings", "--disable-validation")
        return start(reversal_data, tmp_path / folder, 1, *flags, "--max-update", end), tmp_path / folder

    for processes, folder in [train("whole", 9), train("stopped", 4)]:
        finish(processes, folder)
    finish(*train("stopped", 9))
    whole, stopped = (model(tmp_path / folder, "checkpoint_last.pt") for folder in ("whole", "stopped"))
    assert all(torch.equal(stopped[name], value) for name, value in whole.items())
    # as precise as the optimizer has them
    rounded = all(torch.equal(value.bfloat16().float(), value) for value in whole.values())
    assert rounded == (flag == "--memory-efficient-bf16")


def test_a_model_that_was_trained_in_bfloat16_has_learned_and_translates(fairseq, reversal_data, tmp_path):
    flags = ("--bf16", "--max-tokens", 1000, "--max-epoch", 3, "--lr", 0.01, "--seed", 2)
    finish(start(reversal_data, tmp_path, 1, *flags), tmp_path)
    log = (tmp_path / "rank-0.log").read_text()
    losses = [float(loss) for loss in re.findall(r"\| valid \|.*? nll_loss ([\d.]+)", log)]
    assert len(losses) == 3 and losses[-1] + 0.3 < losses[0] and losses[-1] < 3.2
    path = tmp_path / "checkpoint_last.pt"
    done = fairseq("generate", reversal_data, *TINY[:3], "--path", path, "--beam", 2, "--gen-subset", "valid")
    assert "Translated 100 sentences" in done.stderr + done.stdout
