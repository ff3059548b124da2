"""The pretrain and finetune suites: RoBERTa with experts against a dense one of the same active size."""

import random
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from fairseq.data import Dictionary

from moec_fairseq.bench.measure import Contender, interleave
from moec_fairseq.bench.models import (
    COMMON,
    DENSE,
    NOT_LEARNING,
    Setup,
    build_trainer,
    made_up,
    quiet,
    random_sentences,
    sparse,
    training_step,
    write_binary,
)
from moec_fairseq.bench.report import Row, Target, rows_of
from moec_fairseq.bench.sizes import ModelSizes

PRETRAINING = (
    *COMMON, *NOT_LEARNING, "--task", "masked_lm", "--criterion", "moec_masked_lm", "--sample-break-mode", "eos",
)  # fmt: skip
FINE_TUNING = (
    *COMMON, *NOT_LEARNING, "--task", "sentence_prediction", "--criterion", "moec_sentence_prediction",
    "--classification-head-name", "sentence_classification_head",
    "--num-classes", "2", "--init-token", "0", "--separator-token", "2",
)  # fmt: skip


def pretrain(sizes: ModelSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time updates of a masked language model, on single sentences."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        dictionary = made_up(sizes.vocabulary)
        dictionary.save(str(folder / "dict.txt"))
        write_binary(folder / "train", dictionary, _sentences(dictionary, sizes, seed=1))
        return _compare("pretrain", folder, PRETRAINING, sizes, device)


def finetune(sizes: ModelSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time updates of the same model with a head of two classes, on pairs of sentences."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        dictionary = made_up(sizes.vocabulary)
        labels = made_up(2)
        sides = [_sentences(dictionary, sizes, seed) for seed in (1, 2)]
        classes = [torch.tensor([labels.nspecial + number % 2]) for number in range(len(sides[0]))]
        parts = {"input0": (dictionary, sides[0]), "input1": (dictionary, sides[1]), "label": (labels, classes)}
        for part, (own, items) in parts.items():
            (folder / part).mkdir()
            own.save(str(folder / part / "dict.txt"))
            write_binary(folder / part / "train", own, items)
        return _compare("finetune", folder, FINE_TUNING, sizes, device)


def _sentences(dictionary: Dictionary, sizes: ModelSizes, seed: int) -> list[torch.Tensor]:
    return random_sentences(dictionary, 2 * max(1, sizes.max_tokens // sizes.length), sizes.length, random.Random(seed))


def _compare(
    suite: str, folder: Path, recipe: tuple[str, ...], sizes: ModelSizes, device: torch.device
) -> tuple[list[Row], list[Target]]:
    flags = {"dense": (0, DENSE)} | {f"moec {experts}": (experts, sparse(experts)) for experts in sizes.experts}
    setups = {name: _setup(folder, recipe, own, sizes, device) for name, (_, own) in flags.items()}
    case = f"{sizes.arch}, {sizes.max_tokens} tokens per batch"
    contenders = {name: Contender(training_step(setup)) for name, setup in setups.items()}
    with quiet():
        times = interleave(f"{suite} {case}", contenders, sizes.repeats, sizes.warmup, device)
    tokens = setups["dense"].batches[0]["ntokens"]
    rows = rows_of(suite, case, times, {name: (experts, tokens) for name, (experts, _) in flags.items()})
    speeds = {row.contender: 1 / row.time_ratio.median for row in rows}
    name = f"moec {sizes.experts[0]}"
    return rows, [
        Target(f"speed of {suite} with {sizes.experts[0]} experts / dense", speeds[name], 0.85, at_most=False)
    ]


def _setup(
    folder: Path, recipe: tuple[str, ...], flags: tuple[str, ...], sizes: ModelSizes, device: torch.device
) -> Setup:
    task, trainer = build_trainer(folder, recipe, flags, sizes, device)
    with quiet():
        task.load_dataset("train")
        batches = trainer.get_train_iterator(epoch=1, load_dataset=False).next_epoch_itr()
        return Setup(task, trainer, list(islice(batches, 1)))
