"""The steps from a corpus to the binary data of fairseq."""

import math
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from moec_fairseq.__main__ import ROOT
from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.languages import SPLITS, check_languages, parallel_paths
from moec_fairseq.data.messages import fetch, read_pins, write_messages
from moec_fairseq.data.published import TEXTS, write_published
from moec_fairseq.data.recipes import read_recipe
from moec_fairseq.data.splits import own_files, write_own
from moec_fairseq.data.subwords import binarise, check_sizes, segment, train_model
from moec_fairseq.util.files import alone_with, find_yaml, whole_texts, write_json
from moec_fairseq.util.processes import start_workers
from moec_fairseq.util.stages import Stages

QUICKSTART = "quickstart"
WHEELS = ROOT / "data" / QUICKSTART / "wheels.txt"
PREPARED = "prepared.json"  # says what the folder of a prepared corpus holds


@dataclass(frozen=True)
class Corpus:
    """Where text comes from.

    Attributes:
        name: of the corpus.
        source: language to translate from.
        target: language to translate to.
        write: writes the text of every split, given the folder of raw files, that of the text, a pool, and how many
            chunks may be in progress; returns pairs by what became of them.
        settings: what the text depends on, beside its inputs.
        inputs: names of the raw files that it is made of.
        texts: names of what is written, for each language.
        normalised: whether punctuation is normalised; then that of sentences to translate must be, too.
        limits: on pairs: most subwords of a side, ratio of the sides.
    """

    name: str
    source: str
    target: str
    write: Callable[[Path, Path, Executor, int], Counter[str]]
    settings: Any
    inputs: tuple[str, ...] = ()
    texts: tuple[str, ...] = SPLITS
    normalised: bool = False
    limits: tuple[int, float] | None = None


def _published(recipe: Path, source: str | None, target: str | None, distinct: bool) -> Corpus:
    read = read_recipe(recipe, source, target)
    return Corpus(
        read.name,
        read.source,
        read.target,
        lambda raw, out, pool, ahead: write_published(read, raw, out, pool, ahead, distinct),
        [asdict(read), distinct],
        tuple(archive.file_name for archive in read.archives.values()),
        TEXTS,
        normalised=True,
        limits=(250, 1.5),
    )


def _messages(source: str, target: str, tier: str) -> Corpus:
    if source != "en":
        raise ValueError(f"--source is {source}, but the messages are in English; give en, or --train-prefix")
    pins = read_pins(WHEELS, tier)
    return Corpus(
        QUICKSTART,
        source,
        target,
        lambda raw, out, *_: write_messages(fetch(pins, raw), source, target, out),
        [pin.requirement for pin in pins],
    )


def _own(prefixes: dict[str, str], source: str, target: str) -> Corpus:
    files = own_files(prefixes, source, target)
    states = [[split, str(path), path.stat().st_mtime_ns] for split, sides in files.items() for path in sides]
    return Corpus("own", source, target, lambda _, out, *__: write_own(files, source, target, out), states)


def choose_corpus(
    corpus: str | None,
    recipes: Path,
    source: str | None,
    target: str | None,
    prefixes: dict[str, str | None],
    tier: str,
    distinct: bool,
) -> Corpus:
    """Return a recipe's corpus, the quickstart's, or the user's own text.

    Raises:
        ValueError: there is no such corpus or text, or the options do not go together.
    """
    given = {split: prefix for split, prefix in prefixes.items() if prefix}
    if corpus not in (None, QUICKSTART) and not given:
        return _published(find_yaml("recipe", str(corpus), recipes), source, target, distinct)
    languages = source or "en", target or "de"
    check_languages(*languages)
    if "train" in given and corpus is None:
        return _own(given, *languages)
    if given:
        raise ValueError("--valid-prefix and --test-prefix are for your own text: give --train-prefix, and no CORPUS")
    if corpus is None:
        raise ValueError("nothing to prepare was given; give a recipe of data/, quickstart, or --train-prefix")
    return _messages(*languages, tier)


def prepare(
    corpus: str | None,
    recipes: Path,
    raw_dir: Path | None,
    out: Path | None,
    workers: int,
    source: str | None,
    target: str | None,
    train_prefix: str | None,
    valid_prefix: str | None,
    test_prefix: str | None,
    tier: str,
    vocab_size: int,
    model_type: str,
    character_coverage: float,
    max_length: int | None,
    max_ratio: float | None,
    distinct: bool,
) -> None:
    """Do all steps that are not done yet; the arguments are the options of ``moec prepare``.

    Raises:
        ValueError: something is wrong with what was given or downloaded.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}, but must be 1 or more")
    prefixes = {"train": train_prefix, "valid": valid_prefix, "test": test_prefix}
    chosen = choose_corpus(corpus, recipes, source, target, prefixes, tier, distinct)
    check_sizes(vocab_size, character_coverage)
    limits = _limits(max_length, max_ratio, chosen.limits)
    languages = chosen.source, chosen.target
    out = out or Path(f"{chosen.name}-{'-'.join(languages)}")
    text, subwords, model = out / "text", out / "subwords", out / "spm.model"
    raw = raw_dir or out / "raw"
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out)
    with start_workers(workers) as pool, alone_with(out):
        counts = Counter(
            stages.do(
                "text",
                chosen.settings,
                lambda: chosen.write(raw, text, pool, 4 * workers),
                [path for name in chosen.texts for path in parallel_paths(text, name, *languages)],
                [raw / name for name in chosen.inputs],
            )
        )
        write_json(out / PREPARED, {"source": languages[0], "target": languages[1], "normalised": chosen.normalised})
        stages.do(
            "subword-model",
            [vocab_size, model_type, character_coverage],
            lambda: train_model(
                parallel_paths(text, "train", *languages), vocab_size, model_type, character_coverage, model
            ),
            [model],
        )
        counts.update(
            stages.do(
                "subwords",
                asdict(limits) if limits else None,
                lambda: segment(text, *languages, model, limits, subwords, pool, 4 * workers),
                [path for split in SPLITS for path in parallel_paths(subwords, split, *languages)],
            )
        )
        with whole_texts([out / "cleaning.md"]) as (file,):
            file.write(table(counts) + "\n")
        print(table(counts))
        stages.do("binary", None, lambda: binarise(subwords, *languages, workers, out / "binary"), [out / "binary"])
        print(f"{out}: binary/ for fairseq, text/ and subwords/ with the sentences, spm.model, cleaning.md")


def _limits(max_length: int | None, max_ratio: float | None, default: tuple[int, float] | None) -> Limits | None:
    if (max_length is not None and max_length < 1) or (max_ratio is not None and not max_ratio >= 1):  # nor NaN
        raise ValueError(f"--max-length is {max_length} and --max-ratio {max_ratio}, but neither can be below 1")
    if default is None and max_length is max_ratio is None:
        return None
    length, ratio = default or (sys.maxsize, math.inf)
    return Limits(length if max_length is None else max_length, ratio if max_ratio is None else max_ratio)


def table(counts: Counter[str]) -> str:
    """Return how many pairs each rule dropped, as Markdown."""
    rules = list(dict.fromkeys(key.partition(": ")[2] for key in counts))
    last = ["kept", "segmented"]
    rules = [rule for rule in rules if rule not in last] + [last[1]]
    rows = [[rule if rule != "segmented" else "kept", *(counts[f"{use}: {rule}"] for use in SPLITS)] for rule in rules]
    return tabulate(rows, headers=["pairs", *SPLITS], tablefmt="github", intfmt=",")
