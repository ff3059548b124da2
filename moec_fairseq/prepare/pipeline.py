"""The steps from a recipe to the binary data of fairseq."""

import os
import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tabulate import tabulate

from moec_fairseq.cli.fairseq import run_fairseq
from moec_fairseq.cli.locks import alone_with
from moec_fairseq.cli.named import find_yaml
from moec_fairseq.cli.stages import Stages
from moec_fairseq.corpus.output import complete_files, parallel_paths
from moec_fairseq.corpus.segment import check_sizes, train_model
from moec_fairseq.prepare.archives import extract
from moec_fairseq.prepare.cleaning import Limits
from moec_fairseq.prepare.download import download
from moec_fairseq.prepare.parallel import processes
from moec_fairseq.prepare.pieces import write_pieces
from moec_fairseq.prepare.recipe import USES, Recipe, read_recipe
from moec_fairseq.prepare.texts import TEXTS, write_texts


def prepare(
    recipe: str,
    recipes: Path,
    raw_dir: Path | None,
    out: Path | None,
    workers: int,
    source: str | None,
    target: str | None,
    vocab_size: int,
    model_type: str,
    character_coverage: float,
    max_length: int,
    max_ratio: float,
    distinct: bool,
) -> None:
    """Do all steps that are not done yet.

    Args:
        recipe: path of a YAML file, or a name in ``recipes``.
        recipes: folder of recipes.
        raw_dir: where archives are, or are downloaded to.
        out: folder of all results.
        workers: processes.
        source: language to translate from, if not that of the recipe.
        target: language to translate to, if not that of the recipe.
        vocab_size: most pieces.
        model_type: of sentencepiece.
        character_coverage: of sentencepiece.
        max_length: most pieces of a side.
        max_ratio: most times that one side is as long as the other.
        distinct: drop training pairs that have been there before.

    Raises:
        ValueError: something is wrong with what was given or downloaded.
    """
    if workers < 1:
        raise ValueError(f"--workers is {workers}, but must be 1 or more")
    check_sizes(vocab_size, model_type, character_coverage)
    if max_length < 1 or not max_ratio >= 1:  # nor NaN
        raise ValueError(f"--max-length is {max_length} and --max-ratio {max_ratio}, but neither can be below 1")
    corpus = read_recipe(find_yaml("recipe", recipe, recipes), source, target)
    languages = corpus.source, corpus.target
    out = out or Path(f"{corpus.name}-{'-'.join(languages)}")
    raw = raw_dir or out / "raw"
    out.mkdir(parents=True, exist_ok=True)
    limits = Limits(max_length=max_length, max_ratio=max_ratio)
    stages = Stages(out)
    with processes(workers) as pool, alone_with(out):

        def texts() -> dict[str, int]:
            missing = [
                archive.file_name for archive in corpus.archives.values() if not (raw / archive.file_name).is_file()
            ]
            if missing:
                print(f"to download, because {raw} has it not: {', '.join(missing)}", flush=True)
            archives = {name: download(archive, raw) for name, archive in corpus.archives.items()}
            extracted = out / "extracted"
            found = write_texts(corpus, _places(corpus, archives, extracted), out / "text", pool, 4 * workers, distinct)
            shutil.rmtree(extracted)
            return found

        text_files = [path for name in TEXTS for path in parallel_paths(out / "text", name, *languages)]
        raw_files = [raw / archive.file_name for archive in corpus.archives.values()]
        counts = Counter(stages.do("text", [asdict(corpus), distinct], texts, text_files, raw_files))
        model = out / "spm.model"
        stages.do(
            "pieces-model",
            [vocab_size, model_type, character_coverage],
            lambda: train_model(
                parallel_paths(out / "text", "train", *languages), vocab_size, model_type, character_coverage, model
            ),
            [model],
        )
        counts.update(
            stages.do(
                "pieces",
                asdict(limits),
                lambda: write_pieces(out / "text", *languages, model, limits, out / "pieces", pool, 4 * workers),
                [path for use in USES for path in parallel_paths(out / "pieces", use, *languages)],
            )
        )
        with complete_files([out / "cleaning.md"]) as (file,):
            file.write(table(counts) + "\n")
        print(table(counts))
        stages.do("binary", None, lambda: _preprocess(out, *languages, workers), [out / "binary"])
        print(f"{out}: binary/ for fairseq, text/ and pieces/ with the sentences, spm.model, cleaning.md")


def table(counts: Counter[str]) -> str:
    """Return how many pairs each rule dropped, as Markdown."""
    rules = list(dict.fromkeys(key.partition(": ")[2] for key in counts))
    last = ["kept", "segmented"]
    rules = [rule for rule in rules if rule not in last] + [last[1]]
    rows = [[rule if rule != "segmented" else "kept", *(counts[f"{use}: {rule}"] for use in USES)] for rule in rules]
    return tabulate(rows, headers=["pairs", *USES], tablefmt="github", intfmt=",")


def _places(corpus: Recipe, archives: dict[str, Path], out: Path) -> list[dict[str, Path]]:
    """Return the file of each language for each part, taken out of its archive."""
    found: dict[tuple[str, str | None], Path] = {}
    for name, path in archives.items():
        members = {
            member for part in corpus.parts for archive, member in part.texts.values() if archive == name and member
        }
        if members:
            found |= {(name, m): p for m, p in extract(path, members, out / name).items()}
        else:
            found[name, None] = path
    return [{language: found[place] for language, place in part.texts.items()} for part in corpus.parts]


def _preprocess(out: Path, source: str, target: str, workers: int) -> None:
    """Number the pieces with fairseq-preprocess."""
    # of this process: one that was killed may have left a fairseq-preprocess that is just ending
    binary, part, log = out / "binary", out / f".binary-{os.getpid()}.part", out / "preprocess.log"
    for folder in (binary, *out.glob(".binary*.part")):
        shutil.rmtree(folder, ignore_errors=True)
    run_fairseq(
        "preprocess", "--source-lang", source, "--target-lang", target, "--joined-dictionary", "--destdir", part,
        "--workers", workers,
        *(argument for use in USES for argument in (f"--{use}pref", out / "pieces" / use)),
        log=log,
    )  # fmt: skip
    part.replace(binary)
