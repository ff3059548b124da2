"""From a checkpoint and a test set to a report."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from moec_fairseq.checkpoint.state import group, load_state
from moec_fairseq.data.formats.text import normalise_space, raw_lines
from moec_fairseq.data.gpt2_bpe import GPT2_BPE, Gpt2Model
from moec_fairseq.data.multilingual import MANY
from moec_fairseq.evaluate.generate import Search, generate, read_hypotheses
from moec_fairseq.evaluate.model import (
    FINE_TUNED,
    MASKED_LM,
    DataOfModel,
    ModelFacts,
    data_of_directions,
    first_folder,
    model_facts,
    signature_of,
    task_of,
)
from moec_fairseq.evaluate.routing import ModelOnData
from moec_fairseq.evaluate.sets import TextSet, Wanted, choose
from moec_fairseq.evaluate.translate import data_beside, find_checkpoint, in_one_file
from moec_fairseq.report.collect import Reading, survey
from moec_fairseq.report.page import NUMBERS, PAGE, write
from moec_fairseq.report.tables import Reported, information_of
from moec_fairseq.util.progress import Headlines, history

LOG = "rank-0.log"  # of a training, where moec quickstart, glue and study put it


def report(
    model: Path,
    against: Path | None,
    log: list[Path],
    data: Path | None,
    source_lang: str | None,
    target_lang: str | None,
    subset: str | None,
    test_set: str | None,
    text: Path | None,
    references: list[Path],
    sentences: int,
    max_tokens: int,
    cpu: bool,
    out: Path | None,
) -> None:
    """Report what the experts of a model do, or of two side by side; the arguments are the options of ``moec report``.

    Raises:
        ValueError: something is wrong with what was given.
    """
    if sentences < 0:
        raise ValueError(f"--sentences is {sentences}; give 0 or more")
    wanted = Wanted(subset, test_set, text, references, None, source_lang, target_lang)
    if references and not text:
        raise ValueError("--references are the translations of --input; give both")
    checkpoints = [find_checkpoint(path) for path in (model, against) if path]
    logs = _logs(checkpoints, log)
    search = Search(max_tokens=max_tokens, cpu=cpu)
    if len(set(map(_name, checkpoints))) < len(checkpoints):
        raise ValueError(f"--against {against} is the model itself; give another one")
    headlines = Headlines(len(checkpoints) + 1)
    with TemporaryDirectory(prefix="moec-report-") as folder:
        runs = [
            _Run(checkpoint, log, Path(folder, str(number)), data, wanted, search)
            for number, (checkpoint, log) in enumerate(zip(checkpoints, logs, strict=True))
        ]
        _check_same(runs)
        reported = []
        for run, other in zip(runs, reversed(runs), strict=True):
            headlines.show(f"Following the tokens through {run.name}")
            reported.append(run.report(sentences, other.clusters))
    headlines.show("Drawing and writing")
    out = out or checkpoints[0].parent / "report" / f"{checkpoints[0].name.removesuffix('.pt')}-{wanted.name}"
    write(reported, out)
    print(f"{out}: {PAGE}, {NUMBERS}, tables as CSV, pictures as PNG and SVG ({headlines.duration()})")


def _logs(checkpoints: Sequence[Path], given: Sequence[Path]) -> list[Path | None]:
    """Return the log of each model's training, if there is one.

    Raises:
        ValueError: more logs were given than models, or one is not there.
    """
    if len(given) > len(checkpoints):
        raise ValueError(f"--log names {len(given)} logs, but there are {len(checkpoints)} models; give one for each")
    for path in given:
        if not path.is_file():
            raise ValueError(f"there is no log {path}; give the rank-0.log of the training")
    beside = [checkpoint.parent / LOG for checkpoint in checkpoints[len(given) :]]
    return [*given, *(path if path.is_file() else None for path in beside)]


@dataclass(frozen=True)
class Given:
    """What a model is given to read.

    Attributes:
        name: of the set, and the directions, for tables.
        content: changes when the sentences do.
        readings: one for each direction.
    """

    name: str
    content: list[str]
    readings: list[Reading]


class _Run:
    """A model that is reported on.

    Args:
        checkpoint: NAME.pt.
        log: of its training; None: there is none.
        scratch: folder for what has to be made.
        data: as ``moec evaluate`` takes them; None: those of the training.
        wanted: the sentences.
        search: how to translate sentences that have no translation; its ``max_tokens`` are those of all batches.

    Attributes:
        name: of the model.
        clusters: number of clusters that its experts form.
        given: what it reads.

    Raises:
        ValueError: there is no such set, or it is not for this model.
    """

    def __init__(
        self, checkpoint: Path, log: Path | None, scratch: Path, data: Path | None, wanted: Wanted, search: Search
    ) -> None:
        scratch.mkdir()
        self.name = _name(checkpoint)
        self.log = log
        file = in_one_file(checkpoint, scratch)
        state = load_state(file, optimizer=False)
        self.signature = signature_of(state)
        self.clusters = int(self.signature["clusters"] or 1)
        if task_of(state) not in (MASKED_LM, FINE_TUNED):
            facts = model_facts(file)
            place = data or data_beside(checkpoint, facts.data)
            self.given = for_translation(file, facts, place, wanted, search, scratch)
        elif wanted.test_set or wanted.text or wanted.source_lang or wanted.target_lang:
            raise ValueError(
                f"{checkpoint} does not translate; give a part of its data with --subset and --data, and leave out "
                "--test-set, --input, --source-lang and --target-lang"
            )
        else:
            place = data or first_folder(Path(str(group(state, "task").get("data", ""))))
            self.given = for_understanding(file, place, wanted.subset or "valid", search)

    def report(self, sentences: int, groups: int) -> Reported:
        """Let the model read.

        Args:
            sentences: to show of each direction.
            groups: clusters of the model that it is compared with.
        """
        found = survey(self.given.readings, sentences, groups)
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log else []
        return Reported(self.name, self.signature, self.given.name, found, information_of(found), *history(lines))


def _name(checkpoint: Path) -> str:
    """Return what to call a model: its file and the last two folders of its training."""
    return "/".join([*checkpoint.resolve().parts[-3:-1], checkpoint.name.removesuffix(".pt")])


def _check_same(runs: Sequence[_Run]) -> None:
    """Raise ValueError unless all models read the same sentences."""
    if any(run.given.content != runs[0].given.content for run in runs):
        raise ValueError(
            f"{' and '.join(run.name for run in runs)} would read different sentences; give --data, or the text itself "
            "with --input"
        )


def for_understanding(file: Path, data: Path, subset: str, search: Search) -> Given:
    """Return a part of the data of a model for language understanding.

    Args:
        file: the model.
        data: its data.
        subset: the part.
        search: says how large batches are.
    """
    gpt2 = [folder for folder in (data, data.parent) if all((folder / name).is_file() for name in GPT2_BPE)]
    reading = Reading(
        "",
        subset,
        partial(ModelOnData, file, data, search.max_tokens, search.cpu),
        Gpt2Model(gpt2[0]) if gpt2 else None,
    )
    return Given(f"{data.resolve().name}/{subset}", [f"{data.resolve()} {subset}"], [reading])


def for_translation(
    file: Path, facts: ModelFacts, data: Path | None, wanted: Wanted, search: Search, scratch: Path
) -> Given:
    """Return the sentences that were asked for, with translations, in each direction that is left open.

    Args:
        file: the model.
        facts: of the model.
        data: of the model; None: those of the training.
        wanted: the sentences.
        search: how to translate those that have no translation.
        scratch: folder for what has to be made.

    Raises:
        ValueError: there is no such set, or it is not for this model.
    """
    places = data_of_directions(data, facts, wanted.source_lang, wanted.target_lang)
    content, readings = [], []
    for number, place in enumerate(places):
        if wanted.is_of_data:
            name, what = f"{place.name}/{wanted.part}", str(place.binary.resolve())
            binary, subset, pair = _part_of_data(place, wanted.part)
        else:
            chosen = choose(place, wanted)
            assert isinstance(chosen, TextSet)
            folder = scratch / f"input{number}"
            name, what, subset, pair = chosen.name, chosen.checksum(), "test", (place.source, place.target)
            translations = (*chosen.references, None)[0] or _translate(file, facts, place, chosen, search, folder)
            binary = place.binarise(chosen.source, folder, translations)
        content.append(f"{what} {subset} {pair}")
        # languages are classes of tokens only where there are several
        language = place.chosen if len(places) > 1 else ""
        on_data = partial(ModelOnData, file, binary, search.max_tokens, search.cpu, pair)
        readings.append(Reading(language, subset, on_data))
    directions = ", ".join(place.chosen for place in places)
    return Given(f"{name} {directions}".rstrip(), content, readings)


def _translate(
    file: Path, facts: ModelFacts, place: DataOfModel, chosen: TextSet, search: Search, folder: Path
) -> list[str]:
    """Return the model's own translations of sentences that have none."""
    print(f"{chosen.name} has no translations (--references); the model makes its own", flush=True)
    binarised = chosen.binarised(place, folder)
    log = folder / "generate.log"
    count = generate(file, facts, binarised, place.source, place.target, search, log, sys.stdout)
    return [normalise_space(best.text) for best, *_ in read_hypotheses(raw_lines(log), count)]


def _part_of_data(place: DataOfModel, part: str) -> tuple[Path, str, tuple[str, str]]:
    """Return the binary data that have a part of the data of a model, its name there, and the languages there."""
    if place.many is None:
        return place.binary, part, (place.source, place.target)
    language = place.target if place.many.target == MANY else place.source
    return place.binary, f"{part}-{language}", (place.many.source, place.many.target)
