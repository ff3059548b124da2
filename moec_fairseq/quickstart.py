"""The quickstart: real text to a trained model and its scores, by the commands prepare, train and evaluate."""

import shlex
import sys
from pathlib import Path

import torch

from moec_fairseq.__main__ import ROOT, run
from moec_fairseq.data.pipeline import QUICKSTART
from moec_fairseq.launch.configuration import quoted
from moec_fairseq.launch.once import train_once
from moec_fairseq.util.progress import Headlines

TARGETS = ("de", "fr", "es", "nl")  # languages into which there are enough messages
VOCAB_SIZE = 4000
VALIDATIONS = 8  # of a training; an interruption loses little, and an epoch of a short text is soon over


def quickstart(
    source: str | None,
    target: str | None,
    train_prefix: str | None,
    valid_prefix: str | None,
    test_prefix: str | None,
    tier: str,
    model: str,
    max_update: int,
    seed: int,
    cpu: bool,
    work_dir: Path | None,
) -> None:
    """Do all steps that are not done yet; the arguments are the options of ``moec quickstart``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    headlines = Headlines(3)
    source, target = source or "en", target or "de"
    if not train_prefix and target not in TARGETS:
        raise ValueError(f"--target is {target}, but must be one of {', '.join(TARGETS)} without --train-prefix")
    for option, value in (("--max-update", max_update), ("--seed", seed)):
        if value < 1:
            raise ValueError(f"{option} is {value}, but must be a whole number from 1")
    work = (work_dir or ROOT / f"quickstart-{'own-' if train_prefix else ''}{source}-{target}").absolute()
    results = work / f"{model}-seed{seed}"

    headlines.show("Preparing the text")
    prefixes = {"--train-prefix": train_prefix, "--valid-prefix": valid_prefix, "--test-prefix": test_prefix}
    text = [word for option, prefix in prefixes.items() if prefix for word in (option, prefix)]
    run([
        "prepare", *([] if train_prefix else [QUICKSTART]), *text, "--source", source, "--target", target,
        "--tier", tier, "--raw-dir", ROOT / "quickstart-wheels" / tier, "--out", work, "--vocab-size", VOCAB_SIZE,
    ])  # fmt: skip
    headlines.show(f"Training {model} for {max_update} updates")
    _train(work, results, model, max_update, [f"task.source_lang={source}", f"task.target_lang={target}"], seed, cpu)
    headlines.show("Translating and scoring the test text")
    run([
        "evaluate", "--checkpoints", results, "--best", "--data", work, "--samples", 8, *(["--cpu"] if cpu else []),
    ])  # fmt: skip
    print(_closing(work, results, headlines.duration()))


def _train(work: Path, results: Path, model: str, max_update: int, languages: list[str], seed: int, cpu: bool) -> None:
    interval = -(-max_update // VALIDATIONS)
    overrides = [
        f"method={model}",
        f"task.data={quoted(work / 'binary')}",
        *languages,
        f"common.seed={seed}",
        f"common.cpu={str(cpu or not torch.cuda.is_available()).lower()}",
        f"common.log_interval={1 if max_update < 100 else 10}",
    ]
    schedule = [f"checkpoint.save_interval_updates={interval}", f"dataset.validate_interval_updates={interval}"]
    data = (work / ".binary.done").read_text(encoding="utf-8")
    train_once("quickstart", overrides, results, data, max_update, schedule)


def _shown(path: Path) -> str:
    """Return a path as it is typed into a shell."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if here in path.parents else path))


def _closing(work: Path, results: Path, duration: str) -> str:
    command = shlex.join(["bash", "scripts/quickstart.sh", *sys.argv[2:]])
    return f"""
Done in {duration}. All results are in {_shown(work)}:
  text/, subwords/, binary/   the sentences, the same as subwords, and as fairseq's data; spm.model segments
  {results.name + "/":27} checkpoints, rank-0.log (the log of the training), tensorboard/, evaluation/

Translate sentences of your own:
  echo "Please try again." | moec translate {_shown(results)}

What to try next:
  {command} --max-update 4000    # train longer
  bash scripts/quickstart.sh --target fr            # another language: de, fr, es, nl
  bash scripts/quickstart.sh --model dense          # the same without experts; moe: without clusters
  bash scripts/quickstart.sh --train-prefix PATH    # your own text: PATH.en and PATH.de
  pip install tensorboard && tensorboard --logdir {_shown(work)}    # curves of losses and experts"""
