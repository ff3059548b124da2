"""The commands that users already run, each for real, on one small model that has learned to reverse."""

import re
from pathlib import Path

import pytest
import torch

from moec_fairseq.models import MoECTransformerModel
from tests.conftest import ADAM, CRITERION, ROOT, SCHEDULE, TINY, USER_DIR, Command

PLUGIN = ("--user-dir", USER_DIR, "--cpu")


def by_id(log: str, kind: str = "H") -> dict[int, str]:
    """Return the sentences of one kind (S source, T target, H hypothesis) in the output of fairseq-generate."""
    lines = re.findall(rf"^{kind}-(\d+)\t(.*)$", log, flags=re.MULTILINE)
    return {int(number): text.split("\t")[-1] for number, text in lines}


@pytest.fixture(scope="module")
def generated(fairseq: Command, reversal_data: Path, trained: Path) -> str:
    return fairseq(
        "generate", reversal_data, *PLUGIN, "--path", trained / "checkpoint_best.pt", "--beam", 5,
        "--batch-size", 64, "--remove-bpe",
    ).stdout  # fmt: skip


def test_it_learns_to_reverse(generated: str) -> None:
    targets, hypotheses = by_id(generated, "T"), by_id(generated)
    assert sorted(hypotheses) == list(range(200))
    exact = sum(hypotheses[i] == targets[i] for i in targets)
    assert exact >= 190, f"{exact} of 200 sentences are exact"


def test_score(fairseq: Command, tmp_path: Path, generated: str) -> None:
    for kind, name in (("T", "reference"), ("H", "hypothesis")):
        sentences = by_id(generated, kind)
        (tmp_path / name).write_text("".join(f"{sentences[i]}\n" for i in sorted(sentences)))
    done = fairseq("score", "--sys", tmp_path / "hypothesis", "--ref", tmp_path / "reference")
    assert float(re.search(r"BLEU4 = ([\d.]+)", done.stdout)[1]) > 90


def test_ensemble_of_two_checkpoints(fairseq: Command, reversal_data: Path, trained: Path) -> None:
    paths = f"{trained / 'checkpoint7.pt'}:{trained / 'checkpoint14.pt'}"
    done = fairseq("generate", reversal_data, *PLUGIN, "--path", paths, "--beam", 2, "--gen-subset", "valid")
    assert sorted(by_id(done.stdout)) == list(range(100))


def test_interactive(fairseq: Command, reversal_data: Path, trained: Path) -> None:
    path = trained / "checkpoint_best.pt"
    done = fairseq("interactive", reversal_data, *PLUGIN, "--path", path, stdin="a b c d\nj i h\n")
    assert list(by_id(done.stdout).values()) == ["d c b a", "h i j"]


def test_validate_gives_the_loss_of_the_training(fairseq: Command, reversal_data: Path, trained: Path) -> None:
    done = fairseq(
        "validate", reversal_data, *PLUGIN, "--task", "translation", "--path", trained / "checkpoint_last.pt",
        "--max-tokens", 500, "--log-format", "simple",
    )  # fmt: skip
    afterwards = re.search(r"valid .*?\| loss ([\d.]+) .*moe_entropy ([\d.]+)", done.stdout + done.stderr)
    in_training = re.findall(
        r"valid on 'valid' subset \| loss ([\d.]+) .*moe_entropy ([\d.]+)", (trained / "train.log").read_text()
    )[-1]
    assert afterwards and afterwards.groups() == in_training


def test_the_log_of_the_training(trained: Path) -> None:
    log = (trained / "train.log").read_text()
    last = [line for line in log.splitlines() if "| train |" in line][-1]
    for figure in (
        "moe_balance", "moe_variance", "moe_spread", "moe_gap", "moe_entropy", "moe_load_max", "moe_load_min",
        "moe_unused", "moe_overflow",
    ):  # fmt: skip
        assert figure in last
    assert "valid on 'valid' subset" in log and re.search(r"\| bleu [\d.]+", log)
    assert "router gets no balance" not in log


def test_tensorboard_has_the_router_figures(trained: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    tags = set()
    for file in (trained / "tensorboard").rglob("events.*"):
        data = file.read_bytes()
        start = 0
        while start < len(data):  # TFRecord: length, checksum, event, checksum
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            tags |= {value.tag for value in event.summary.value}
            start += 16 + length
    assert {"moe_balance", "moe_entropy", "moe_load_max", "moe_unused"} <= tags


def test_from_pretrained(reversal_data: Path, trained: Path) -> None:
    data = str(reversal_data)
    model = MoECTransformerModel.from_pretrained(str(trained), "checkpoint_best.pt", data_name_or_path=data)
    assert model.translate("a b c d") == "d c b a"


def test_a_checkpoint_with_code_is_refused_in_one_sentence(
    fairseq: Command, reversal_data: Path, trained: Path, tmp_path: Path
) -> None:
    class Hidden:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "it ran"), "w"))

    state = torch.load(trained / "checkpoint_best.pt", weights_only=True)
    state["extra_state"]["hidden"] = Hidden()
    torch.save(state, tmp_path / "checkpoint.pt")
    path = ("--path", tmp_path / "checkpoint.pt", "--max-tokens", 500)
    done = fairseq("generate", reversal_data, *PLUGIN, "--task", "translation", *path, ok=False)
    assert done.returncode != 0 and "weights_only" not in done.stdout + done.stderr
    assert "checkpoint.pt contains code (its pickle names 'io.open') and was not loaded" in done.last_line
    assert not (tmp_path / "it ran").exists()


def train(fairseq: Command, data: Path, save_dir: Path, *flags: object) -> str:
    done = fairseq(
        "train", data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--save-dir", save_dir, "--disable-validation",
        "--log-format", "simple", "--log-interval", 1, "--no-epoch-checkpoints", *flags,
    )  # fmt: skip
    return done.stderr + done.stdout


def losses(log: str) -> dict[int, str]:
    """Return all figures of each update that do not tell the time."""
    lines = re.findall(
        r"train_inner \| (?:epoch \d+: +\d+ / \d+ )(.*?), ppl=.*?num_updates=(\d+), (.*?gnorm=[\d.]+)", log
    )
    return {int(update): f"{figures} {rest}" for figures, update, rest in lines}


def test_going_on_with_other_settings_is_said(fairseq: Command, reversal_data: Path, tmp_path: Path) -> None:
    train(fairseq, reversal_data, tmp_path, "--max-update", 1)
    others = ("--moec-expert-dropout", 0.25, "--seed", 7, "--label-smoothing", 0.2, "--lr", 1e-5)
    log = train(fairseq, reversal_data, tmp_path, *others, "--max-update", 2)
    assert re.search(
        r"checkpoint_last.pt was trained with common.seed=1 \(now 7\), model.moec_expert_dropout=0.5 \(now 0.25\), "
        r"criterion.label_smoothing=0.1 \(now 0.2\); for a model of its own give another --save-dir",
        log,
    ), log
    assert sorted(losses(log)) == [2]


def test_finetune_from_model(fairseq: Command, reversal_data: Path, trained: Path, tmp_path: Path) -> None:
    log = train(
        fairseq, reversal_data, tmp_path, "--finetune-from-model", trained / "checkpoint_best.pt", "--max-update", 2,
        "--lr", "1e-4",
    )  # fmt: skip
    first = re.search(r"nll_loss=([\d.]+)", log)
    assert first and float(first[1]) < 1.0  # it starts from what the other model knows; a new one starts above 3


def test_plain_criterion_trains_with_one_warning(fairseq: Command, reversal_data: Path, tmp_path: Path) -> None:
    log = train(
        fairseq, reversal_data, tmp_path, "--criterion", "label_smoothed_cross_entropy", "--max-update", 3,
        "--moec-layout", "replaced", "--moe-freq", 1, "--encoder-layerdrop", "0.2", "--checkpoint-activations",
    )  # fmt: skip
    assert log.count("The router gets no balance or variance loss") == 1
    assert "num_updates=3" in log


def test_nan_in_hidden_states_ends_in_fairseqs_own_error(
    fairseq: Command, reversal_data: Path, trained: Path, tmp_path: Path
) -> None:
    state = torch.load(trained / "checkpoint_best.pt", weights_only=True)
    state["model"]["encoder.layers.0.self_attn.k_proj.bias"].fill_(float("nan"))
    torch.save(state, tmp_path / "checkpoint.pt")
    done = fairseq(
        "train", reversal_data, *TINY, *CRITERION, *ADAM, *SCHEDULE, "--save-dir", tmp_path, "--max-update", 2,
        "--finetune-from-model", tmp_path / "checkpoint.pt", ok=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "FloatingPointError" in done.stderr or "NaN" in done.stderr


def test_hydra_train_with_the_config(fairseq: Command, reversal_data: Path, tmp_path: Path) -> None:
    small = [f"model.{side}_{key}" for side in ("encoder", "decoder") for key in ("embed_dim=32", "ffn_embed_dim=32")]
    layers = ["model.encoder_layers=3", "model.decoder_layers=3", "model.share_all_embeddings=true"]
    done = fairseq(
        "hydra_train", "--config-dir", ROOT / "configs", "--config-name", "moec_transformer",
        f"task.data={reversal_data}", f"common.user_dir={USER_DIR}", "common.cpu=true", "dataset.num_workers=0",
        "optimization.max_update=3", "common.log_interval=1", f"checkpoint.save_dir={tmp_path / 'save'}",
        f"hydra.run.dir={tmp_path}", *small, *layers,
    )  # fmt: skip
    logs = done.stdout + done.stderr + "".join(f.read_text() for f in tmp_path.glob("*.log"))
    assert "num_updates=3" in logs
    state = torch.load(tmp_path / "save" / "checkpoint_last.pt", weights_only=True)["model"]
    assert state["encoder.layers.1.moe.experts.sublayers.0.w1_NFD"].shape[0] == 8
