"""The quickstart: real text to a trained model and its scores, by the commands prepare, train and evaluate."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from moec_fairseq.__main__ import ROOT, run
from moec_fairseq.data.corpora import QUICKSTART
from moec_fairseq.data.multilingual import read_languages
from moec_fairseq.evaluate.scores import metrics
from moec_fairseq.launch.configuration import quoted
from moec_fairseq.launch.once import train_once
from moec_fairseq.util.progress import Headlines

TARGETS = ("de", "fr", "es", "nl")  # languages into which there are enough messages
VOCAB_SIZE = 2000  # subwords for each language, of all together
SAMPLES = 8  # translations to show
VALIDATIONS = 8  # of a training; an interruption loses little, and an epoch of a short text is soon over


def quickstart(
    source: str | None,
    target: str | None,
    sources: str | None,
    targets: str | None,
    train: list[str] | None,
    valid: list[str] | None,
    test: list[str] | None,
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
    several = read_languages(sources, targets, source, target)
    many = several.many if several else (target or "de",)
    own = train or train_prefix
    for language in many:
        if not own and language not in TARGETS:
            raise ValueError(
                f"there are no messages in {language}; choose of {', '.join(TARGETS)}, or give --train FILE"
            )
    for option, value in (("--max-update", max_update), ("--seed", seed)):
        if value < 1:
            raise ValueError(f"{option} is {value}, but must be a whole number from 1")
    one = several.one if several else source or "en"
    for language in [one] if sources else many:
        metrics(language, tokenized=False)  # says what is missing before the training, not after it
    languages = [*many, one] if sources else [one, *many]
    work = (work_dir or ROOT / "-".join(["quickstart", *(["own"] if own else []), *languages])).absolute()
    results = work / f"{model}-seed{seed}"

    headlines.show("Preparing the text")
    options = {
        "--train-prefix": train_prefix, "--valid-prefix": valid_prefix, "--test-prefix": test_prefix,
        "--source": source, "--target": target, "--sources": sources, "--targets": targets,
    }  # fmt: skip
    texts = {"--train": train, "--valid": valid, "--test": test}
    run([
        "prepare", *([] if own else [QUICKSTART]),
        *(word for option, value in options.items() if value for word in (option, value)),
        *(word for option, files in texts.items() if files for word in (option, *files)),
        "--tier", tier, "--raw-dir", ROOT / "quickstart-wheels" / tier, "--out", work,
        "--vocab-size", VOCAB_SIZE * len(languages),
    ])  # fmt: skip
    headlines.show(f"Training {model} for {max_update} updates")
    sides = (several.source, several.target) if several else languages
    _train(work, results, model, max_update, sides, seed, cpu)
    headlines.show("Translating and scoring the test text")
    run([
        "evaluate", "--checkpoints", results, "--best", "--data", work, "--samples", max(1, SAMPLES // len(many)),
        *(["--cpu"] if cpu else []),
    ])  # fmt: skip
    choice = f" --{'from' if sources else 'to'} {many[0]}" if several else ""
    print(_closing(work, results, choice, headlines.duration()))


def _train(work: Path, results: Path, model: str, max_update: int, sides: Sequence[str], seed: int, cpu: bool) -> None:
    interval = -(-max_update // VALIDATIONS)
    overrides = [
        f"method={model}",
        f"task.data={quoted(work / 'binary')}",
        f"task.source_lang={sides[0]}",
        f"task.target_lang={sides[1]}",
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


def _closing(work: Path, results: Path, choice: str, duration: str) -> str:
    command = shlex.join(["bash", "scripts/quickstart.sh", *sys.argv[2:]])
    return f"""
Done in {duration}. All results are in {_shown(work)}:
  text/, subwords/, binary/   the sentences, the same as subwords, and as fairseq's data; spm.model segments
  {results.name + "/":27} checkpoints, rank-0.log (the log of the training), tensorboard/, evaluation/

Translate sentences of your own:
  echo "Please try again." | moec translate {_shown(results)}{choice}

What to try next:
  {command} --max-update 4000    # train longer
  bash scripts/quickstart.sh --target fr            # another language: de, fr, es, nl
  bash scripts/quickstart.sh --targets de,fr,es,nl  # all of them in one model
  bash scripts/quickstart.sh --model dense          # the same without experts; moe: without clusters
  bash scripts/quickstart.sh --train FILE FILE      # your own text: English and German, or both in one file
  pip install tensorboard && tensorboard --logdir {_shown(work)}    # curves of losses and experts"""
