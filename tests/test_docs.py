"""README and docs: links lead somewhere, commands and options exist, and the README stays short."""

import ast
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import cache
from importlib import import_module
from itertools import dropwhile, groupby
from pathlib import Path

import pytest
from fairseq import options

from moec_fairseq.__main__ import parse, parsers
from moec_fairseq.criterions.moec_label_smoothed_cross_entropy import MoECLabelSmoothedCrossEntropyConfig
from moec_fairseq.launch.configuration import configure
from moec_fairseq.models.config import FlatTransformerConfig, MoECTransformerConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "data/README.md")] + sorted(ROOT.glob("docs/*.md"))
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FAIRSEQ = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-preprocess": options.get_preprocessing_parser,
}
OTHERS = ("echo", "export", "pip", "source", "python")  # commands that are not ours
FOREIGN = {"--nproc-per-node", "--ntasks-per-node", "--no-build-isolation"}  # options of other programs


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [code for language, code in CODE.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return CODE.sub("", page.read_text(encoding="utf-8"))


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each command of a bash block, without variables set for it; those of a pipe one by one."""
    text = ""
    for line in code.replace("\\\n", " ").splitlines():
        text += line + "\n"
        lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that ends on a later line
            continue
        text = ""
        for is_separator, group in groupby(words, lambda word: set(word) <= set("|&;")):
            command = list(dropwhile(lambda word: re.match(r"\w+=", word), group))
            if not is_separator and command:
                yield command
    assert not text, f"this block ends in the middle of a command: {text}"


def moec_words(command: Sequence[str]) -> list[str] | None:
    """Return what a command gives to moec, by whichever way; None for other commands."""
    name, *words = command
    if "<" in words or ">" in words:
        words = words[: next(place for place, word in enumerate(words) if word in "<>")]
    if name == "moec":
        return words
    if name == "bash" and (script := ROOT / words[0]).is_file():
        run = re.search(r'start\.sh" (\w+) "\$@"', script.read_text(encoding="utf-8"))
        return [run[1], *words[1:]] if run else None
    if name == "torchrun":
        return words[words.index("moec_fairseq") + 1 :]
    return None


def all_commands() -> list[tuple[str, list[str]]]:
    """Return the commands of all pages, each with the name of its page."""
    found = []
    for page in PAGES:
        for command in (command for code in blocks(page, "bash") for command in commands(code)):
            if command[0] == "srun":  # its own last argument is a line for bash
                command = next(commands(command[-1]))
            found.append((page.name, command))
    return found


def trainings() -> dict[str, list[str]]:
    """Return the overrides of ``moec train`` on all pages, by configuration."""
    found: dict[str, list[str]] = {}
    for _, command in all_commands():
        if (words := moec_words(command)) and words[0] == "train":
            with suppress(SystemExit):  # which another test reports
                given = parse(as_typed(words))
                found.setdefault(given["config"], []).extend(given["overrides"])
    return found


def as_typed(words: Sequence[str]) -> list[str]:
    """Return the words with numbers where the page has a name or variable for one."""
    return [re.sub(r"^(K|SEED|N|\$\w+)$", "1", word).replace("MODEL", "moec") for word in words]


@cache
def known_options() -> set[str]:
    """Return the options of moec, and those of fairseq's commands for our models."""
    train = "x --user-dir moec_fairseq --optimizer adam --lr-scheduler inverse_sqrt"
    roberta = f"{train} --arch moec_roberta"
    lines = [
        (
            "fairseq-train",
            f"{train} --arch moec_transformer --criterion moec_label_smoothed_cross_entropy --task translation",
        ),
        ("fairseq-train", f"{roberta} --criterion moec_masked_lm --task masked_lm --bpe sentencepiece"),
        ("fairseq-train", f"{roberta} --criterion moec_sentence_prediction --task sentence_prediction --bpe gpt2"),
        ("fairseq-generate", "x --user-dir moec_fairseq --path x"),
        ("fairseq-preprocess", "--source-lang x"),
    ]
    found = [filled_parser(name, line.split()) for name, line in lines]
    strings = [string for parser in [*found, *parsers()[1].values()] for string in parser._option_string_actions]
    return {*strings, "--active-env", *FOREIGN}


def filled_parser(name: str, words: Sequence[str]) -> ArgumentParser:
    """Parse a command line of fairseq, which adds the options of what the line names to the parser; return that."""
    parser = FAIRSEQ[name]()
    if name == "fairseq-preprocess":
        parser.parse_args(words)
    else:
        options.parse_args_and_arch(parser, list(words))
    return parser


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        place, _, anchor = link.partition("#")
        if "://" in place:
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists() and ROOT in target.parents, f"{page.name} links to {link}, which is not there"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, but there is no such heading"


def test_the_map_names_files_and_folders():
    (where,) = [code for code in blocks(ROOT / "README.md", "") if "moec_fairseq/moe/" in code]
    names = [name for line in where.splitlines() for name in line.partition("  ")[0].split()]
    assert len(names) > 10 and not [name for name in names if not (ROOT / name).exists()]
    parts = {path.name for path in (ROOT / "moec_fairseq").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts <= {Path(name).name for name in names}


@pytest.mark.parametrize("page, command", all_commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_commands_are_understood(page, command, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    name, *words = command
    try:
        if (given := moec_words(command)) is not None:
            parse(as_typed(given))
        elif name in FAIRSEQ:
            filled_parser(name, words)
        elif name == "fairseq-hydra-train":
            folder, file = (words[words.index(option) + 1] for option in ("--config-dir", "--config-name"))
            assert (ROOT / folder / f"{file}.yaml").is_file()
        elif name == "bash":
            assert (ROOT / words[0]).is_file()
            assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/"))
        else:
            assert name in OTHERS, f"what is {name}?"
    except SystemExit:
        pytest.fail(f"{shlex.join(command)}: {capsys.readouterr().err.splitlines()[-1]}")


@pytest.mark.parametrize("config, overrides", trainings().items())
def test_trainings_have_a_configuration_with_these_options(config, overrides):
    path = ROOT / "configs" / f"{config}.yaml"
    assert path.is_file(), f"there is no configuration {config}"
    for override in overrides:
        key, _, value = override.partition("=")
        assert key != "method" or (ROOT / "configs/method" / f"{value}.yaml").is_file(), override
    # each key once, because composing takes half a second
    configure(path, list({override.partition("=")[0]: override for override in overrides}.values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_the_text_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    current = prose(page).partition("## 0.2.0")[0]  # of the changelog: later options may have replaced older ones
    spans = re.findall(r"`([^`]*)`", current)
    found = {option for span in spans for option in re.findall(r"(?:^|(?<=\s))--[a-z][\w-]*", span)}
    assert not found - known_options(), "options that are unknown"


def test_the_tables_of_options_are_complete():
    rows = re.findall(r"^\| (`--[^|]*`) \| ([^|]*) \| [^|]* \|$", prose(ROOT / "docs/options.md"), re.MULTILINE)
    listed = {name: default.strip("`") for names, default in rows for name in re.findall(r"--([\w-]+)", names)}
    inherited = {field.name for field in fields(FlatTransformerConfig)}
    assert issubclass(MoECTransformerConfig, FlatTransformerConfig) and "dropout" in inherited
    for config in (MoECTransformerConfig(), MoECLabelSmoothedCrossEntropyConfig()):
        for field in fields(config):
            if field.name in inherited or not re.match(r"moec?_|\w+_moe_", field.name):
                continue
            shown = listed[field.name.replace("_", "-")]
            words = {"True": "on", "False": "off", "None": "the middle layer"}
            default = re.sub(r"\.0$", "", str(field.default))
            assert re.sub(r"\.0$", "", shown) == words.get(default, default), field.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_compile_and_import_what_there_is(page):
    for code in blocks(page, "python"):
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("moec_fairseq"):
                module = import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)
