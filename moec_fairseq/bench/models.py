"""The train and generate suites: whole models, dense and sparse, of the same active size, in one process."""

import logging
import random
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from fairseq import options, tasks
from fairseq.data import Dictionary, LanguagePairDataset, indexed_dataset
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.trainer import Trainer

import moec_fairseq
from moec_fairseq.bench.measure import Contender, Times, interleave
from moec_fairseq.bench.report import Row, Target, rows_of
from moec_fairseq.bench.sizes import ModelSizes

LANGUAGES = ("src", "tgt")
COMMON = (
    "--user-dir", moec_fairseq.__path__[0], "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)",
    "--clip-norm", "1.0", "--seed", "1", "--distributed-world-size", "1",
)  # fmt: skip
RECIPE = (
    *COMMON, "--task", "translation", "-s", LANGUAGES[0], "-t", LANGUAGES[1],
    "--criterion", "moec_label_smoothed_cross_entropy", "--label-smoothing", "0.1",
)  # fmt: skip
NOT_LEARNING = ("--lr", "1e-9", "--no-save", "--max-tokens-valid", "100")
TRAINING = (*RECIPE, *NOT_LEARNING)
PRECISIONS = {"fp32": (), "bf16": ("--bf16",), "fp16": ("--fp16", "--fp16-no-flatten-grads"), "amp": ("--amp",)}


def sparse(experts: int) -> tuple[str, ...]:
    """Return the options of a MoEC model without expert dropout, so that all experts are used."""
    clusters = max(1, experts // 8) if experts > 8 else max(1, experts // 2)
    return ("--moe-expert-count", f"{experts}", "--moec-cluster-count", f"{clusters}", "--moec-expert-dropout", "0")


DENSE = (*sparse(1), "--moec-variance", "none")


@dataclass(frozen=True)
class Setup:
    """A task, the trainer of its model, and batches."""

    task: Any
    trainer: Any
    batches: list[dict[str, Any]]


@contextmanager
def quiet() -> Iterator[None]:
    """Let fairseq log nothing but errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def random_sentences(dictionary: Dictionary, sentences: int, length: int, source: random.Random) -> list[torch.Tensor]:
    """Return sentences of about ``length`` words, at most one and a half times as many."""

    def sentence() -> torch.Tensor:
        words = source.randint(max(1, length // 2), length + length // 2)
        ids = [source.randrange(dictionary.nspecial, len(dictionary)) for _ in range(words)]
        return torch.tensor([*ids, dictionary.eos()])

    return [sentence() for _ in range(sentences)]


def _data(dictionary: Dictionary, sentences: int, length: int, seed: int) -> LanguagePairDataset:
    source = random.Random(seed)
    sides = [random_sentences(dictionary, sentences, length, source) for _ in range(2)]
    lengths = [torch.tensor([len(s) for s in side]).numpy() for side in sides]
    return LanguagePairDataset(
        sides[0], lengths[0], dictionary, sides[1], lengths[1], dictionary, left_pad_source=False, shuffle=False
    )


def hardware(device: torch.device) -> tuple[str, ...]:
    """Return the options that say where to compute."""
    return () if device.type == "cuda" else ("--cpu",)


def made_up(vocabulary: int) -> Dictionary:
    """Return a dictionary of so many words."""
    dictionary = Dictionary()
    for word in range(vocabulary):
        dictionary.add_symbol(f"w{word}")
    return dictionary


def _write_dictionaries(folder: Path, vocabulary: int) -> Dictionary:
    dictionary = made_up(vocabulary)
    for language in LANGUAGES:
        dictionary.save(str(folder / f"dict.{language}.txt"))
    return dictionary


def write_corpus(folder: Path, sizes: ModelSizes, updates: int) -> None:
    """Write binary data for that many updates, and more, in one epoch."""
    dictionary = _write_dictionaries(folder, sizes.vocabulary)
    sentences = 2 * updates * max(1, sizes.max_tokens // sizes.length)
    data = _data(dictionary, sentences, sizes.length, seed=1)
    for language, side in zip(LANGUAGES, (data.src, data.tgt), strict=True):
        write_binary(folder / f"train.{'-'.join(LANGUAGES)}.{language}", dictionary, side)


def write_binary(path: Path, dictionary: Dictionary, sentences: Iterable[torch.Tensor]) -> None:
    """Write sentences as fairseq-preprocess does, to files whose names begin with ``path``."""
    builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", len(dictionary))
    for sentence in sentences:
        builder.add_item(sentence)
    builder.finalize(f"{path}.idx")


def build_trainer(
    folder: Path, recipe: tuple[str, ...], flags: tuple[str, ...], sizes: ModelSizes, device: torch.device
) -> tuple[Any, Any]:
    """Build task, model, criterion and trainer as fairseq-train does; return task and trainer."""
    arguments = [str(folder), "--arch", sizes.arch, "--max-tokens", str(sizes.max_tokens), *recipe]
    arguments += [*sizes.options, *flags, *hardware(device)]
    torch.manual_seed(1)
    with quiet():
        config = convert_namespace_to_omegaconf(
            options.parse_args_and_arch(options.get_training_parser(), input_args=arguments)
        )
        task = tasks.setup_task(config.task)
        model = task.build_model(config.model)
        return task, Trainer(config, task, model, task.build_criterion(config.criterion))


def build(folder: Path, flags: tuple[str, ...], sizes: ModelSizes, device: torch.device) -> Setup:
    """Build task, model, criterion and trainer as fairseq-train does, and two batches."""
    dictionary = _write_dictionaries(folder, sizes.vocabulary)
    task, trainer = build_trainer(folder, TRAINING, flags, sizes, device)
    data = _data(dictionary, 2 * max(1, sizes.max_tokens // sizes.length), sizes.length, seed=1)
    batches = []
    start = used = 0
    for end in range(len(data)):
        used += int(data.sizes[end].max())
        if used > sizes.max_tokens:
            batches.append(data.collater([data[i] for i in range(start, end)]))
            start, used = end, int(data.sizes[end].max())
    assert batches
    return Setup(task, trainer, batches[:2])


def train(sizes: ModelSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time training steps (forward, backward, clipping, optimizer) and the optimizer's share of them."""
    few, many = sizes.experts
    flags = {
        "dense": DENSE,
        f"moec {few}": sparse(few),
        f"moec {many}": sparse(many),
        f"moec {many} fused_adam": (*sparse(many), "--optimizer", "fused_adam"),
    }
    in_optimizer: dict[str, list[float]] = {name: [] for name in flags}
    with TemporaryDirectory() as folder:
        setups = {name: build(Path(folder), own, sizes, device) for name, own in flags.items()}
    contenders = {}
    for name, setup in setups.items():
        _time_optimizer(setup.trainer, in_optimizer[name], device)
        contenders[name] = Contender(training_step(setup))
    case = ", ".join([sizes.arch, f"{sizes.max_tokens} tokens per batch", *sizes.options])
    with quiet():
        times = interleave(f"train {case}", contenders, sizes.repeats, sizes.warmup, device)
    tokens = setups["dense"].batches[0]["ntokens"]
    meant = dict(zip(flags, ((0, tokens), (few, tokens), (many, tokens), (many, tokens)), strict=True))
    rows = rows_of("train", case, times, meant)
    by_name = {row.contender: row for row in rows}
    targets = [
        Target("training speed of 8 experts / dense", 1 / by_name[f"moec {few}"].time_ratio.median, 0.85, at_most=False)
    ]
    for name, seconds in in_optimizer.items():
        parts = {"step": times[name], "its optimizer": Times(seconds[-sizes.repeats :], [0.0] * sizes.repeats)}
        rows += rows_of("train", f"share of the optimizer, {name}", parts, dict.fromkeys(parts, meant[name]))
    return rows, targets


def training_step(setup: Setup) -> Callable[[], None]:
    """Return what makes one update with the first batch."""

    def step() -> None:
        setup.trainer.train_step(setup.batches[:1])

    return step


def _time_optimizer(trainer: Any, seconds: list[float], device: torch.device) -> None:
    optimizer = trainer.optimizer
    step = optimizer.step

    def timed(*args: Any, **kwargs: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = perf_counter()
        result = step(*args, **kwargs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - start)
        return result

    optimizer.step = timed


def generate(sizes: ModelSizes, device: torch.device) -> tuple[list[Row], list[Target]]:
    """Time beam search with 5 hypotheses; all models produce translations of the same length."""
    few, many = sizes.experts
    flags = {"dense": DENSE, f"moec {few}": sparse(few), f"moec {many}": sparse(many)}
    search = {"beam": 5, "max_len_a": 0, "max_len_b": sizes.length, "min_len": sizes.length}
    contenders = {}
    with TemporaryDirectory() as folder:
        for name, own in flags.items():
            setup = build(Path(folder), own, sizes, device)
            model = setup.trainer.model.eval()
            _randomise_experts(model)
            data = _data(setup.task.source_dictionary, sizes.sentences, sizes.length, seed=2)
            sample = data.collater([data[i] for i in range(len(data))])
            sample = setup.trainer._prepare_sample(sample)[0]
            generator = setup.task.build_generator([model], Namespace(**search))
            contenders[name] = Contender(_translate(setup.task, generator, model, sample))
    case = f"beam 5, {sizes.sentences} sentences of {sizes.length} tokens"
    case = ", ".join([sizes.arch, case, *sizes.options])
    times = interleave(f"generate {case}", contenders, sizes.repeats, sizes.warmup, device)
    tokens = sizes.sentences * sizes.length
    rows = rows_of(
        "generate", case, times, {"dense": (0, tokens), f"moec {few}": (few, tokens), f"moec {many}": (many, tokens)}
    )
    speed = 1 / {row.contender: row for row in rows}[f"moec {many}"].time_ratio.median
    return rows, [Target(f"speed of beam search, {many} experts / dense", speed, 0.85, at_most=False)]


def _randomise_experts(model: Any) -> None:
    """New experts are the identity; trained ones are not."""
    for layer in model.moe_layers:
        for block in layer.experts.sublayers:
            torch.nn.init.normal_(block.w2_NDF, std=0.02)


def _translate(task: Any, generator: Any, model: Any, sample: dict[str, Any]) -> Callable[[], None]:
    def translate() -> None:
        task.inference_step(generator, [model], sample)

    return translate
