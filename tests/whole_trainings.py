"""Whole trainings of fairseq-train in this process, and what they have seen."""

import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.conftest import LETTERS, TINY

SMALL = (
    "-s", "src", "-t", "tgt", *TINY, "--encoder-embed-dim", 16, "--encoder-ffn-embed-dim", 16, "--decoder-embed-dim",
    16, "--decoder-ffn-embed-dim", 16, "--criterion", "moec_label_smoothed_cross_entropy",
    "--moec-expert-dropout-interval", 7, "--optimizer", "adam", "--lr", 0.003, "--num-workers", 0,
    "--data-buffer-size", 0, "--no-progress-bar",
)  # fmt: skip


@dataclass
class Seen:
    """What a training has seen and become.

    Attributes:
        sentences: numbers of the sentences of each batch, update by update.
        parameters: at the end.
        rates: learning rate of each update.
    """

    sentences: list[list[int]] = field(default_factory=list)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)


def write_corpus(folder: Path, pairs: int, seed: int = 0, valid: int = 20) -> Path:
    """Binarise a corpus of distinct strings of letters and their reversals; return the folder of the data."""
    from fairseq.binarizer import FileBinarizer, VocabularyDatasetBinarizer
    from fairseq.data import Dictionary

    dictionary = Dictionary()
    for letter in LETTERS:
        dictionary.add_symbol(letter)
    chosen = random.Random(seed)
    distinct: dict[str, None] = {}
    while len(distinct) < pairs + valid:
        distinct[" ".join(chosen.choices(LETTERS, k=chosen.randint(3, 9)))] = None
    lines = list(distinct)
    folder.mkdir(parents=True, exist_ok=True)
    for language in ("src", "tgt"):
        dictionary.save(str(folder / f"dict.{language}.txt"))
        for split, part in {"valid": lines[:valid], "train": lines[valid:]}.items():
            text = folder / "text"
            text.write_text("".join(f"{line if language == 'src' else line[::-1]}\n" for line in part))
            prefix = folder / f"{split}.src-tgt.{language}"
            FileBinarizer.multiprocess_dataset(
                str(text), "mmap", VocabularyDatasetBinarizer(dictionary, append_eos=True), str(prefix), len(dictionary)
            )
    return folder


@lru_cache
def configuration(*arguments: str) -> Any:
    """Return what fairseq-train makes of its arguments, which takes longer than a short training."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    parser = options.get_training_parser()
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(parser, input_args=list(arguments)))


def train(data: Any, save_dir: Path, *flags: object, max_update: int = 0, base: tuple[object, ...] = SMALL) -> Seen:
    """Do what the command line of fairseq-train does."""
    from fairseq.trainer import Trainer
    from fairseq_cli.train import main

    config = deepcopy(configuration(*map(str, (data, *base, *flags))))
    config.checkpoint.save_dir, config.optimization.max_update = str(save_dir), max_update
    seen = Seen()
    train_step = Trainer.train_step

    def note(trainer: Any, samples: Sequence[Any], *rest: Any) -> Any:
        seen.sentences.append([int(i) for sample in samples if sample for i in sample["id"]])
        seen.rates.append(float(trainer.get_lr()))
        result = train_step(trainer, samples, *rest)
        trained = trainer.get_model().named_parameters()
        seen.parameters = {name: p.detach().clone() for name, p in trained if p.requires_grad}
        return result

    Trainer.train_step = note
    try:
        main(config)
    finally:
        Trainer.train_step = train_step
    return seen


def train_with_stops(
    data: Any, save_dir: Path, stops: Sequence[int], *flags: object, base: tuple[object, ...] = SMALL
) -> Seen:
    """Train up to each of the updates ``stops``, starting again for each; return what was seen in all."""
    whole = Seen()
    for stop in stops:
        part = train(data, save_dir, *flags, max_update=stop, base=base)
        whole = Seen(whole.sentences + part.sentences, part.parameters, whole.rates + part.rates)
    return whole


def vars_of_training(
    rank: int, world_size: int, data: Any, save_dir: Path, stops: Sequence[int], *flags: object
) -> dict[str, Any]:
    """Do the same as one rank of a job that is running."""
    return vars(train_with_stops(data, save_dir, stops, *flags, *of_rank(rank, world_size)))


def of_rank(rank: int, world_size: int) -> tuple[object, ...]:
    """Return the flags of a rank of the job that this process is in."""
    from fairseq.distributed import utils as distributed_utils

    distributed_utils._GLOBAL_GROUP = torch.distributed.group.WORLD
    return (
        "--distributed-world-size", world_size, "--distributed-rank", rank, "--distributed-no-spawn", "--ddp-backend",
        "legacy_ddp", "--distributed-backend", "gloo",
    )  # fmt: skip
