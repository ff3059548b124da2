"""Sentences to translations with fairseq-generate."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from fairseq.data import data_utils

import moec_fairseq
from moec_fairseq.cli.fairseq import fairseq_command, run_fairseq
from moec_fairseq.cli.progress import follow
from moec_fairseq.corpus.output import complete_files
from moec_fairseq.launch.watch import last_words
from moec_fairseq.prepare.cleaning import normalise


@dataclass(frozen=True)
class Search:
    """How translations are searched for.

    Attributes:
        beam: size of the beam.
        lenpen: exponent of the length that scores are divided by.
        max_tokens: of a batch.
        cpu: leave a GPU alone.
    """

    beam: int = 5
    lenpen: float = 1.0
    max_tokens: int = 4096
    cpu: bool = False


def binarise(sentences: Sequence[str], model: Path, data: Path, source: str, target: str, out: Path) -> Path:
    """Cut sentences into pieces and number them; return the folder of binary data, whose part is ``test``.

    Args:
        sentences: plain text.
        model: of sentencepiece.
        data: binary data of the training, for its dictionaries.
        source: language.
        target: language.
        out: folder for what is made on the way.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    with complete_files([out / f"pieces.{source}"]) as (file,):
        for sentence in sentences:
            file.write(" ".join(processor.encode(normalise(sentence), out_type=str)) + "\n")
    binary = out / "binary"
    shutil.rmtree(binary, ignore_errors=True)
    run_fairseq(
        "preprocess", "--source-lang", source, "--target-lang", target, "--only-source", "--srcdict",
        data / f"dict.{source}.txt", "--testpref", out / "pieces", "--destdir", binary, log=out / "preprocess.log",
    )  # fmt: skip
    shutil.copy(data / f"dict.{target}.txt", binary)
    return binary


def generate(
    model: Path, data: Path, subset: str, source: str, target: str, remove_bpe: str, search: Search, log: Path
) -> None:
    """Translate a part of binary data; what fairseq-generate says goes to ``log``, its progress on the screen.

    Raises:
        ValueError: it failed; says why.
    """
    sentences = data_utils.load_indexed_dataset(str(data / f"{subset}.{source}-{target}.{source}"))
    if sentences is None:
        raise ValueError(f"{data} has no {subset} for {source} to {target}; give --subset or --data that has it")
    command = fairseq_command(
        "generate", data, "--user-dir", moec_fairseq.__path__[0], "--path", model, "--gen-subset", subset,
        "--source-lang", source, "--target-lang", target, "--beam", search.beam, "--lenpen", search.lenpen,
        "--max-tokens", search.max_tokens, f"--remove-bpe={remove_bpe}",
        *(["--cpu"] if search.cpu or not torch.cuda.is_available() else ["--distributed-world-size", 1]),
    )  # fmt: skip
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        follow(process.stdout, "generate", len(sentences), file, sys.stdout)
    if process.returncode != 0:
        raise ValueError(f"fairseq-generate failed: {last_words(log)} (its log is {log})")
