"""The command ``moec``: what it can do, and the options of each of its commands.

Nothing but the standard library is imported before a command runs, so that ``--help`` works, as
``python3 moec_fairseq/__main__.py --help``, on a machine where nothing is installed yet, with Python 3.9, too.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent  # of a checkout: configs/ and data/ are there
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MODEL_TYPES = ("bpe", "unigram", "char")
TIERS = ("full", "small")
METHODS = ("moec", "moec-nodropout", "moe", "dense")  # configs/method
SUITES = ("layer", "loss", "train", "generate", "pretrain", "finetune", "prepare", "clean")

Add = Callable[..., Any]


def _languages(add: Add, source: str = "", target: str = "") -> None:
    add("--source", metavar="LANG", help=f"language to translate from{source}")
    add("--target", metavar="LANG", help=f"language to translate to{target}")


def _many_languages(add: Add) -> None:
    add("--targets", metavar="LANGS", help="one model for several languages: translate into these, such as de,fr")
    add("--sources", metavar="LANGS", help="likewise: translate from these into one --target (default: en)")


def _own_text(add: Add) -> None:
    add(
        "--train", nargs="+", metavar="FILE",
        help="your own text: train on two files, source and target, or on one that holds both (a .zip of OPUS, .tsv, "
        ".csv, .jsonl, .parquet, .tmx, also compressed); FILE:MEMBER of an archive, FILE#COLUMN of a table",
    )  # fmt: skip
    add("--valid", nargs="+", metavar="FILE", help="validate on this (default: about 1000 sentences of --train)")
    add("--test", nargs="+", metavar="FILE", help="test on this (default: the same)")
    add("--train-prefix", metavar="P", help="the same of two files, P.SOURCE and P.TARGET, such as P.en and P.de")
    add("--valid-prefix", metavar="P", help="instead of --valid, likewise")
    add("--test-prefix", metavar="P", help="instead of --test, likewise")
    add(
        "--tier",
        choices=TIERS,
        default="full",
        help="of the quickstart's messages; small: 76 of 182 MB (default: full)",
    )


def _size(text: str) -> int | None:
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor auto") from None


def _prepare(add: Add) -> None:
    """Makes fairseq's binary data of a corpus: downloads, cleans, segments, binarises.

    Archives that --raw-dir has are not downloaded; interrupted downloads are continued. Finished steps are skipped when
    the command is given again.
    """
    add(
        "corpus", nargs="?", metavar="CORPUS",
        help="a recipe: a name in data/, such as wmt14_en_de, or the path of a YAML file; or quickstart; or glue/TASK, "
        "such as glue/CoLA; left out for your own text",
    )  # fmt: skip
    _own_text(add)
    text = "text for masked language models, a sentence a line, empty lines between documents"
    add("--train-text", type=Path, metavar="FILE", help=f"your own {text}")
    add("--valid-text", type=Path, metavar="FILE", help="validate on this (default: some documents, 1000 sentences)")
    add("--test-text", type=Path, metavar="FILE", help="test on this (default: the same)")
    _languages(add, " (default: that of the recipe, or en)", " (default: that of the recipe, or de)")
    _many_languages(add)
    add(
        "--sampling-temperature", type=float, default=1.0, metavar="T",
        help="--targets, --sources: repeat pairs of smaller languages, shares n^(1/T), such as 5 (default: 1, as they "
        "are)",
    )  # fmt: skip
    add("--raw-dir", type=Path, metavar="DIR", help="where the archives are, or are downloaded to (default: OUT/raw)")
    add(
        "--subwords-of", type=Path, metavar="DIR",
        help="glue/TASK: what moec prepare --train-text made, or a folder with dict.txt, encoder.json and vocab.bpe",
    )  # fmt: skip
    add(
        "--out", type=Path, metavar="DIR",
        help="all results (default: CORPUS-SOURCE-TARGET, own-SOURCE-TARGET, own-text or glue-TASK)",
    )  # fmt: skip
    add("--workers", type=int, default=2, metavar="N", help="processes (default: 2)")
    add(
        "--vocab-size", type=_size, default=32_000, metavar="N",
        help="most joint subwords (default: 32000), or auto: as many as suit a small text",
    )  # fmt: skip
    add("--model-type", choices=MODEL_TYPES, default="bpe", help="of sentencepiece (default: bpe)")
    add(
        "--character-coverage", type=float, metavar="SHARE",
        help="of characters that get subwords (default: 0.9995 for Chinese, Japanese and Korean, else 1.0)",
    )  # fmt: skip
    add(
        "--gpt2-bpe", type=Path, metavar="DIR",
        help="--train-text: segment with encoder.json and vocab.bpe of DIR instead; dict.txt is used if it is there",
    )  # fmt: skip
    add(
        "--tokens-per-sample", type=int, default=512, metavar="N",
        help="--train-text: most tokens that the model will read at once; longer lines are split (default: 512)",
    )  # fmt: skip
    add(
        "--max-length", type=int, metavar="N", help="drop pairs with more subwords on a side (default: 250 for recipes)"
    )
    add(
        "--max-ratio", type=float, metavar="R",
        help="drop pairs with one side more than R times as long as the other (default: 1.5 for recipes)",
    )  # fmt: skip
    add(
        "--identify-language", action="store_true",
        help="drop pairs that are surely in other languages, with the package py3langid",
    )  # fmt: skip
    add("--distinct", action="store_true", help="recipes: drop repeated training pairs")
    add("--recipes", type=Path, default=ROOT / "data", help=argparse.SUPPRESS)


def _train(add: Add) -> None:
    """Trains with a YAML file: one process, several on this machine, or this machine's part of a larger job.

    Experts are shared by all processes. When one fails, all are stopped and the reason is shown; started again,
    training resumes from the last checkpoint.
    """
    add("config", metavar="CONFIG", help="a name in configs/, or the path of a YAML file")
    add(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="method=moec, moe or dense, or any option of fairseq and of this plug-in, such as "
        "optimization.max_update=1000; lists are optimization.lr=[0.1,0.2], and text with commas, equals signs or "
        "brackets is quoted for hydra, too: "
        "\"model.encoder_moe_layers='1,2'\"",
    )  # fmt: skip
    add("--processes", type=int, metavar="W", help="processes on this machine (default: one for each GPU, or 1)")
    add("--nodes", type=int, default=1, metavar="M", help="machines of the job, each with W processes (default: 1)")
    add("--node-rank", type=int, default=0, metavar="K", help="number of this machine, from 0 (default: 0)")
    add("--master", metavar="HOST:PORT", help="where machine 0 listens; needed with --nodes")
    add("--logs", type=Path, metavar="DIR", help="one log for each rank (default: logs/CONFIG or logs/CONFIG_METHOD)")
    add(
        "--rank-timeout", type=int, default=1800, metavar="SECONDS",
        help="how long ranks wait for lost ones (default: 1800)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="show the commands and run nothing")
    add("--configs", type=Path, default=ROOT / "configs", help=argparse.SUPPRESS)


def _doctor(add: Add) -> None:
    """Says what cannot work and what will be slow, on this machine and in a training, before it starts.

    One line each: ok, slow (it works, but could work better) or wrong, and what to do. The exit status is 1 if
    something is wrong. moec train refuses what is wrong by itself.
    """
    add("config", nargs="?", metavar="CONFIG", help="as for moec train (default: check the machine only)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="as for moec train")
    add("--processes", type=int, metavar="W", help="processes on each machine (default: one for each GPU, or 1)")
    add("--nodes", type=int, default=1, metavar="M", help="machines of the job, all like this one (default: 1)")
    add("--configs", type=Path, default=ROOT / "configs", help=argparse.SUPPRESS)


def _search(add: Add) -> None:
    add("--beam", type=int, default=5, metavar="N", help="size of the beam (default: 5)")
    add("--lenpen", type=float, default=1.0, metavar="X", help="above 1: longer output (default: 1)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a batch (default: 4096)")
    add("--cpu", action="store_true", help="do not use a GPU")


def _data_and_languages(add: Add) -> None:
    add(
        "--data", type=Path, metavar="DIR",
        help="of moec prepare, or any binary data of fairseq, also several as DIR:DIR (default: that of the training)",
    )  # fmt: skip
    add("--source-lang", metavar="SRC", help="language to translate from, where model and data leave a choice")
    add("--target-lang", metavar="TGT", help="language to translate to, likewise")


def _text(add: Add) -> None:
    add("--test-set", metavar="NAME", help="a test set of sacrebleu, such as wmt14/full, instead")
    add("--input", type=Path, dest="text", metavar="FILE", help="plain text to translate instead")


def _evaluate(add: Add) -> None:
    """From the checkpoints of a training to scores that others can compare: merges, averages, translates, scores.

    Shows BLEU, chrF, chrF++ and TER of sacreBLEU, and BLEU of tokenised text, also with compounds split (as papers on
    German report it), each with its signature; a model of many languages is scored in each of them. Of a model that was
    fine-tuned for a task of GLUE, it writes the predictions as GLUE's site takes them, and shows the scores; then only
    the options that choose the model, --data, --max-tokens, --cpu, --table, --name and --out apply. Finished steps are
    skipped when the command is given again.
    """
    add(
        "--checkpoints", type=Path, required=True, metavar="DIR",
        help="the save_dir of a training, or one checkpoint; files of all ranks are merged",
    )  # fmt: skip
    add("--average", type=int, metavar="N", help="mean of the last N checkpoints (default: 10, or all if fewer)")
    add(
        "--by", choices=("epoch", "update"), dest="kind",
        help="which of them, where DIR has checkpoint3.pt and checkpoint_3_80.pt",
    )  # fmt: skip
    add("--best", action="store_true", help="checkpoint_best.pt instead of a mean")
    _data_and_languages(add)
    add("--subset", metavar="NAME", help="part of the data, such as valid (default: test)")
    _text(add)
    add(
        "--references", type=Path, nargs="+", default=[], metavar="FILE",
        help="one or several translations of it; also for binary data of others, which have <<unk>> for unknown words",
    )  # fmt: skip
    add("--tokenized", action="store_true", help="the text is tokenised: BLEU takes it as it is")
    add(
        "--remove-bpe", choices=("subword_nmt", "sentencepiece"), dest="segmentation",
        help="how binary data of others is segmented (default: judged by its dictionary)",
    )  # fmt: skip
    _search(add)
    add(
        "--metrics", default="bleu,chrf,chrf++,ter", metavar="LIST",
        help="scores, of bleu, chrf, chrf++, ter, spbleu and comet (default: bleu,chrf,chrf++,ter)",
    )  # fmt: skip
    add(
        "--comet-model", default="Unbabel/wmt22-comet-da", metavar="NAME",
        help="of comet, or a file .ckpt (default: Unbabel/wmt22-comet-da)",
    )  # fmt: skip
    add(
        "--against", type=Path, metavar="FILE", help="translations of another system: confidence intervals and p values"
    )
    add("--table", type=Path, metavar="FILE.csv", help="table of results that gets a row, also as FILE.md")
    add("--name", metavar="NAME", help="of this system there (default: the last two folders of DIR)")
    add("--samples", type=int, default=3, metavar="N", help="translations to show (default: 3)")
    add("--out", type=Path, metavar="DIR", help="all results (default: DIR/evaluation/last10, best, ...)")


def _translate(add: Add) -> None:
    """Translates plain text, line by line; translations come in the order of the input, progress goes to stderr."""
    add(
        "model", type=Path, metavar="MODEL",
        help="the save_dir of a training, a checkpoint, or the folder of the quickstart",
    )  # fmt: skip
    add("--input", type=Path, dest="text", metavar="FILE", help="text to translate (default: standard input)")
    add("--output", type=Path, metavar="FILE", help="write translations here (default: standard output)")
    add("--data", type=Path, metavar="DIR", help="of moec prepare (default: that of the training)")
    add("--source-lang", "--from", metavar="SRC", help="language to translate from, where the model leaves a choice")
    add("--target-lang", "--to", metavar="TGT", help="language to translate to, likewise")
    _search(add)
    add("--batch-size", type=int, metavar="N", help="sentences of a batch (default: as --max-tokens says)")
    add("--n-best", type=int, default=1, metavar="N", help="translations of each sentence, best first (default: 1)")
    add("--score", action="store_true", help="write log2 of the probability per subword, and a tab, before each")


def _report(add: Add) -> None:
    """Shows what the experts of a model do with a test set: a page with tables and pictures, and the numbers as files.

    How much each expert and cluster gets, which words and positions, whether the experts of a cluster resemble each
    other, sentences coloured by cluster, and, where there is a log, the course of the training. The page needs no
    network.
    """
    add(
        "model", type=Path, metavar="MODEL",
        help="the save_dir of a training, a checkpoint, or the folder of the quickstart",
    )  # fmt: skip
    add("--against", type=Path, metavar="OTHER", help="a second model, or another moment of the same, side by side")
    add(
        "--log", type=Path, nargs="+", default=[], metavar="FILE",
        help="rank-0.log of the training, and of that of OTHER (default: those beside the checkpoints)",
    )  # fmt: skip
    _data_and_languages(add)
    add(
        "--subset",
        metavar="NAME",
        help="part of the data, such as valid (default: test; valid if it does not translate)",
    )
    _text(add)
    add(
        "--references",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="its translation (default: the model's own)",
    )
    add("--sentences", type=int, default=20, metavar="N", help="sentences to show, in each direction (default: 20)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a batch (default: 4096)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--out", type=Path, metavar="DIR", help="all results (default: report/CHECKPOINT-SET beside the checkpoint)")


def _quickstart(add: Add) -> None:
    """Translates real text with MoEC: gets the data, trains, translates, scores.

    The data are the messages of published Python packages, from English, or your own text, in the formats of moec
    prepare. Finished steps are skipped when the command is given again; an interrupted training resumes where it was.
    """
    _languages(add, " (default: en)", ": de, fr, es or nl, or that of your own text (default: de)")
    _many_languages(add)
    _own_text(add)
    add(
        "--model", default="moec", choices=METHODS,
        help="models that differ in nothing but what the experts do (default: moec)",
    )  # fmt: skip
    add(
        "--max-update", type=int, default=2000, metavar="N",
        help="train for N updates; with a larger N a finished training continues, with a smaller one it is replaced "
        "(default: 2000)",
    )  # fmt: skip
    add("--seed", type=int, default=1, metavar="N", help="of all chance (default: 1)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add(
        "--work-dir", type=Path, metavar="DIR",
        help="all results (default: quickstart-SOURCE-TARGET in the checkout, quickstart-own-... for own text)",
    )  # fmt: skip


def _glue(add: Add) -> None:
    """Fine-tunes a masked language model for tasks of GLUE and scores it: prepares, trains, predicts, one table.

    Each task is fine-tuned with each seed; the table has every score, their medians, and the mean over tasks. Finished
    steps are skipped when the command is given again; an interrupted training resumes where it was.
    """
    add(
        "words", nargs="+", metavar="TASK|KEY=VALUE",
        help="CoLA, SST-2, MRPC, QQP, STS-B, MNLI, QNLI, RTE, WNLI, or all; KEY=VALUE are options of the trainings, as "
        "for moec train",
    )  # fmt: skip
    add(
        "--pretrained", required=True, metavar="CKPT",
        help="the save_dir of the pre-training, or one checkpoint; none: train from scratch, for comparison",
    )  # fmt: skip
    add("--data", type=Path, metavar="DIR", help="prepared text of the pre-training (default: as the checkpoint says)")
    add("--raw-dir", type=Path, metavar="DIR", help="where the sets are, or are downloaded to (default: OUT/raw)")
    add("--seeds", default="1,2,3", metavar="N,...", help="one fine-tuning for each (default: 1,2,3)")
    add("--method", choices=METHODS, help="what the experts do (default: as in the pre-training; moec from scratch)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--out", type=Path, default=Path("glue"), metavar="DIR", help="all results (default: glue)")


def _checkpoint(add_command: Callable[..., Add]) -> None:
    """Merges, reshards, averages and describes checkpoints of any number of ranks; adds experts and takes them away.

    Training on several processes writes a checkpoint as NAME-rank-0.pt, NAME-rank-1.pt, ..., each with its own experts.
    Wherever CHECKPOINT is asked for, NAME.pt, NAME or one of these files is right.
    """
    tools = "moec_fairseq.checkpoint.tools"

    def add_one(name: str, help: str, optimizer: bool = True) -> Add:
        add = add_command(name, f"{tools}:{name}", help)
        add("checkpoint", type=Path, metavar="CHECKPOINT", help="NAME.pt, NAME or NAME-rank-0.pt")
        if optimizer:
            add("--no-optimizer", dest="optimizer", action="store_false", help="leave out the optimizer's state")
        return add

    add = add_one("merge", "all ranks in one file, as fairseq-generate needs it")
    add("--out", type=Path, required=True, metavar="FILE")

    add = add_one("reshard", "resume with another number of processes")
    add("--ranks", type=int, required=True, metavar="W", help="number of processes; 1 for one file")
    add("--out", required=True, metavar="PREFIX", help="writes PREFIX-rank-0.pt ...; or a folder, where it keeps NAME")

    add = add_command("average", f"{tools}:average", "mean of the parameters of several checkpoints")
    add("checkpoints", type=Path, nargs="*", metavar="CHECKPOINT")
    add("--last", type=int, metavar="N", help="the last N numbered checkpoints of --dir instead")
    add("--dir", type=Path, metavar="DIR", dest="folder", help="the --save-dir of the training")
    add(
        "--by",
        choices=("epoch", "update"),
        dest="kind",
        help="which, where --dir has checkpoint3.pt and checkpoint_3_80.pt",
    )
    add("--merge", action="store_true", help="write one file; default: as many as the last checkpoint")
    add("--out", type=Path, required=True, metavar="NAME.pt")

    add = add_command("upcycle", "moec_fairseq.checkpoint.upcycle:upcycle", "a trained dense model gets experts")
    add(
        "dense",
        type=Path,
        metavar="DENSE",
        help="a Transformer or RoBERTa: fairseq's, or ours without experts or with one (method=dense)",
    )
    add("--experts", type=int, required=True, metavar="N", help="in each MoE block")
    add("--clusters", type=int, required=True, metavar="C", help="that the experts of a block form")
    add("--out", type=Path, required=True, metavar="NAME.pt")
    add(
        "--layout", choices=("replaced", "inserted"),
        help="experts are copies of the feed-forward blocks that they replace (default), or new and the identity",
    )  # fmt: skip
    for stack in ("encoder", "decoder"):
        add(
            f"--{stack}-moe-layers",
            metavar="LIST",
            help="numbers from 1, with commas, or none (default: the middle layer)",
        )
    add("--sublayers", type=int, metavar="N", help="blocks in an expert (default: 1; inserted: as in the model, or 3)")
    add(
        "--noise", type=float, default=0.0, metavar="X",
        help="of copies, relative to the size of parameters, such as 0.01: clusters differ by it, the experts of a "
        "cluster by a tenth (default: 0, all are equal)",
    )  # fmt: skip
    add("--optimizer", action="store_true", help="copy the optimizer's state, too, for --restore-file")

    add = add_command("prune", "moec_fairseq.checkpoint.prune:prune", "drop or merge the experts that are worth least")
    add(
        "model", type=Path, metavar="MODEL",
        help="a checkpoint, the save_dir of a training, or the folder of the quickstart",
    )  # fmt: skip
    add("--keep", type=int, metavar="K", help="experts of each layer that stay")
    add("--share", type=float, metavar="S", help="share of the experts that stays instead, rounded down, such as 0.5")
    add("--curve", action="store_true", help="instead, evaluate models of all experts, half of them, ... down to one")
    add(
        "--by", choices=("load", "similarity", "loss"), default="load",
        help="what goes: experts with the fewest tokens; of the two whose outputs are most similar, that with fewer "
        "tokens; experts without which the loss increases least (default: load)",
    )  # fmt: skip
    add(
        "--scope", choices=("cluster", "layer"), default="cluster",
        help="experts compete within each cluster, or within the layer, and then form one cluster (default: cluster)",
    )  # fmt: skip
    add("--merge", action="store_true", help="average experts that go into those that get their tokens")
    add("--data", type=Path, metavar="DIR", help="of moec prepare, or binary data (default: that of the training)")
    add("--subset", default="valid", metavar="NAME", help="part of the data to compare experts on (default: valid)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a batch (default: 4096)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--out", type=Path, required=True, metavar="NAME.pt", help="the new checkpoint; --curve: a folder")

    add_one("info", "ranks, experts, sizes; fails when files are missing or corrupt", optimizer=False)


def _bench(add: Add) -> None:
    """Measures speed and memory: ratios, medians and spread of 7 interleaved repeats, peak memory."""
    add(
        "suite", nargs="?", choices=[*SUITES, "gpu", "all"], default="all",
        help="layer: against a dense block of the same active size and fairscale's MOELayer; loss; train, generate: "
        "whole models; pretrain, finetune: masked language models; prepare: your own text to subwords; clean: "
        "published text to subwords; gpu: all that a GPU has to show, in nine minutes; all: all but gpu (default: all)",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every repeat here, and a picture beside it")
    add("--size", choices=("full", "small"), default="full", help="small only shows that it runs (default: full)")
    add("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")
    add("--text", metavar="PREFIX", help="clean: real text in PREFIX.en and PREFIX.de instead of made up")
    add("--moses", type=Path, metavar="DIR", help="clean: the same with Moses' scripts in DIR and subword-nmt")


def _study(add: Add) -> None:
    """Trains and evaluates a grid of configurations, such as methods and seeds, and reports means and intervals.

    Finished trainings are skipped when the command is given again, interrupted ones are resumed, and failed ones are
    tried again; one that fails does not stop the others.
    """
    add("study", metavar="STUDY", help="a name in configs/studies/, or the path of a YAML file")
    add(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="options of all trainings, as moec train takes them, such as task.data=BIN",
    )  # fmt: skip
    add("--jobs", type=int, default=1, metavar="K", help="trainings at a time, which share cores and GPUs (default: 1)")
    add("--out", type=Path, metavar="DIR", help="all results (default: studies/STUDY)")
    add("--report", action="store_true", help="train nothing: make tables and picture of what is there")


# name -> options, and what runs with them; the first line of the docstring says what the command does
COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "quickstart": (_quickstart, "moec_fairseq.quickstart:quickstart"),
    "prepare": (_prepare, "moec_fairseq.data.pipeline:prepare"),
    "doctor": (_doctor, "moec_fairseq.doctor:doctor"),
    "train": (_train, "moec_fairseq.launch:train"),
    "evaluate": (_evaluate, "moec_fairseq.evaluate.pipeline:evaluate"),
    "translate": (_translate, "moec_fairseq.evaluate.translate:translate"),
    "report": (_report, "moec_fairseq.report:report"),
    "glue": (_glue, "moec_fairseq.glue:glue"),
    "checkpoint": (_checkpoint, ""),
    "study": (_study, "moec_fairseq.study:study"),
    "bench": (_bench, "moec_fairseq.bench.suites:bench"),
}


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and those of ``train``, ``checkpoint merge``, and so on, by name."""
    whole = argparse.ArgumentParser(
        prog="moec", description="Sparse machine translation and language understanding with MoEC on stock fairseq."
    )
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    found: dict[str, argparse.ArgumentParser] = {}
    for name, (options, run) in COMMANDS.items():
        about = options.__doc__ or ""
        command = commands.add_parser(name, help=_as_help(about), description=about)
        if run:
            found[name] = command
            command.set_defaults(run=run)
            options(command.add_argument)
            continue
        parts = command.add_subparsers(required=True, metavar="COMMAND")

        def add_command(part: str, run: str, help: str, name: str = name, parts: Any = parts) -> Add:
            found[f"{name} {part}"] = parser = parts.add_parser(part, help=help, description=_as_description(help))
            parser.set_defaults(run=run)
            return parser.add_argument

        options(add_command)
    return whole, found


def _as_help(about: str) -> str:
    first = about.splitlines()[0]
    return first[0].lower() + first[1:].rstrip(".")


def _as_description(help: str) -> str:
    return f"{help[0].upper()}{help[1:]}."


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Return the options of a command line, and as ``run`` what runs with them; options may stand anywhere."""
    whole, commands = parsers()
    for count in (1, 2):
        if command := commands.get(" ".join(words[:count])):
            return vars(command.parse_intermixed_args(words[count:]))
    return vars(whole.parse_args(words))  # shows help, or what is wrong


def run(words: Sequence[object]) -> None:
    """Run a command line, such as ``["train", "quickstart"]``."""
    options = parse(list(map(str, words)))
    module, _, function = options.pop("run").partition(":")
    getattr(import_module(module), function)(**options)


def call(
    function: Callable[..., None], command: str, what: str, options: Mapping[str, Any], without: Sequence[str] = ()
) -> None:
    """Call a function, which does a part of what a command can, with those of its options that it takes.

    Raises:
        ValueError: another option was given, or one of ``without``; says that it is not for ``what``.
    """
    takes = inspect.signature(function).parameters
    for action in parsers()[1][command]._actions:
        refused = action.dest not in takes or action.dest in without
        if refused and options.get(action.dest, action.default) != action.default:
            raise ValueError(f"{action.option_strings[0]} is not for {what}; leave it out")
    function(**{name: options[name] for name in takes})


def main() -> int:
    """Run a command; a mistake in what the user gave becomes one line on stderr and exit status 1."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.disable(logging.INFO)  # what libraries say in this process; commands of fairseq run in others
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    try:
        run(sys.argv[1:])
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {_explained(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. The same command continues where it was.", file=sys.stderr)
        return 130
    return 0


def _explained(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"{error}; make room on the disk and give the same command again: what is finished is kept"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
