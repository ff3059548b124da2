"""The steps from a corpus to the binary data of fairseq: pairs to translate, text of one language, tasks of GLUE."""

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tabulate import tabulate

from moec_fairseq.__main__ import call
from moec_fairseq.data.cleaning import Limits
from moec_fairseq.data.corpora import choose_corpus
from moec_fairseq.data.documents import document_paths, write_documents
from moec_fairseq.data.examples import ORDER, raw_files, read_examples, read_sentences, write_examples
from moec_fairseq.data.formats.compressed import found_as
from moec_fairseq.data.formats.text import check_file, raw_lines
from moec_fairseq.data.glue import GlueTask, find_task
from moec_fairseq.data.gpt2_bpe import GPT2_BPE, check_gpt2
from moec_fairseq.data.languages import SPLITS, default_coverage, parallel_paths
from moec_fairseq.data.splits import check_apart
from moec_fairseq.data.subwords import (
    binarise,
    binarise_files,
    binarise_text,
    check_sizes,
    segment,
    segment_lines,
    train_model,
)
from moec_fairseq.util.files import alone_with, whole_files, whole_folder, whole_texts, write_json
from moec_fairseq.util.processes import start_workers
from moec_fairseq.util.stages import Stages

PREPARED = "prepared.json"  # says what the folder of a prepared corpus holds
SENTENCEPIECE = "spm.model"
DICTIONARY = "dict.txt"
MODEL_FILES = frozenset((*GPT2_BPE, SENTENCEPIECE, DICTIONARY))  # of which a folder has those of one model


def prepare(corpus: str | None, **options: Any) -> None:
    """Do all steps that are not done yet; the arguments are the options of ``moec prepare``.

    Raises:
        ValueError: something is wrong with what was given or downloaded, or options do not go together.
    """
    if corpus is not None and corpus.partition("/")[0] == "glue":
        call(prepare_glue, "prepare", "GLUE", {"corpus": corpus, **options})
    elif corpus is None and any(options[f"{split}_text"] for split in SPLITS):
        learning = ("vocab_size", "model_type", "character_coverage")
        if options["gpt2_bpe"]:
            call(prepare_text, "prepare", "text of one language with --gpt2-bpe", options, without=learning)
        else:
            call(prepare_text, "prepare", "text of one language", options)
    else:
        call(prepare_pairs, "prepare", "pairs to translate", {"corpus": corpus, **options})


def prepare_pairs(
    corpus: str | None,
    recipes: Path,
    raw_dir: Path | None,
    out: Path | None,
    workers: int,
    source: str | None,
    target: str | None,
    train: list[str] | None,
    valid: list[str] | None,
    test: list[str] | None,
    train_prefix: str | None,
    valid_prefix: str | None,
    test_prefix: str | None,
    tier: str,
    vocab_size: int | None,
    model_type: str,
    character_coverage: float | None,
    max_length: int | None,
    max_ratio: float | None,
    distinct: bool,
    sources: str | None,
    targets: str | None,
    sampling_temperature: float,
    identify_language: bool,
) -> None:
    """Make data for translation.

    Raises:
        ValueError: something is wrong with what was given or downloaded.
    """
    _check_workers(workers)
    prefixes = {"train": train_prefix, "valid": valid_prefix, "test": test_prefix}
    files = {"train": train, "valid": valid, "test": test}
    chosen = choose_corpus(
        corpus, recipes, source, target, prefixes, files, tier, distinct, sources, targets, sampling_temperature,
        identify_language,
    )  # fmt: skip
    check_sizes(vocab_size, character_coverage)
    limits = _limits(max_length, max_ratio, chosen.limits)
    languages = chosen.source, chosen.target
    spoken = (chosen.several.one, *chosen.several.many) if chosen.several else languages
    coverage = default_coverage(spoken) if character_coverage is None else character_coverage
    out = out or Path(f"{chosen.name}-{'-'.join(languages)}")
    text, subwords, model = out / "text", out / "subwords", out / SENTENCEPIECE
    raw = raw_dir or out / "raw"
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out)
    with start_workers(workers) as pool, alone_with(out):
        counts = Counter(
            stages.do(
                "text",
                chosen.settings,
                lambda: chosen.write(raw, text, pool, 4 * workers),
                [
                    *(path for name in chosen.texts for path in parallel_paths(text, name, *languages)),
                    *(text / language for language in (chosen.several.many if chosen.several else ())),
                ],
                [raw / name for name in chosen.inputs],
            )
        )
        about = {"source": languages[0], "target": languages[1], "normalised": chosen.normalised}
        write_json(out / PREPARED, about | ({"many": chosen.several.many} if chosen.several else {}))
        tags = chosen.several.tags if chosen.several else ()
        stages.do(
            "subword-model",
            [vocab_size, model_type, coverage],
            lambda: train_model(
                parallel_paths(text, "train", *languages), vocab_size, model_type, coverage, model, tags
            ),
            [model],
        )
        counts.update(
            stages.do(
                "subwords",
                asdict(limits) if limits else None,
                lambda: segment(text, *languages, model, limits, subwords, pool, 4 * workers, chosen.parts),
                [path for part in (*SPLITS, *chosen.parts) for path in parallel_paths(subwords, part, *languages)],
            )
        )
        _show(table(counts), out / "cleaning.md")
        stages.do(
            "binary",
            None,
            lambda: binarise(subwords, *languages, workers, out / "binary", chosen.parts),
            [out / "binary"],
        )
        print(f"{out}: binary/ for fairseq, text/ and subwords/ with the sentences, {SENTENCEPIECE}, cleaning.md")


def _limits(max_length: int | None, max_ratio: float | None, default: tuple[int, float] | None) -> Limits | None:
    if (max_length is not None and max_length < 1) or (max_ratio is not None and not max_ratio >= 1):  # nor NaN
        raise ValueError(f"--max-length is {max_length} and --max-ratio {max_ratio}, but neither can be below 1")
    if default is None and max_length is max_ratio is None:
        return None
    length, ratio = default or (sys.maxsize, math.inf)
    return Limits(length if max_length is None else max_length, ratio if max_ratio is None else max_ratio)


def prepare_text(
    train_text: Path | None,
    valid_text: Path | None,
    test_text: Path | None,
    out: Path | None,
    workers: int,
    vocab_size: int | None,
    model_type: str,
    character_coverage: float | None,
    gpt2_bpe: Path | None,
    tokens_per_sample: int,
) -> None:
    """Make data for masked language models of the user's own text.

    Raises:
        ValueError: something is wrong with what was given.
    """
    _check_workers(workers)
    if train_text is None:
        raise ValueError("--valid-text and --test-text need --train-text; give it, too")
    if tokens_per_sample < 3:  # <s>, a subword, </s>
        raise ValueError(f"--tokens-per-sample is {tokens_per_sample}, but must be 3 or more")
    check_sizes(vocab_size, character_coverage)
    coverage = 1.0 if character_coverage is None else character_coverage
    given = {"train": train_text, "valid": valid_text, "test": test_text}
    files = {split: found_as(path) for split, path in given.items() if path}
    for path in files.values():
        check_file(path)
    out = out or Path("own-text")
    text, subwords, model = out / "text", out / "subwords", out / SENTENCEPIECE
    names: tuple[str, ...] = (SENTENCEPIECE,)
    if gpt2_bpe:
        check_gpt2(gpt2_bpe)
        check_apart([gpt2_bpe / name for name in GPT2_BPE], out)
        names = (*GPT2_BPE, DICTIONARY) if (gpt2_bpe / DICTIONARY).exists() else GPT2_BPE
        model = out
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out)
    with start_workers(workers) as pool, alone_with(out):
        counts = Counter(
            stages.do(
                "text",
                [[split, str(path), path.stat().st_mtime_ns] for split, path in files.items()],
                lambda: write_documents(files, text),
                list(document_paths(text).values()),
            )
        )
        write_json(out / PREPARED, {"kind": "text", "tokens_per_sample": tokens_per_sample})
        _remove_other_models(names, out)
        if gpt2_bpe:
            _take_model({name: gpt2_bpe / name for name in names}, out, stages)
        else:
            stages.do(
                "subword-model",
                [vocab_size, model_type, coverage],
                lambda: train_model([text / "train.txt"], vocab_size, model_type, coverage, model),
                [model],
            )
        lines = {split: raw_lines(path) for split, path in document_paths(text).items()}
        counts.update(
            stages.do(
                "subwords",
                tokens_per_sample,
                lambda: segment_lines(lines, model, tokens_per_sample - 2, subwords, pool, 4 * workers),
                list(document_paths(subwords).values()),
            )
        )
        _show(_rows(counts, "text", SPLITS), out / "counts.md")
        dictionary = out / DICTIONARY if DICTIONARY in names else None
        stages.do(
            "binary", None, lambda: binarise_text(subwords, dictionary, workers, out / "binary"), [out / "binary"]
        )
        print(f"{out}: binary/ for fairseq, text/ and subwords/ with the sentences, the subword model, counts.md")


def prepare_glue(corpus: str, raw_dir: Path | None, out: Path | None, workers: int, subwords_of: Path | None) -> None:
    """Make data for a task of GLUE, with the subwords of a pre-training.

    Raises:
        ValueError: something is wrong with what was given or downloaded.
    """
    _check_workers(workers)
    task = find_task(corpus.partition("/")[2])
    if subwords_of is None:
        raise ValueError("GLUE needs the subwords of a pre-training; give its folder of moec prepare as --subwords-of")
    sources = _model_of(subwords_of)
    out = out or Path(f"glue-{task.name}")
    check_apart(sources.values(), out)
    text, subwords, raw = out / "text", out / "subwords", raw_dir or out / "raw"
    out.mkdir(parents=True, exist_ok=True)
    stages = Stages(out)
    with start_workers(workers) as pool, alone_with(out):
        counts: Counter[str] = Counter(
            stages.do(
                "text",
                asdict(task),
                lambda: write_examples(task, raw, text),
                [text / "train.tsv"],
                raw_files(task, raw),
            )
        )
        splits = [split for split in ORDER if f"{split}: examples" in counts]
        write_json(out / PREPARED, {"kind": "glue", "task": task.name, "splits": splits})
        _remove_other_models(sources, out)
        _take_model(sources, out, stages)
        model = out / SENTENCEPIECE if SENTENCEPIECE in sources else out
        names = {f"{split}.input{side}": (split, side) for split in splits for side in range(task.num_sentences)}
        sentences = {name: read_sentences(text / f"{split}.tsv", side) for name, (split, side) in names.items()}
        segmented = stages.do(
            "subwords",
            None,
            lambda: segment_lines(sentences, model, None, subwords, pool, 4 * workers),
            [subwords / f"{name}.txt" for name in names],
        )
        for name, (split, side) in names.items():
            counts[f"{split}: subwords of input{side}"] = segmented[f"{name}: subwords"]
        _show(_rows(counts, task.name, splits), out / "counts.md")
        stages.do("binary", None, lambda: _binarise_task(task, splits, out), [out / "binary"])
        print(f"{out}: binary/ for fairseq, text/ and subwords/ with the sentences, the subword model, counts.md")


def _model_of(folder: Path) -> dict[str, Path]:
    """Return the files of the subword model and its dictionary in a folder of pre-training data, by name.

    Raises:
        ValueError: there are none.
    """
    binary = folder / "binary"
    dictionary = binary / DICTIONARY if binary.is_dir() else folder / DICTIONARY
    models = [names for names in ((SENTENCEPIECE,), GPT2_BPE) if all((folder / name).is_file() for name in names)]
    if not models or not dictionary.is_file():
        missing = DICTIONARY if models else f"{SENTENCEPIECE}, nor {' and '.join(GPT2_BPE)}"
        raise ValueError(
            f"{folder} has no {missing}; give the folder that moec prepare --train-text made, or one with the files of "
            "a published RoBERTa"
        )
    return {name: folder / name for name in models[0]} | {DICTIONARY: dictionary}


def _binarise_task(task: GlueTask, splits: Sequence[str], out: Path) -> None:
    """Make the folder for fairseq's sentence_prediction of the subwords and the labels in ``out``."""
    with whole_folder(out / "binary") as part:
        for side in range(task.num_sentences):
            texts = {split: out / "subwords" / f"{split}.input{side}.txt" for split in splits}
            binarise_files(texts, out / DICTIONARY, part / f"input{side}")
        labels = {}
        for split in splits:
            examples = list(read_examples(out / "text" / f"{split}.tsv"))
            if examples[0].label is not None:
                labels[split] = part / "label" / f"{split}.label"  # which is all that is read of numbers
                with whole_texts([labels[split]]) as (file,):
                    file.writelines(f"{task.target(str(example.label))}\n" for example in examples)
        if not task.regression:
            with whole_texts([part / "label" / DICTIONARY]) as (file,):  # fixes the order of classes
                file.writelines(f"{label} 1\n" for label in task.labels)
            binarise_files(labels, part / "label" / DICTIONARY, part / "label")


def _take_model(sources: Mapping[str, Path], out: Path, stages: Stages) -> None:
    """Copy the files of a subword model, and its dictionary, under their names into the folder of the data."""

    def copy() -> None:
        with whole_files(copies) as parts:
            for path, part in zip(sources.values(), parts, strict=True):
                shutil.copyfile(path, part)

    copies = [out / name for name in sources]
    stages.do("subword-model", list(map(str, sources.values())), copy, copies, list(sources.values()))


def _remove_other_models(names: Iterable[str], out: Path) -> None:
    """Remove what an earlier run with another subword model has left."""
    for name in MODEL_FILES.difference(names):
        (out / name).unlink(missing_ok=True)


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise ValueError(f"--workers is {workers}, but must be 1 or more")


def _show(table: str, path: Path) -> None:
    with whole_texts([path]) as (file,):
        file.write(f"{table}\n")
    print(table)


def table(counts: Mapping[str, int]) -> str:
    """Return how many pairs each rule dropped, as Markdown."""
    dropped = {key: number for key, number in counts.items() if not key.endswith((": kept", ": segmented"))}
    return _rows(dropped | {f"{use}: kept": counts[f"{use}: segmented"] for use in SPLITS}, "pairs", SPLITS)


def _rows(counts: Mapping[str, int], what: str, splits: Sequence[str]) -> str:
    """Return counts, which are named ``SPLIT: ROW``, as Markdown."""
    rows = dict.fromkeys(key.partition(": ")[2] for key in counts)
    cells = [[row, *(counts.get(f"{split}: {row}", 0) for split in splits)] for row in rows]
    return tabulate(cells, headers=[what, *splits], tablefmt="github", intfmt=",")
